"""What the processes that engines start have in common: their command line, and their end."""

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child that runs `main` of a module of ours.

    It imports this very package, from where we have it: `python -m` would look in the working
    directory first, where a user's own `worker` may lie.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, *arguments]


def ignore_stops() -> None:
    """Leave Ctrl-C and SIGTERM to the parent, whose drain still needs this process.

    Empty handlers and not SIG_IGN, which a child's own children would inherit and never lose.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


@contextmanager
def ends_after(limit_s: float) -> Iterator[None]:
    """End this process, its stack on stderr, where what is inside takes longer.

    A thread without Python does it, also where a library never lets go of the interpreter.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def die_with(parent_pid: int) -> bool:
    """End with the parent, whatever this process does then. Linux; elsewhere end of file does it.

    Returns False where the parent was gone before we asked.
    """
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent_pid
