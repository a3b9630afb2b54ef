"""One batch, from wherever it is to its end.

    check every line → keep a window of lines as jobs → collect what ended → close → end

Every step stands in Redis before the next, so that any CPU worker goes on where one stopped.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from worker.batches.check import check
from worker.batches.reader import LineReader, RawLine
from worker.batches.results import NotOursError, ResultsFile
from worker.contract import forms, lines
from worker.contract.batches import Batches, BatchStatus, Look, Record
from worker.contract.door import dump
from worker.contract.errors import (
    FileGone,
    JobConflict,
    JobError,
    MediaExpired,
    QueueFull,
    TextTooLarge,
    UnknownFile,
)
from worker.contract.files import Files
from worker.contract.intake import Intake
from worker.contract.job import ChatRequest, JobSpec, line_job_id
from worker.contract.lines import LineError
from worker.contract.log import event
from worker.contract.models import Models
from worker.contract.reader import JobReader
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings
from worker.contract.store import JobStore

_log = logging.getLogger(__name__)
_TICK_S = 0.2
_FULL_S = 2.0  # before a full queue is asked again
_CANCEL_AGAIN_S = 3.0
_PAGE_LINES, _PAGE_BYTES = 32, 8 * 1024 * 1024  # taken from the input at a time
_REST_LINES = 200
_GONE = LineError("input_file_gone", "the input file was deleted, or has expired")


@dataclass(frozen=True, slots=True)
class Stores:
    """What a run needs of its process."""

    settings: Settings
    batches: Batches
    files: Files
    jobs: JobStore
    reader: JobReader
    objects: ObjectStore
    models: Models
    intake: Intake


class BatchRun:
    """Runs one batch while `token` holds its lock."""

    def __init__(self, batch_id: str, token: str, stores: Stores) -> None:
        self._id = batch_id
        self._token = token
        self._stores = stores
        self._batches = stores.batches
        self._reader: LineReader | None = None  # None: at the end of the input
        self._page: list[RawLine] = []  # read, but not all of it jobs yet
        self._pause_until = self._cancelled_at = float("-inf")

    async def run(self) -> BatchStatus:
        """Return how the batch ended. Raises NotOursError, StoreUnavailable: it then goes on."""
        record = await self._batches.record(self._id)
        if record["status"] == BatchStatus.VALIDATING and "ending" not in record:
            await self._check(record)
            record = await self._batches.record(self._id)
        self._endpoint = record["endpoint"]
        self._output, self._error = (
            ResultsFile(
                self._id,
                self._endpoint,
                file,
                self._token,
                self._batches,
                self._stores.reader,
                self._stores.objects,
            )
            for file in ("output", "error")
        )
        await self._open_input(record)
        await self._work()
        return await self._end(record)

    # --- reading ----------------------------------------------------------------------------------

    async def _check(self, record: Record) -> None:
        """Look at every line; one bad line fails the batch before any job exists."""
        settings = self._stores.settings
        try:
            reader = await self._input(record)
            found = await check(
                reader,
                record["endpoint"],
                self._stores.models.resolve,
                max_lines=settings.batch_max_lines,
            )
        except (FileGone, UnknownFile, MediaExpired):
            await self._close(BatchStatus.FAILED, _GONE)
            return
        if found.errors:
            await self._batches.close(self._id, self._token, BatchStatus.FAILED, found.errors)
        else:
            await self._batches.begin(self._id, self._token, found.total, found.model)

    async def _input(self, record: Record, line: int = 0, offset: int = 0) -> LineReader:
        file = await self._stores.files.get(record["input_file_id"])
        return LineReader(
            self._stores.objects,
            file.object_key,
            max_line_bytes=self._stores.settings.max_body_bytes,
            line=line,
            offset=offset,
        )

    async def _open_input(self, record: Record) -> None:
        """Go on reading where the last runner stopped; a batch that never began has no lines."""
        if "in_progress_at" not in record:
            return
        line, offset = (int(part) for part in record.get("cursor", "0 0").split())
        try:
            self._reader = await self._input(record, line, offset)
        except (FileGone, UnknownFile):
            await self._close(BatchStatus.FAILED, _GONE)

    async def _next_page(self, max_lines: int) -> list[RawLine]:
        """Return the lines at the cursor, none at the end of the input, or where it is gone."""
        if not self._page and self._reader is not None:
            try:
                self._page = await self._reader.next_lines(max_lines, _PAGE_BYTES)
            except MediaExpired:
                await self._close(BatchStatus.FAILED, _GONE)
            if not self._page:
                self._reader = None
        return self._page

    async def _passed(self, page: list[RawLine]) -> None:
        await self._batches.move_cursor(self._id, page[-1].number, page[-1].end)
        self._page = []

    # --- working ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Do what can be done until nothing is open, unread or uncollected."""
        while not self._is_done(look := await self._look()):
            moved = await self._collect(look)
            if look.ending:
                moved += await self._wind_up(look)
            elif look.is_late:
                await self._close(BatchStatus.EXPIRED)
            elif look.open == 0 and self._reader is None:
                await self._close(BatchStatus.COMPLETED)
            else:
                moved += await self._feed(look)
            if not moved:
                await asyncio.sleep(_TICK_S)

    def _is_done(self, look: Look) -> bool:
        is_collected = look.laid_out == {"output": self._output.lines, "error": self._error.lines}
        return bool(look.ending) and look.open == 0 and self._reader is None and is_collected

    async def _look(self) -> Look:
        look = await self._batches.look(self._id, self._token)
        if look is None:
            raise NotOursError
        return look

    async def _close(self, ending: BatchStatus, error: LineError | None = None) -> None:
        errors = [error.as_dict(None)] if error else []
        await self._batches.close(self._id, self._token, ending, errors)
        if error is _GONE:
            self._reader, self._page = None, []

    async def _collect(self, look: Look) -> int:
        output = await self._output.collect(look.laid_out["output"], look.ending)
        return output + await self._error.collect(look.laid_out["error"], look.ending)

    async def _feed(self, look: Look) -> int:
        """Make the next lines jobs, as many as the window has room for; return how many."""
        room = self._stores.settings.batch_window - look.open
        if room <= 0 or time.monotonic() < self._pause_until:
            return 0
        page = await self._next_page(min(room, _PAGE_LINES))
        if not page:
            return 0
        try:
            await _all(self._submit(raw) for raw in page)
        except QueueFull:
            self._pause_until = time.monotonic() + _FULL_S
            return 0  # the page comes again; lines that are jobs already stay the same jobs
        if (await self._look()).ending:
            return 0  # closed meanwhile: lines of the page that are no jobs are taken down, too
        await self._passed(page)
        return len(page)

    async def _submit(self, raw: RawLine) -> None:
        try:
            line = await asyncio.to_thread(lines.read, raw.data or b"", self._endpoint)
        except LineError as error:  # it was good when it was checked, with other settings
            await self._refuse(raw.number, _name(raw), error)
            return
        spec = lines.to_spec(line, self._id, raw.number)
        try:
            chat = line.placed(await self._stores.intake.read(line.job))
            self._check_size(chat, spec)
            await self._stores.intake.submit(chat, spec)
        except JobConflict:
            pass  # closed meanwhile, which the caller sees, or taken down before
        except JobError as error:
            if error.retryable:
                raise
            await self._refuse(raw.number, line.custom_id, error)

    async def _refuse(self, number: int, custom_id: str, error: JobError | LineError) -> None:
        entry = lines.failed(self._id, number, custom_id, error)
        await self._fail([(line_job_id(self._id, number), entry)])

    def _check_size(self, chat: ChatRequest, spec: JobSpec) -> None:
        """Refuse what would make every later look at the job a large one."""
        settings = self._stores.settings
        forms.check_size(chat.messages, chat.media, settings)
        if (size := len(dump(spec.envelope).encode())) > settings.max_text_bytes:
            raise TextTooLarge(
                f"what the answer repeats has {size} bytes; the limit is {settings.max_text_bytes}"
            )

    async def _wind_up(self, look: Look) -> int:
        """Begin no more: end the open jobs, and take the lines down that were never begun."""
        if look.open and time.monotonic() - self._cancelled_at > _CANCEL_AGAIN_S:
            self._cancelled_at = time.monotonic()
            for job_id in await self._batches.open_jobs(self._id):
                with contextlib.suppress(JobError):
                    await self._stores.jobs.cancel(job_id)
        page = await self._next_page(_REST_LINES)
        if page:
            names = await asyncio.to_thread(_names, page)
            await self._fail(
                [
                    (line_job_id(self._id, number), lines.failed(self._id, number, name))
                    for number, name in names
                ]
            )
            await self._passed(page)
        return len(page)

    async def _fail(self, entries: list[tuple[str, dict[str, Any]]]) -> None:
        if not await self._batches.fail_lines(self._id, self._token, entries):
            raise NotOursError

    # --- ending -----------------------------------------------------------------------------------

    async def _end(self, record: Record) -> BatchStatus:
        files = {}
        for name, results in (("output_file_id", self._output), ("error_file_id", self._error)):
            file_id = await results.finish(self._stores.files, int(record["result_life_s"]))
            if file_id is not None:
                files[name] = file_id
        status = await self._batches.end(self._id, self._token, files)
        if status is None:
            raise NotOursError
        event(_log, f"batch.{status}", batch_id=self._id)
        return status


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all; raise the first failure once none of them goes on behind our back."""
    for failure in await asyncio.gather(*work, return_exceptions=True):
        if failure is not None:
            raise failure


def _names(page: list[RawLine]) -> list[tuple[int, str]]:
    return [(raw.number, _name(raw)) for raw in page]


def _name(raw: RawLine) -> str:
    """Return the custom_id; '' of a line that has become too long, for a limit was lowered."""
    return "" if raw.data is None else lines.custom_id_of(raw.data)
