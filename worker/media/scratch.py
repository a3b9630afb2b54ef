"""Room on disk for one part, made when it is first needed: most pictures never are in a file."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

FOLDER_PREFIX = "forebay-media-"


class Scratch:
    """A context with a temporary folder, which is gone with all that is in it at the end."""

    def __init__(self) -> None:
        self._made: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """The folder; asking for it makes it."""
        if self._made is None:
            self._made = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX)
        return Path(self._made.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._made is not None:
            self._made.cleanup()
