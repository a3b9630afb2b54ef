"""The first reading of a batch's input: every line is looked at before one becomes a job."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from worker.batches.reader import LineReader, RawLine
from worker.contract import lines
from worker.contract.errors import UnknownModel
from worker.contract.lines import LineError

MAX_ERRORS = 100  # that are told
_PAGE_LINES, _PAGE_BYTES = 200, 4 * 1024 * 1024


@dataclass(slots=True)
class Findings:
    """What a file holds: `total` good lines; `errors` as the batch object has them.

    `model` is '' where the lines ask for several.
    """

    total: int = 0
    model: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)


Resolve = Callable[[str | None], Awaitable[tuple[str, Any]]]
"""Returns a model's served name first; raises UnknownModel. See `Models.resolve`."""


async def check(reader: LineReader, endpoint: str, resolve: Resolve, *, max_lines: int) -> Findings:
    """Read all lines and return what is wrong with them. Raises MediaExpired, StoreUnavailable."""
    checker = _Checker(endpoint, max_lines)
    while page := await reader.next_lines(_PAGE_LINES, _PAGE_BYTES):
        await asyncio.to_thread(checker.take, page)
        if checker.has_enough:
            break
    await checker.look_up(resolve)
    return checker.findings()


class _Checker:
    def __init__(self, endpoint: str, max_lines: int) -> None:
        self._endpoint = endpoint
        self._max_lines = max_lines
        self._asked: dict[str | None, list[int]] = {}  # models → the first lines that ask for them
        self._served: set[str] = set()
        self._names: set[bytes] = set()  # hashes: the names themselves may be long
        self._total = 0
        self._errors: list[dict[str, Any]] = []

    @property
    def has_enough(self) -> bool:
        return len(self._errors) >= MAX_ERRORS or self._total > self._max_lines

    def take(self, page: list[RawLine]) -> None:
        for raw in page:
            self._total += 1
            try:
                self._look_at(raw)
            except LineError as error:
                self._errors.append(error.as_dict(raw.number))

    def _look_at(self, raw: RawLine) -> None:
        if raw.data is None:
            raise LineError("line_too_long", "this line is longer than a request may be")
        line = lines.read(raw.data, self._endpoint)
        name = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        if name in self._names:
            raise LineError(
                "duplicate_custom_id", f"custom_id {line.custom_id!r} came before", "custom_id"
            )
        self._names.add(name)
        askers = self._asked.setdefault(line.job.model, [])
        if len(askers) < MAX_ERRORS:
            askers.append(raw.number)

    async def look_up(self, resolve: Resolve) -> None:
        """Find out which of the models that lines ask for are served."""
        for name, askers in self._asked.items():
            try:
                self._served.add((await resolve(name))[0])
            except UnknownModel as error:
                told = LineError(error.code, error.message, "body.model")
                self._errors += [told.as_dict(number) for number in askers]
            if len(self._errors) >= MAX_ERRORS:
                return

    def findings(self) -> Findings:
        if self._total > self._max_lines:
            told = f"the file has over {self._max_lines} lines"
            self._errors.insert(0, LineError("too_many_lines", told).as_dict(None))
        if self._total == 0:
            self._errors.append(LineError("empty_file", "the file has no line").as_dict(None))
        self._errors.sort(key=lambda error: error["line"] or 0)
        model = next(iter(self._served)) if len(self._served) == 1 else ""
        return Findings(self._total, model, self._errors[:MAX_ERRORS])
