"""Watches the decoder processes that the media stage starts, through Python's own audit events."""

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MODULE = "worker.media.child"
_watchers: list[list[tuple[str, ...]]] = []


@contextlib.contextmanager
def started_decoders() -> Iterator[list[tuple[str, ...]]]:
    """Yield a list that grows by the command line of every decoder process started meanwhile."""
    _install()
    commands: list[tuple[str, ...]] = []
    _watchers.append(commands)
    try:
        yield commands
    finally:
        _watchers[:] = [each for each in _watchers if each is not commands]


@functools.cache
def _install() -> None:
    sys.addaudithook(_note)  # for good: Python takes none back


def living_decoders() -> list[int]:
    """Return the ids of the decoder processes of this test process."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_ours(entry)]


async def until(is_true: Callable[[], object], within_s: float = 10) -> None:
    """Return once something holds; fail when it does not in time."""
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "subprocess.Popen" and MODULE in arguments[1]:
        for commands in _watchers:
            commands.append(tuple(arguments[1]))


def _is_ours(entry: Path) -> bool:
    try:
        parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        command = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # it has just ended
    return int(parent) == os.getpid() and MODULE.encode() in command
