"""The input of a batch, line by line, never whole in memory."""

from dataclasses import dataclass

from worker.contract.s3 import READ_BYTES, ObjectStore


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands in the file: its number from 1, the byte after it.

    `data` is None for a line that is longer than the reader takes.
    """

    number: int
    end: int
    data: bytes | None


class LineReader:
    """Reads lines from a byte of an object on, each piece with a request of its own.

    So a reader may wait for hours between two lines. `line` is the number of the last line before
    `offset`. Blank lines are passed over, but counted.
    """

    def __init__(
        self,
        objects: ObjectStore,
        key: str,
        *,
        max_line_bytes: int,
        line: int = 0,
        offset: int = 0,
    ) -> None:
        self._objects = objects
        self._key = key
        self._max_line_bytes = max_line_bytes
        self._line = line
        self._start = offset  # of what waits
        self._read_to = offset
        self._waiting = bytearray()
        self._is_at_end = False

    async def next_lines(self, max_lines: int, max_bytes: int) -> list[RawLine]:
        """Return some lines; none at the end of the file.

        `max_bytes` bounds all of them together, but for the first. Raises MediaExpired where the
        object is gone, StoreUnavailable.
        """
        lines: list[RawLine] = []
        size = 0
        while len(lines) < max_lines and size < max_bytes:
            line = await self._next()
            if line is None:
                break
            lines.append(line)
            size += len(line.data or b"")
        return lines

    async def _next(self) -> RawLine | None:
        is_too_long, searched = False, 0
        while True:
            cut = self._waiting.find(b"\n", searched)
            if cut >= 0 or (self._is_at_end and (self._waiting or is_too_long)):
                raw = self._take(cut + 1 if cut >= 0 else len(self._waiting))
                self._line += 1
                if is_too_long or len(raw) > self._max_line_bytes:
                    return RawLine(self._line, self._start, None)
                if raw.strip():
                    return RawLine(self._line, self._start, raw)
                searched = 0
                continue
            if self._is_at_end:
                return None
            if len(self._waiting) > self._max_line_bytes:
                is_too_long = True
                self._take(len(self._waiting))
            searched = len(self._waiting)
            await self._read_on()

    def _take(self, count: int) -> bytes:
        raw = bytes(self._waiting[:count])
        del self._waiting[:count]
        self._start += count
        return raw

    async def _read_on(self) -> None:
        data = await self._objects.get_range(self._key, self._read_to, READ_BYTES)
        self._waiting += data
        self._read_to += len(data)
        self._is_at_end = len(data) < READ_BYTES
