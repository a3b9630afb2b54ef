"""Locks between processes of one host: a file, held by whoever has it open, freed at any death."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockTakenError(Exception):
    """Another process holds the lock. `pid` is its process id, 0 where that is not known."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path} is held by process {pid or '(unknown)'}")
        self.pid = pid


@contextmanager
def hold(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file for the length of the block, with our process id in it.

    The file stays: deleting it would let two processes hold two files of one name. A `shared` one
    lies where other users come by: they can lock it too, but not write their id into it.

    Raises:
        LockTakenError: another process holds it.
    """
    fd = _open(path, 0o644 if shared else 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockTakenError(path, _pid_in(fd)) from error
        _write_pid(fd)
        yield
    finally:
        os.close(fd)


def _open(path: Path, mode: int) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, mode)
    except PermissionError:  # another user's, in a shared folder
        return os.open(path, flags | os.O_RDONLY)


def _write_pid(fd: int) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _pid_in(fd: int) -> int:
    written = os.pread(fd, 32, 0).strip()
    return int(written) if written.isdigit() else 0
