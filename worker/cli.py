"""The `forebay` command.

Parses, then hands over. What a command needs is imported inside it: `--help` is quick, and nothing
of ours is loaded before a child has its own CUDA_VISIBLE_DEVICES. Knows no job, no key.
"""

# ruff: noqa: PLC0415 - see above

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from worker.cli_webhooks import webhooks as webhooks_group

if TYPE_CHECKING:
    from worker.commands import ChatOptions
    from worker.contract.settings import Settings
    from worker.up import UpOptions

ENGINES = ("auto", "lmdeploy", "transformers", "echo")
BACKENDS = ("auto", "turbomind", "pytorch")
_MODEL_HELP = "Checkpoint folder, hub id (LMDeploy fetches it), or `demo`."
LOOPBACK = "127.0.0.1"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
MAX_PROCESSES = 16

Function = TypeVar("Function", bound=Callable[..., Any])


def main() -> NoReturn:
    """Run the command; every error is one line on stderr and a status of 1 or more."""
    try:
        status = cli(prog_name="forebay", standalone_mode=False)
        if sys.stdout is not None:  # None where it was closed before the start
            sys.stdout.flush()  # here, where it can still be told that this fails
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_output()  # its reader has enough
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last handler; what it prints, a person reads
        _fail(str(error) or type(error).__name__, _status_of(error))
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    line = " ".join(message.split()).removeprefix("error: ")
    click.echo(f"error: {line}", err=True)
    try:
        click.echo(nl=False)  # flushes
    except OSError:
        _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Let what cannot be written go: the interpreter would try it again, and print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_of(error: Exception) -> int:
    """Return 2 for a bad setting, 78 or 69 where a supervisor gave up, else 1."""
    from worker.contract.settings import SettingsError
    from worker.keeper import EXIT_CONFIG, EXIT_GAVE_UP, EXIT_USAGE, GaveUpError

    if isinstance(error, GaveUpError):
        return EXIT_CONFIG if error.status in {EXIT_CONFIG, EXIT_USAGE} else EXIT_GAVE_UP
    return 2 if isinstance(error, SettingsError) else 1


def _settings(*, logs: bool = False) -> "Settings":
    from worker.contract import log, settings

    loaded = settings.load()
    if logs:
        log.set_up(loaded.log_level)
    return loaded


# --- options that several commands take -----------------------------------------------------------


def _engine_options(function: Function) -> Function:
    for option in reversed(
        (
            click.option("--model", help=f"{_MODEL_HELP}  [default: demo]"),
            click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True),
            click.option(
                "--backend",
                type=click.Choice(BACKENDS),
                default="auto",
                show_default=True,
                help="LMDeploy's.",
            ),
            click.option(
                "--tp",
                type=click.IntRange(1),
                help="GPUs per worker.  [default: all of a --gpus set]",
            ),
            click.option(
                "--gpus",
                multiple=True,
                metavar="0,1",
                help="GPUs of one worker; once more for the next worker.",
            ),
            click.option("--slots", type=click.IntRange(1), help="Jobs inside the engine at once."),
            click.option(
                "--echo-slots",
                type=click.IntRange(1),
                default=256,
                show_default=True,
                help="The same for --engine echo.",
            ),
            click.option(
                "--trust-remote-code",
                is_flag=True,
                help="Run Python that the checkpoint brings along. LMDeploy's.",
            ),
            click.option(
                "--served-name",
                default="",
                help="The model's name for callers.  [default: the --model value]",
            ),
        )
    ):
        function = option(function)
    return function


def _chat_options(given: dict[str, Any]) -> "ChatOptions":
    from worker.commands import ChatOptions

    echo_slots = given["echo_slots"] if given["engine"] == "echo" else None
    return ChatOptions(
        model=given["model"] or "demo",
        engine=given["engine"],
        backend=given["backend"],
        tp=given["tp"],
        slots=given["slots"] or echo_slots,
        served_name=given["served_name"],
        trust_remote_code=given["trust_remote_code"],
    )


