"""Small real processes for tests, and waiting for what they do."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.children import Command

LIMIT_S = 20.0


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
