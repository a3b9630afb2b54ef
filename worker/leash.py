"""Run a command that dies with the process that asked for it, even when that one is killed.

    python -I -S leash.py PARENT_PID PIPE_FD COMMAND [ARGUMENT …]

Run by its path and without site-packages, so that it costs a few milliseconds. Linux kills the
command for us when the parent's starting thread ends (PIPE_FD is then -1). Elsewhere a watcher
holds the read end of a pipe whose write end only the parent has: end of file means that it is gone.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); kept over exec


def main(argv: list[str]) -> None:
    """Become the command named in `argv[2:]`; return only if the parent is gone already."""
    parent, pipe_fd, command = int(argv[0]), int(argv[1]), argv[2:]
    if pipe_fd < 0:
        die_with_parent(parent)
    else:
        _watch(pipe_fd)
    _become(command)


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when the parent's thread ends; exit if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def _watch(pipe_fd: int) -> None:
    """Leave a watcher behind, as no child of the command: that may wait for all of its own."""
    target = os.getpid()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        os.close(pipe_fd)
        return
    if os.fork() == 0:
        os.setsid()  # outside the command's group, which is killed as a whole
        for fd in (0, 1, 2):
            os.close(fd)  # a watcher that held the log open would look like a living command
        os.read(pipe_fd, 1)
        os.kill(target, signal.SIGKILL)
    os._exit(0)


def _become(command: list[str]) -> None:
    try:
        os.execvp(command[0], command)  # noqa: S606 - the caller's own argument list, no shell
    except OSError as error:
        sys.exit(f"error: cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
