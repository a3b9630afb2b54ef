"""The data folder of one machine: who holds it, and what is kept in it between starts."""

import contextlib
import errno
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import locks

HOST = "127.0.0.1"
PORTS = range(10_000, 32_768)  # under the range from which systems take ports of outgoing calls
PORT_TRIES = 100


class DataDirError(Exception):
    """The data folder cannot be used; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class DataDir:
    """The folder, mode 0700. `servers.json` in it keeps passwords, keys and ports, mode 0600."""

    path: Path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold it against every other process. Raises DataDirError."""
        with contextlib.ExitStack() as stack:
            try:
                _private_folder(self.path)
                stack.enter_context(locks.hold(self.path / "lock"))
            except OSError as error:
                raise DataDirError(
                    f"cannot use {self.path} as data folder: {error.strerror}; name "
                    f"another with --data-dir"
                ) from error
            except locks.LockTakenError as error:
                raise DataDirError(
                    f"the data folder {self.path} is in use by process {error.pid}; stop "
                    f"it, or name another folder with --data-dir"
                ) from error
            yield

    def folder(self, name: str) -> Path:
        """Return a private folder inside, made if need be; absolute, as children change folders."""
        return _private_folder(self.path.resolve() / name)

    def log(self, name: str) -> Path:
        """Return where a child of that name writes."""
        return self.folder("logs") / f"{name}.log"

    def kept(self, server: str) -> dict[str, Any]:
        """Return what was kept for a server, or nothing at the first start."""
        found = self._read().get(server, {})
        return dict(found)

    def keep(self, server: str, values: dict[str, Any]) -> None:
        """Keep values for a server's next start, in one step that a crash cannot halve."""
        write_private(self.path / "servers.json", json.dumps(self._read() | {server: values}))

    def _read(self) -> dict[str, Any]:
        path = self.path / "servers.json"
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text()))
        except ValueError as error:
            raise DataDirError(
                f"{path} is damaged ({error}); it holds the password of the data "
                f"beside it: restore it, or start on another --data-dir"
            ) from error


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only we can read."""
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    fresh.replace(path)


def choose_port(last: int | None = None, *, also: int = 0) -> int:
    """Return `last` if it is still free, else another free loopback port.

    The port `also` higher must be free as well; 0 asks for none. Both are chosen from PORTS: above,
    an outgoing call has the port before its server, and for a minute after. Random, not the next
    one, so that two starts at the same moment do not meet.
    """
    tries = [] if last is None else [last]
    tries += random.sample(PORTS[: len(PORTS) - also], PORT_TRIES)
    for port in tries:
        if is_free(port) and is_free(port + also):
            return port
    raise DataDirError(f"no free port between {PORTS.start} and {PORTS.stop} on {HOST}")


def is_free(port: int, host: str = HOST) -> bool:
    """Tell whether a server could listen there now. Raises OSError where that has other reasons."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: past TIME_WAIT
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def _private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
