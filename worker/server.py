"""A server program on this machine: found, started, waited for, stopped."""

import importlib.metadata
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.children import Child, Command

START_S = 30.0  # servers answer within a second or two; a long append-only file takes a while
STOP_S = 10.0  # weed takes one to two; killing a server loses no finished write
POLL_S = 0.03


class EmbeddedError(Exception):
    """A server cannot be found or started; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be started any number of times, always in the same place.

    `environ` are the settings by which its clients find it. `is_ready` asks once, for at most
    `PROBE_S`. `sockets` are files that a killed run leaves behind.
    """

    command: Command
    environ: dict[str, str]
    is_ready: Callable[[], bool]
    sockets: tuple[Path, ...] = ()

    def clean(self) -> None:
        """Remove the sockets of a run that has ended."""
        for path in self.sockets:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A started server; `environ` are the settings by which its clients find it."""

    server: Server
    child: Child

    @property
    def environ(self) -> dict[str, str]:
        """`REDIS_URL`, or `S3_ENDPOINT_URL` with the two AWS keys."""
        return self.server.environ

    @property
    def url(self) -> str:
        """Where it answers; Redis' with the password in it."""
        return self.environ.get("REDIS_URL") or self.environ["S3_ENDPOINT_URL"]

    def stop(self) -> None:
        """End it, keeping its data. Stopping twice is fine, also when a successor runs already."""
        if self.child.is_alive:
            self.child.stop(STOP_S)
            self.server.clean()


def start(server: Server) -> RunningServer:
    """Start a server and return once it answers. Raises EmbeddedError."""
    child = Child(server.command)
    wait_ready(server, child)
    return RunningServer(server, child)


def wait_ready(server: Server, child: Child) -> None:
    """Return once the server answers.

    Raises:
        EmbeddedError: it ended, or gave no answer within `START_S`; it does not run any more.
    """
    deadline = time.monotonic() + START_S
    while not server.is_ready():
        if child.wait(POLL_S) is not None:
            raise EmbeddedError(f"{_failed(server)}: {child.last_words() or 'it wrote nothing'}")
        if time.monotonic() > deadline:
            child.stop(STOP_S)
            raise EmbeddedError(f"{_failed(server)}: no answer within {START_S:.0f} s")


def in_wheel(distribution: str, name: str) -> str | None:
    """Return where an installed wheel put a program, None where it is not installed."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())).resolve() for file in files if file.name == name)
    return next((str(path) for path in found if path.is_file()), None)


def version_of(binary: str, flag: str, pattern: str) -> tuple[int, ...]:
    """Ask a program for its version; one that cannot be run or understood has version ()."""
    try:
        said = subprocess.run(
            (binary, flag), capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(pattern, said)
    return tuple(int(part) for part in found.groups()) if found else ()


def _failed(server: Server) -> str:
    return f"the embedded {server.command.name} server did not start (see {server.command.log})"
