"""Child processes that never outlive their parent: start, watch, signal, stop.

Each child leads a session of its own, so a Ctrl-C at the terminal reaches the parent alone, which
then stops its children in the right order.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LEASH = Path(__file__).with_name("leash.py")
LOG_MAX_BYTES = 16 * 1024 * 1024  # a longer log is set aside once at the next start
LAST_WORDS_BYTES = 8192
KILL_WAIT_S = 10.0  # after SIGKILL; only a process stuck in the kernel takes longer


@dataclass(frozen=True, slots=True)
class Command:
    """What to start.

    `environ` is the child's whole environment. Output goes to the end of `log`; without one, stdout
    and stderr are the parent's own.
    """

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path | None = None
    cwd: Path | None = None


class Child:
    """One running process.

    Start it from a thread that lives as long as the child should: Linux takes the child down with
    the very thread that started it. `ended` gives the exit status: 0 and up, or minus the signal.
    """

    def __init__(self, command: Command, *, use_pipe: bool = sys.platform != "linux") -> None:
        """Start the command; `use_pipe` takes the portable way of dying with the parent."""
        self.command = command
        self.ended: Future[int] = Future()
        self.ended.set_running_or_notify_cancel()  # a waiter that is cancelled must not cancel it
        self._last_line = ""
        self._tee: threading.Thread | None = None
        self._lifeline: int | None = None
        self._process = self._start(use_pipe=use_pipe)
        if command.log is None:
            self._tee = threading.Thread(target=self._copy_stderr, daemon=True)
            self._tee.start()
        threading.Thread(target=self._reap, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """False once the exit status is known."""
        return not self.ended.done()

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the process alone, not to its group; a dead one is left in peace."""
        self._process.send_signal(signum)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit status, or None if the child still runs after `timeout_s`."""
        try:
            return self.ended.result(timeout_s)
        except FutureTimeoutError:
            return None

    def stop(self, grace_s: float) -> int | None:
        """End the child: SIGTERM, at most `grace_s` seconds, SIGKILL. Return its exit status."""
        self.send(signal.SIGTERM)
        status = self.wait(grace_s)
        if status is None:
            self.send(signal.SIGKILL)
            status = self.wait(KILL_WAIT_S)
        return status

    def last_words(self) -> str:
        """Return the last line that the child wrote (to stderr, where it has no log), or ''."""
        log = self.command.log
        return _in_words(self._last_line if log is None else _last_line_of(log))

    def _start(self, *, use_pipe: bool) -> subprocess.Popen[bytes]:
        read_fd = -1
        if use_pipe:
            read_fd, self._lifeline = os.pipe()
        leash = (sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), str(read_fd))
        with contextlib.ExitStack() as stack:
            log = self._open_log(stack)
            process = subprocess.Popen(
                (*leash, *self.command.argv),
                env=dict(self.command.environ),
                cwd=self.command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.PIPE if log is None else log,
                start_new_session=True,
                pass_fds=() if read_fd < 0 else (read_fd,),
            )
        if use_pipe:
            os.close(read_fd)
        return process

    def _open_log(self, stack: contextlib.ExitStack) -> IO[bytes] | None:
        path = self.command.log
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_MAX_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return stack.enter_context(path.open("ab"))

    def _copy_stderr(self) -> None:
        with self._process.stderr or contextlib.nullcontext(()) as lines:
            for line in lines:
                text = line.decode(errors="replace")
                sys.stderr.write(text)
                sys.stderr.flush()
                self._last_line = text.strip() or self._last_line

    def _reap(self) -> None:
        status = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it forked and left behind
        if self._tee is not None:
            self._tee.join(1.0)  # its last words may still be in the pipe
        if self._lifeline is not None:
            os.close(self._lifeline)
        self.ended.set_result(status)


def _in_words(line: str) -> str:
    """Return the event of a JSON log line, which alone may fill a screen with its traceback."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    return str(fields.get("event", line)) if isinstance(fields, dict) else line


def _last_line_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_WORDS_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
