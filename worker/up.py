"""`forebay up`: everything on this machine as children of one process."""

import asyncio
import contextlib
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from worker import commands
from worker.children import Command
from worker.commands import ChatOptions
from worker.contract.settings import Settings
from worker.datadir import DataDir, DataDirError, choose_port, is_free
from worker.machine import STOP_S, Machine, Part, Parts, Tell, UpError
from worker.supervisor import DRAIN_MARGIN_S

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `forebay up` is asked for.

    `gpus` one value per chat worker, such as `0,1`; `port` 0 for a free one, `flower_port` 0 for no
    Flower; `data_dir` None for a folder that goes away at the end; `environ` what children get;
    `processes` of the API and of the media stage, each.
    """

    settings: Settings
    environ: Mapping[str, str] = field(repr=False)
    chat: ChatOptions = field(default_factory=ChatOptions)
    gpus: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    flower_port: int = 5555
    data_dir: Path | None = Path(".forebay")
    processes: int = 1

    @property
    def url(self) -> str:
        """Where the API answers, as seen from this machine."""
        host = ANY_HOST.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


PartsFor = Callable[[UpOptions, DataDir, Mapping[str, str]], tuple[Part, ...]]


def our_parts(options: UpOptions, data: DataDir, environ: Mapping[str, str]) -> tuple[Part, ...]:
    """Return API, workers and Flower in the order of their start."""
    sets = (word for value in options.gpus for word in ("--gpus", value))
    listen = ("--host", options.host, "--port", str(options.port))
    several = ("--share-port",) if options.processes > 1 else ()
    arguments = {
        **dict.fromkeys(_numbered("api", options.processes), ("api", *listen, *several)),
        "chat": ("worker", "chat", *options.chat.arguments(), *sets),
        "media": ("worker", "media", "--processes", str(options.processes)),
        "flower": ("flower", "--port", str(options.flower_port)),
    }
    if not options.flower_port:
        del arguments["flower"]
    drain_s = options.settings.drain_s + DRAIN_MARGIN_S + STOP_S  # more than its own bound
    return tuple(
        Part(
            Command(name, commands.forebay(*words), environ, log=data.log(name)),
            stop_s=STOP_S if name == "flower" else drain_s,
            is_needed=name != "flower",
            serves=words[0] == "api",
        )
        for name, words in arguments.items()
    )


def _numbered(name: str, number: int) -> list[str]:
    return [name, *(f"{name}-{later}" for later in range(2, number + 1))]


def run(options: UpOptions, tell: Tell, ready: Tell, *, parts: PartsFor = our_parts) -> None:
    """Run until SIGINT or SIGTERM; `ready` is called with the URL once jobs are answered.

    A second signal has running jobs handed back instead of finished. All is stopped on return.

    Raises:
        UpError: it cannot start, or a part is broken for good.
    """

    async def main() -> None:
        wish = _Wish()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, wish.ask)
        await _serve(options, tell, ready, wish, parts)

    asyncio.run(main())


@contextlib.contextmanager
def running(options: UpOptions, tell: Tell, *, parts: PartsFor = our_parts) -> Iterator[str]:
    """Run for the length of the block, which gets the URL. Raises UpError if it cannot start.

    The children belong to a thread that lives as long, so the caller's own may wait for answers.
    """
    url: Future[str] = Future()
    wish: Future[_Wish] = Future()

    async def main() -> None:
        wish.set_result(_Wish())
        await _serve(options, tell, url.set_result, wish.result(), parts)

    def in_thread() -> None:
        try:
            asyncio.run(main())
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for the URL is told
            if url.done():
                tell(f"error: {error}")
            else:
                url.set_exception(error)

    thread = threading.Thread(target=in_thread, name="up")
    thread.start()
    try:
        yield url.result()
    finally:
        wish.result().ask_from_thread()
        thread.join()


class _Wish:
    """The wish to stop: once, or once more. Belongs to the loop it is made on."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def ask(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def ask_from_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
            self._loop.call_soon_threadsafe(self.ask)


async def _serve(options: UpOptions, tell: Tell, ready: Tell, wish: _Wish, parts: PartsFor) -> None:
    with _data_folder(options.data_dir) as data:
        options = _with_ports(options)
        machine = Machine(data, options.settings, _bound(parts, options, data), tell)
        living = asyncio.create_task(machine.live(_environ(options, data), options.url, ready))
        asked = asyncio.create_task(wish.stop.wait())
        hurried = asyncio.create_task(_hurry(wish, machine))
        try:
            await asyncio.wait((living, asked), return_when=asyncio.FIRST_COMPLETED)
            if living.cancel():
                tell("stopping: running jobs are finished first; once more to hand them back")
            with contextlib.suppress(asyncio.CancelledError):
                await living
        finally:
            await machine.stop()
            hurried.cancel()


async def _hurry(wish: _Wish, machine: Machine) -> None:
    await wish.hurry.wait()
    machine.hurry()


def _bound(parts: PartsFor, options: UpOptions, data: DataDir) -> Parts:
    return lambda environ: parts(options, data, environ)


@contextlib.contextmanager
def _data_folder(path: Path | None) -> Iterator[DataDir]:
    with contextlib.ExitStack() as stack:
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-")))
        data = DataDir(path)
        try:
            stack.enter_context(data.held())
        except DataDirError as error:
            raise UpError(str(error)) from error
        yield data


def _with_ports(options: UpOptions) -> UpOptions:
    """Check that the ports are free, before anything is started; choose one for port 0."""
    if options.port == 0:
        options = replace(options, port=choose_port())
    for flag, host, port in (
        ("--port", options.host, options.port),
        ("--flower-port", "127.0.0.1", options.flower_port),
    ):
        try:
            free = is_free(port, host)
        except OSError as error:
            reason = error.strerror or error
            raise UpError(f"cannot listen on {host} port {port} ({flag}): {reason}") from error
        if not free:
            raise UpError(f"port {port} is taken; choose another with {flag}")
    return options


def _environ(options: UpOptions, data: DataDir) -> dict[str, str]:
    """Return the children's environment; the embedded servers' settings are added to it."""
    models = dict.fromkeys((options.chat.name, *options.settings.model_names))
    return commands.importable(options.environ) | {
        "FOREBAY_MODELS": ",".join(models),  # known before the worker has announced it
        "FOREBAY_URL": options.url,
        "FOREBAY_DATA_DIR": str(data.path.resolve()),
    }
