"""Small real processes for tests, and waiting for what they do."""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from worker import commands
from worker.children import Child, Command
from worker.commands import ChatOptions
from worker.datadir import choose_port

LIMIT_S = 20.0
START_S = 40.0  # three interpreters on two busy cores
LOG_TAIL = 4000
ROLES = ("api", "chat", "media")
SUCCESS = 200


def command(
    code: str,
    *,
    log: Path | None = None,
    environ: Mapping[str, str] | None = None,
    name: str = "script",
    arguments: tuple[str, ...] = (),
) -> Command:
    """Return a command that runs a few lines of Python."""
    return Command(name, (sys.executable, "-c", code, *arguments), environ or {}, log=log)


def until(is_so: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Return once something is so; fail when it is not within the limit."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {limit_s:.0f} s"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Tell whether a process is there and not merely unreaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def until_async(is_so: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Do the same beside a running loop."""
    async with asyncio.timeout(limit_s):
        while not is_so():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Service:
    """Our own processes on stores of somebody else, under a key prefix of their own."""

    url: str
    environ: dict[str, str]
    children: dict[str, Child]

    def logs(self) -> list[tuple[str, str]]:
        """Return the end of what each process wrote."""
        paths = {name: child.command.log for name, child in self.children.items()}
        return [(n, p.read_text()[-LOG_TAIL:]) for n, p in paths.items() if p and p.exists()]


@contextmanager
def service(
    folder: Path, stores: Mapping[str, str], *, roles: Sequence[str] = ROLES, **settings: str
) -> Iterator[Service]:
    """Start the API, and workers with the echo engine as `roles` say; stop them at the end."""
    port = choose_port()
    foreign = {k: v for k, v in os.environ.items() if not k.startswith(("FOREBAY_", "CELERY_"))}
    prefix = f"test:{secrets.token_hex(6)}:"
    environ = {**foreign, **stores, "FOREBAY_KEY_PREFIX": prefix, **settings}
    options = ChatOptions(model="echo", engine="echo")
    api = commands.forebay("api", "--port", str(port))
    made = {
        "api": Command("api", api, commands.importable(environ)),
        "chat": commands.chat(options, None, environ, secrets.token_hex(8)),
        "media": commands.media(None, environ, secrets.token_hex(8)),
    }
    wanted = {n: replace(c, log=folder / f"{n}.log", cwd=folder) for n, c in made.items()}
    running = Service(
        f"http://127.0.0.1:{port}", environ, {name: Child(wanted[name]) for name in roles}
    )
    try:
        _wait_ready(running, "ready" if set(roles) == set(ROLES) else "live")
        yield running
    finally:
        for child in running.children.values():
            child.send(signal.SIGTERM)
        for child in running.children.values():
            child.stop(LIMIT_S)


@contextmanager
def second_api(first: Service, folder: Path) -> Iterator[str]:
    """Run one more API process on a service's stores; yield its address."""
    port = choose_port()
    api = commands.forebay("api", "--port", str(port))
    command = Command("api", api, commands.importable(first.environ), log=folder / "api.log")
    child = Child(replace(command, cwd=folder))
    running = Service(f"http://127.0.0.1:{port}", first.environ, {"api": child})
    try:
        _wait_ready(running, "live")
        yield running.url
    finally:
        child.send(signal.SIGTERM)
        child.stop(LIMIT_S)


def _wait_ready(running: Service, word: str) -> None:
    def is_ready() -> bool:
        ended = [name for name, child in running.children.items() if not child.is_alive]
        assert not ended, f"{ended} ended: {running.logs()}"
        try:
            return httpx.get(f"{running.url}/health/{word}", timeout=2).status_code == SUCCESS
        except httpx.TransportError:
            return False

    try:
        until(is_ready, START_S)
    except AssertionError as error:
        raise AssertionError(f"not {word}: {running.logs()}") from error
