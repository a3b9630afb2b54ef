"""The command line as a client of a running server: ask, list, watch, cancel, retry.

Everything goes over the public HTTP API; nothing here knows Redis or an engine. Answers go to
standard output, everything else to standard error.
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from worker import attachments
from worker.contract import settings
from worker.progress import told
from worker.up import UpOptions, running

_PROBE_S = 1.0
_TIMEOUT = httpx.Timeout(30.0, read=30.0)  # a stream says something every 10 s
_RESUME_S = 30.0  # how long a broken stream is taken up again
_AGAIN_S = 0.5  # between the tries: the server may be restarting, and a person waits
_PROMPT = ">>> "
_ID_WIDTH = 36
TERMINATED = 143  # 128 + SIGTERM, as shells have it
_TERMINAL = ("completed", "failed", "cancelled", "expired")


class ClientError(Exception):
    """A call that did not work out, as one sentence."""


def infer(  # noqa: PLR0917 - as the command's options stand
    url: str | None,
    prompt: str | None,
    images: tuple[str, ...],
    videos: tuple[str, ...],
    model: str | None,
    up_options: UpOptions,
) -> int:
    """Answer one question, or chat where `prompt` is None; return the exit status.

    Uses the server at `url` (None: FOREBAY_URL) if one answers there, else starts what it needs.
    """
    with reporting(), server(url, up_options) as client:
        conversation = Conversation(
            client, model, attachments.read(client, images), attachments.read(client, videos)
        )
        if prompt is not None:
            return conversation.ask(prompt)
        return _chat(conversation)
    return 1


def list_jobs(
    url: str | None, *, status: str | None, model: str | None, limit: int, dead: bool = False
) -> int:
    """Print jobs, newest first, as a table; `dead`: only those that took their workers down."""
    filters = {"status": status, "model": model, "dead": "true" if dead else None}
    with reporting(), connect(url) as client:
        table = Table(box=None, pad_edge=False)
        table.add_column("id", min_width=_ID_WIDTH)  # ids are to be copied: never cut
        for name in ("status", "error", "tokens", "created", "model"):
            table.add_column(name, no_wrap=True)
        for job in _pages(client, filters, limit):
            table.add_row(*_row(job))
        console = Console()
        console.print(table, soft_wrap=not console.is_terminal)
        return 0
    return 1


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    created = time.strftime("%m-%d %H:%M", time.localtime(job["created_at"]))
    code, tokens = (job["error"] or {}).get("code", ""), str(job["progress"]["tokens"])
    return job["id"], job["stage"] or job["status"], code, tokens, created, job["model"]


def show_job(url: str | None, job_id: str) -> int:
    """Print one job as JSON."""
    with reporting(), connect(url) as client:
        return print_json(checked(client.get(f"/v1/jobs/{job_id}")))
    return 1


def watch_job(url: str | None, job_id: str) -> int:
    """Print a job's answer as it comes; 0 if it completed."""
    with reporting(), connect(url) as client:
        checked(client.get(f"/v1/jobs/{job_id}"))
        return _print_answer(_follow(client, job_id))
    return 1


def cancel_job(url: str | None, job_id: str) -> int:
    """Ask for a job's end and print it."""
    return _post(url, f"/v1/jobs/{job_id}/cancel")


def retry_job(url: str | None, job_id: str) -> int:
    """Queue an ended job again and print it."""
    return _post(url, f"/v1/jobs/{job_id}/retry")


def retry_dead(url: str | None) -> int:
    """Queue every job again that took its workers down, and print their ids."""
    with reporting(), connect(url) as client:
        # All of them first: one that dies again while this runs is not replayed twice.
        ids = [job["id"] for job in _pages(client, {"dead": "true"}, sys.maxsize)]
        for job_id in ids:
            checked(client.post(f"/v1/jobs/{job_id}/retry"))
            print(job_id)  # noqa: T201 - what was asked for
        return 0
    return 1


@dataclass(slots=True)
class Conversation:
    """Questions about the same pictures and videos, with what was said before."""

    client: httpx.Client
    model: str | None
    images: list[str]
    videos: list[str]
    history: list[list[str]] = field(default_factory=list)

    def ask(self, question: str) -> int:
        """Print the answer as it comes; return the exit status. Ctrl-C cancels the job."""
        body: dict[str, Any] = {"query": self._tags() + question, "history": self.history}
        body |= {"images": self.images, "videos": self.videos}
        if self.model is not None:
            body["model"] = self.model
        job = checked(self.client.post("/v1/jobs", json=body))
        try:
            return _print_answer(self._remember(_follow(self.client, job["id"])))
        except KeyboardInterrupt:
            self.client.post(f"/v1/jobs/{job['id']}/cancel")
            raise

    def _tags(self) -> str:
        """Return the placeholders of the first question; later ones have them in the history."""
        if self.history:
            return ""
        return "<image>" * len(self.images) + "<video>" * len(self.videos)

    def _remember(self, events: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Any]:
        for kind, data in events:
            if kind == "completed":
                self.history = data["history"]
            yield kind, data


