"""How a person at a terminal, or a log, is told what is being waited for."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

Tell = Callable[[str], None]


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


def _plain(line: str, stream: TextIO) -> None:
    if line:
        stream.write(f"{line}\n")
        stream.flush()