def _for_the_occasion(given: dict[str, Any]) -> "UpOptions":
    """Return what a command starts with where no server answers: a free port, no Flower."""
    from worker.up import UpOptions

    return UpOptions(
        _settings(),
        dict(os.environ),
        _chat_options(given),
        given["gpus"],
        port=0,
        flower_port=0,
        data_dir=None,
    )


_host = click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on.")
_url = click.option("--url", help="A running server.  [default: FOREBAY_URL]")


# --- commands -------------------------------------------------------------------------------------


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: forebay infer --image sheep.png 图片中有几只羊",
)
@click.version_option(package_name="forebay")
def cli() -> None:
    """A durable queue in front of a vision-language model."""


@cli.command(epilog="Example: forebay up --model ./InternVL2-8B --gpus 0,1 --gpus 2,3")
@_engine_options
@_host
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Of the API; 0 takes a free one.",
)
@click.option(
    "--flower-port",
    type=click.IntRange(0, 65535),
    default=5555,
    show_default=True,
    help="Of Flower, on the loopback address; 0 for no Flower.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where Redis and the object store keep their data.  [default: .forebay]",
)
@click.option(
    "--processes",
    type=click.IntRange(1, MAX_PROCESSES),
    help="Of the API, and as many of the media stage.  [default: one per 4 cores, at most 4]",
)
def up(
    host: str,
    port: int,
    flower_port: int,
    data_dir: Path | None,
    processes: int | None,
    **given: Any,
) -> None:
    """Run everything on this machine, until Ctrl-C or SIGTERM.

    Redis and an object store (unless REDIS_URL and S3_ENDPOINT_URL are set), API, media stage, one
    chat worker per --gpus, Flower. Prints one line `ready http://…` when jobs are answered. Running
    jobs are finished before it ends; Ctrl-C once more puts them back into the queue.
    """
    from worker.progress import told
    from worker.up import UpOptions, run

    settings = _settings()
    options = UpOptions(
        settings,
        dict(os.environ),
        _chat_options(given),
        given["gpus"],
        host,
        port,
        flower_port,
        data_dir or settings.data_dir,
        processes or max(1, min(4, (os.cpu_count() or 1) // 4)),
    )
    with told() as tell:

        def ready(url: str) -> None:
            tell("")
            click.echo(f"ready {url}")

        run(options, tell, ready)


@cli.command(epilog="Example: forebay infer --image sheep.png 图片中有几只羊")
@_engine_options
@_url
@click.option("--image", "images", multiple=True, metavar="FILE|URL", help="A picture; repeatable.")
@click.option("--video", "videos", multiple=True, metavar="FILE|URL", help="A video; repeatable.")
@click.argument("prompt", required=False)
def infer(
    url: str | None,
    images: tuple[str, ...],
    videos: tuple[str, ...],
    prompt: str | None,
    **given: Any,
) -> int:
    """Answer one question, streamed to the terminal; without PROMPT, chat.

    Asks the server at FOREBAY_URL; where none answers, starts what it needs and stops it after.
    """
    from worker import client

    options = _for_the_occasion(given)
    return client.infer(url, prompt, images, videos, given["model"], options)


@cli.command(epilog="Example: forebay batch requests.jsonl -o results.jsonl")
@_engine_options
@_url
@click.option(
    "-o",
    "--output",
    "results",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="RESULTS.jsonl",
    help="Where the results go; what stands there already is not asked again.",
)
@click.argument("requests", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def batch(url: str | None, requests: Path, results: Path, **given: Any) -> int:
    """Answer a file of requests, one per line; go on where a run before stopped.

    A line is OpenAI's {"custom_id", "method", "url", "body"}, or a body of /v1/jobs alone, whose
    custom_id is its line number. There, "images" and "videos" may name files, as seen from the
    folder of the requests. Every result is one line with its custom_id. Ends with 1 where lines
    failed, with 2 where the requests are no good.

    Asks the server at FOREBAY_URL; where none answers, starts what it needs and stops it after.
    """
    from worker import bulk
    from worker.requests import RequestsError

    options = _for_the_occasion(given)
    try:
        return bulk.batch(url, requests, results, given["model"], options)
    except RequestsError as error:
        raise click.UsageError(str(error)) from error


@cli.group(epilog="Example: forebay jobs list --status failed")
def jobs() -> None:
    """Look at the jobs of a running server and steer them."""


@jobs.command("list", epilog="Example: forebay jobs list --status failed --limit 5")
@_url
@click.option("--status", help="Only these, such as failed.")
@click.option("--model", help="Only this model's.")
@click.option("--dead", is_flag=True, help="Only those that took too many workers down.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
def list_jobs(
    url: str | None, status: str | None, model: str | None, dead: bool, limit: int
) -> int:
    """List jobs, newest first."""
    from worker import client

    return client.list_jobs(url, status=status, model=model, dead=dead, limit=limit)


@jobs.command("show", epilog="Example: forebay jobs show job_01J8ZQ")
@_url
@click.argument("job_id")
def show_job(url: str | None, job_id: str) -> int:
    """Show one job, whole."""
    from worker import client

    return client.show_job(url, job_id)


@jobs.command("watch", epilog="Example: forebay jobs watch job_01J8ZQ")
@_url
@click.argument("job_id")
def watch_job(url: str | None, job_id: str) -> int:
    """Follow a job's answer until its end."""
    from worker import client

    return client.watch_job(url, job_id)


@jobs.command("cancel", epilog="Example: forebay jobs cancel job_01J8ZQ")
@_url
@click.argument("job_id")
def cancel_job(url: str | None, job_id: str) -> int:
    """Cancel a job, waiting or running."""
    from worker import client

    return client.cancel_job(url, job_id)


@jobs.command("retry", epilog="Example: forebay jobs retry job_01J8ZQ")
@_url
@click.option("--dead", is_flag=True, help="All that took too many workers down, no JOB_ID.")
@click.argument("job_id", required=False)
def retry_job(url: str | None, job_id: str | None, dead: bool) -> int:
    """Queue an ended job again under the same id, or all of the dead list."""
    from worker import client

    if dead == (job_id is not None):
        raise click.UsageError("give a JOB_ID or --dead")
    return client.retry_dead(url) if job_id is None else client.retry_job(url, job_id)


cli.add_command(webhooks_group)


@cli.group(epilog="Example: forebay worker media")
def worker() -> None:
    """Run one role in the foreground, for compose, systemd or Kubernetes.

    SIGTERM finishes running jobs, for at most FOREBAY_DRAIN_S seconds; a second one puts them back
    into the queue at once. Ends with 78 where a setting or the model is wrong, with 69 where the
    role cannot be kept alive.
    """


@worker.command(epilog="Example: forebay worker chat --model ./InternVL2-8B --gpus 0,1 --gpus 2,3")
@_engine_options
def chat(**given: Any) -> None:
    """Answer jobs with a model: one process per --gpus."""
    settings = _settings(logs=True)
    from worker import roles

    roles.chat(settings, dict(os.environ), _chat_options(given), given["gpus"])


@worker.command(epilog="Example: forebay worker media --slots 4")
@click.option("--slots", type=click.IntRange(1), help="Files prepared at once.  [default: cores]")
@click.option(
    "--processes",
    type=click.IntRange(1, MAX_PROCESSES),
    default=1,
    show_default=True,
    help="Each prepares about 100 pictures a second.",
)
def media(slots: int | None, processes: int) -> None:
    """Fetch, check and prepare the pictures and videos of jobs, on the CPU."""
    settings = _settings(logs=True)
    from worker import roles

    roles.media(settings, dict(os.environ), slots, processes)


@worker.command(epilog="Example: forebay worker webhooks")
def webhooks() -> None:
    """Deliver callbacks, and nothing else; every media worker does too."""
    settings = _settings(logs=True)
    from worker import roles

    roles.webhooks(settings, dict(os.environ))


@worker.command(epilog="Example: forebay worker sweep")
def sweep() -> None:
    """Put lost jobs back into their queues and erase what is over; every media worker does too."""
    settings = _settings(logs=True)
    from worker import roles

    roles.sweep(settings, dict(os.environ))


@cli.command(epilog="Example: forebay api --host 0.0.0.0 --port 8000")
@_host
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--share-port",
    is_flag=True,
    help="More such processes may listen there; the kernel spreads callers over them.",
)
def api(host: str, port: int, share_port: bool) -> None:
    """Serve HTTP: submit, poll, stream, cancel."""
    settings = _settings(logs=True)
    from worker import serving

    serving.serve(host, port, drain_s=settings.drain_s, shares_port=share_port)


@cli.command(epilog="Example: forebay flower --port 5555")
@click.option(
    "--host",
    default=LOOPBACK,
    show_default=True,
    help="Others than loopback need FOREBAY_FLOWER_BASIC_AUTH.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True)
def flower(host: str, port: int) -> None:
    """Watch workers and tickets in the browser; each ticket has its job's id."""
    settings = _settings(logs=True)
    if not settings.flower_basic_auth and host not in {LOOPBACK, "localhost", "::1"}:
        raise click.UsageError(
            f"--host {host} lets others in: set FOREBAY_FLOWER_BASIC_AUTH to user:password first"
        )
    if settings.flower_basic_auth:
        # The environment is ours alone, the command line is everybody's.
        os.environ["FLOWER_BASIC_AUTH"] = settings.flower_basic_auth
    from worker.contract.celery_app import app

    app.start(["flower", f"--address={host}", f"--port={port}"])


@cli.command(epilog="Example: forebay bench http://127.0.0.1:8000 --jobs 512")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option(
    "--api",
    type=click.Choice(("chat", "jobs")),
    default="chat",
    show_default=True,
    help="Which door: /v1/chat/completions of any server, or our own /v1/jobs.",
)
@click.option("--model", default="", help="[default: the first that the server serves]")
@click.option("--stream/--no-stream", default=True, show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="So many at once.  [default: 64]")
@click.option("--seconds", type=click.FloatRange(1), help="Steady load for so long instead.")
@click.option("--rate", type=click.FloatRange(min=0.01), help="Steady: so many a second.")
@click.option("--inside", type=click.IntRange(1), help="Steady: always so many under way.")
@click.option("--text", "is_text", is_flag=True, help="No pictures.")
@click.option("--pixels", type=click.IntRange(28, 4096), default=448, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True)
@click.option("--prompt", default="", help="Another question; {number} is the request's.")
@click.option("--key", default="", envvar="OPENAI_API_KEY", show_envvar=True, help="API key.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def bench(url: str, *, is_text: bool, as_json: bool, processes: int, **given: Any) -> int:
    """Load a server with generated pictures: rates, time to first token, waiting, pieces.

    With --jobs all are sent at once; with --seconds and --rate or --inside the load is steady, and
    the rates leave the first 15 % of it out.
    """
    from worker.bench import command
    from worker.bench.load import Load

    given["pixels"] = 0 if is_text else given["pixels"]
    given["jobs"] = given["jobs"] or (0 if given["seconds"] else 64)
    load = Load(url=url, **{n: v for n, v in given.items() if v is not None})
    return command.main(load, processes=processes, as_json=as_json)


@cli.command(epilog="Example: forebay check --model ./InternVL2-8B")
@click.option("--model", default="demo", show_default=True, help=_MODEL_HELP)
def check(model: str) -> int:
    """Tell whether Redis, broker, object store, GPUs and model are well: one line each."""
    settings = _settings()
    from worker.check import findings

    found = findings(settings, model)
    for finding in found:
        click.echo(str(finding))
    return 0 if all(finding.is_ok for finding in found) else 1


if __name__ == "__main__":
    main()