def _chat(conversation: Conversation) -> int:
    """Ask what is typed until the end of input."""
    print("Ask; an empty line or Ctrl-D ends.", file=sys.stderr)  # noqa: T201 - a terminal program
    while True:
        try:
            question = input(_PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        if not question.strip():
            return 0
        conversation.ask(question)


@contextlib.contextmanager
def server(url: str | None, up_options: UpOptions) -> Iterator[httpx.Client]:
    """Yield a client of the server that answers, else of one that is started for the occasion."""
    config = up_options.settings
    wanted = url or config.url
    if _answers(wanted):
        with connect(wanted) as client:
            yield client
    elif url is not None:
        raise ClientError(f"nothing answers at {url}: start it with `forebay up`")
    else:
        # As with Ctrl-C: what was started for the occasion ends, and its folder goes.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
        with told() as tell, running(up_options, tell) as started:
            tell("")
            with connect(started) as client:
                yield client


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url.rstrip('/')}/health/live", timeout=_PROBE_S).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def connect(url: str | None) -> httpx.Client:
    """Return a client of the server at `url` (None: FOREBAY_URL), with a key where one is set."""
    config = settings.load()
    key = min(config.keys, default=None)  # any of them will do
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url or config.url, headers=headers, timeout=_TIMEOUT)


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Turn what goes wrong on the way into one line on standard error."""
    try:
        yield
    except (ClientError, attachments.AttachmentError) as error:
        complain(str(error))
    except httpx.ConnectError as error:
        where = error.request.url.join("/")
        complain(f"nothing answers at {where}: start it with `forebay up`, or set FOREBAY_URL")
    except httpx.HTTPError as error:
        complain(f"the server broke off: {error}")


def complain(sentence: str) -> None:
    """Say what went wrong, as every command does."""
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201 - a terminal program


def _post(url: str | None, path: str) -> int:
    with reporting(), connect(url) as client:
        return print_json(checked(client.post(path)))
    return 1


def print_json(thing: dict[str, Any]) -> int:
    """Print what was asked for; return the exit status."""
    print(json.dumps(thing, ensure_ascii=False, indent=2))  # noqa: T201 - what was asked for
    return 0


def checked(response: httpx.Response) -> dict[str, Any]:
    """Return a response's JSON; raise ClientError with the server's sentence."""
    try:
        body: dict[str, Any] = response.json()
        sentence = body["error"]["message"] if response.is_error else ""
    except ValueError as error:
        raise ClientError(f"{response.url} answers {response.status_code}, no JSON") from error
    except (KeyError, TypeError) as error:  # not as we say what is wrong
        raise ClientError(
            f"{response.url} answers {response.status_code}, and is no server of Forebay's"
        ) from error
    if sentence:
        raise ClientError(sentence)
    return body


def _pages(
    client: httpx.Client, filters: dict[str, str | None], limit: int
) -> Iterator[dict[str, Any]]:
    params: dict[str, Any] = {name: value for name, value in filters.items() if value}
    left = limit
    while left > 0:
        page = checked(client.get("/v1/jobs", params=params | {"limit": min(left, 100)}))
        yield from page["data"]
        left -= len(page["data"])
        if page["next"] is None:
            return
        params["after"] = page["next"]


def _follow(client: httpx.Client, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind, data) of a job's events to the last; a broken stream is taken up again."""
    cursor, broken_since = 0, None
    while True:
        try:
            for number, kind, data in _events(client, job_id, cursor):
                cursor, broken_since = number, None
                yield kind, data
                if kind in _TERMINAL:
                    return
        except httpx.TransportError:
            broken_since = broken_since or time.monotonic()
            if time.monotonic() - broken_since > _RESUME_S:
                raise
        time.sleep(_AGAIN_S)


def _events(
    client: httpx.Client, job_id: str, after: int
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    with client.stream(
        "GET", f"/v1/jobs/{job_id}/events", params={"starting_after": after}
    ) as response:
        if response.is_error:
            response.read()
            checked(response)
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                yield int(fields["id"]), fields["event"], json.loads(fields["data"])
                fields = {}


def _print_answer(events: Iterator[tuple[str, dict[str, Any]]]) -> int:
    """Print deltas as they come, and why there is no whole answer."""
    for kind, data in events:
        if kind == "delta":
            print(data["text"], end="", flush=True)  # noqa: T201 - the answer
        elif kind == "completed":
            print()  # noqa: T201 - ends the answer's line
            return 0
        elif kind in _TERMINAL:
            error = data["error"] or {"code": kind, "message": f"the job was {kind}"}
            complain(f"{error['message']} ({error['code']})")
    return 1
