"""How a person at a terminal, or a log, is told what is being waited for."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

Tell = Callable[[str], None]
_LINE_S = 5.0


@contextlib.contextmanager
def told(stream: TextIO | None = None) -> Iterator[Tell]:
    """Yield a function for lines: a spinner's text on a terminal, else plain lines on stderr.

    An empty line ends the spinner until the next one; one that begins with `error:` stays.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        yield lambda line: _plain(line, stream)
        return
    from rich.console import Console  # noqa: PLC0415 - only where it is seen

    console = Console(file=stream)
    status = console.status("")

    def show(line: str) -> None:
        if line.startswith("error:"):
            console.print(line, style="red", markup=False, highlight=False)
        elif line:
            status.update(line)
            status.start()
        else:
            status.stop()

    try:
        yield show
    finally:
        status.stop()


class Bar(Protocol):
    """Takes how much is done now, of all."""

    def __call__(self, done: int, failed: int) -> None:
        """Show it."""
        ...


@contextlib.contextmanager
def bar(total: int, done: int, stream: TextIO | None = None) -> Iterator[Bar]:
    """Yield what shows progress with rate and time left: a bar on a terminal, else a line or two.

    `done` of the `total` were there before; they do not count for the rate.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _Lines(total, done, stream)
        return
    from rich import progress  # noqa: PLC0415 - only where it is seen
    from rich.console import Console  # noqa: PLC0415 - only where it is seen

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]:.1f} lines/s"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[failed]} failed"),
    )
    with progress.Progress(*columns, console=Console(file=stream)) as shown:
        task = shown.add_task("", total=total, completed=done, rate=0.0, failed=0)
        pace = _Pace(done)

        def show(done: int, failed: int) -> None:
            shown.update(task, completed=done, failed=failed, rate=pace.rate(done))

        yield show


class _Pace:
    """Things per second since the start."""

    def __init__(self, done: int) -> None:
        self._first, self._began = done, time.monotonic()

    def rate(self, done: int) -> float:
        return (done - self._first) / max(time.monotonic() - self._began, 1e-3)


class _Lines:
    """Progress where nobody watches: a line now and then, and at the end."""

    def __init__(self, total: int, done: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream
        self._pace, self._next_at = _Pace(done), time.monotonic() + _LINE_S
        self._last = done

    def __call__(self, done: int, failed: int) -> None:
        is_last = done == self._total != self._last
        if time.monotonic() < self._next_at and not is_last:
            return
        self._next_at, self._last = time.monotonic() + _LINE_S, done
        rate = self._pace.rate(done)
        left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 and not is_last else ""
        _plain(f"{done} of {self._total} lines, {failed} failed, {rate:.1f}/s{left}", self._stream)


def _plain(line: str, stream: TextIO) -> None:
    if line:
        stream.write(f"{line}\n")
        stream.flush()
