"""Batches: their record in Redis, and the batch object that it is for clients.

validating → in_progress → finalizing → completed | failed | expired, or cancelling → cancelled. The
runner (`worker.batches`) alone moves a batch on, while it holds its lock; anybody may cancel.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NoReturn

from worker.contract import keys
from worker.contract.door import RedisDoor, dump
from worker.contract.errors import (
    BatchConflict,
    BatchGone,
    BatchNotFound,
    IdempotencyConflict,
    StoreUnavailable,
    TooManyBatches,
)

KEEP_S = 30 * 86_400  # how long an ended batch can be looked at
RELEASED_S = 60  # how long a job is kept whose answer stands in the results
_MOMENTS = (
    "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
    "cancelling_at", "cancelled_at",
)  # fmt: skip
_SWEEP_BATCH = 100

ResultFile = Literal["output", "error"]
Record = dict[str, str]


class BatchStatus(StrEnum):
    """OpenAI's words. The last four are terminal."""

    VALIDATING = "validating"  # its lines are being read for the first time
    IN_PROGRESS = "in_progress"  # its lines are jobs, a window of them at a time
    FINALIZING = "finalizing"  # no line is begun any more; results are brought together
    CANCELLING = "cancelling"  # the same, by the caller's wish
    COMPLETED = "completed"  # every line has its answer or its error
    FAILED = "failed"  # the file is no good, or is gone
    EXPIRED = "expired"  # the completion window is over; what was answered is there
    CANCELLED = "cancelled"  # what was answered before is there

    @property
    def is_terminal(self) -> bool:
        """True once nothing can change any more."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


def lock_name(batch_id: str) -> str:
    """Return the name of the lock that a batch's runner holds; the scripts ask for it too."""
    return f"batch:{batch_id}"


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a caller asks for; never changes.

    `window` is as it was written (`24h`), `window_s` what it says; `result_life_s` is how long the
    files with its results are kept, None for the server's retention.
    """

    endpoint: str
    input_file_id: str
    window: str
    window_s: int
    metadata: dict[str, str]
    result_life_s: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """A batch at a glance: `open` jobs, lines laid out that stand in no part yet, by file."""

    status: BatchStatus
    ending: str
    open: int
    laid_out: dict[ResultFile, int]
    is_late: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A stored part of a results file: `lines` of it, from the front of what is laid out."""

    number: int
    etag: str
    size: int
    lines: int
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Batches:
    """Writes and reads batch records. Every method raises StoreUnavailable."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door

    # --- what callers do --------------------------------------------------------------------------

    async def create(self, new: NewBatch, *, idempotency: str = "", body_hash: str = "") -> str:
        """Make a batch durable; return its id.

        The same `idempotency` with the same `body_hash` returns the first one, for as long as its
        record is kept. Raises TooManyBatches, IdempotencyConflict.
        """
        settings = self._door.settings
        fields = {
            "endpoint": new.endpoint,
            "input_file_id": new.input_file_id,
            "completion_window": new.window,
            "metadata": dump(new.metadata),
            "result_life_s": new.result_life_s or settings.file_retention_s,
        }
        arguments = (
            f"batch_{secrets.token_hex(16)}",
            settings.batches_max_active,
            new.window_s * 1000,
            f"batch:{idempotency}" if idempotency else "",
            body_hash,
            KEEP_S,
            *(value for pair in fields.items() for value in pair),
        )
        try:
            answer = await self._door.call("create_batch", *arguments)
        except StoreUnavailable:  # the first answer may have been lost: the id makes it one batch
            answer = await self._door.call("create_batch", *arguments)
        match answer:
            case ["full", active]:
                raise TooManyBatches(f"{active} batches are active; try again when one has ended")
            case ["replay", _, old_hash] if old_hash != body_hash:
                raise IdempotencyConflict("this Idempotency-Key was used with another body")
        return str(answer[1])

    async def cancel(self, batch_id: str) -> None:
        """Ask for the end of a batch; twice is fine. Raises BatchConflict where it is over."""
        answer = str(await self._door.call("cancel_batch", batch_id))
        if answer == "missing":
            await self._missing(batch_id)
        if answer != "ok":
            raise BatchConflict(f"the batch is {answer} and can no longer be cancelled")

    async def record(self, batch_id: str) -> Record:
        """Return a batch's record. Raises BatchNotFound, BatchGone."""
        found: Record = await self._door.command("HGETALL", self._door.key("batch", batch_id))
        return found or await self._missing(batch_id)

    async def get(self, batch_id: str) -> dict[str, Any]:
        """Return the batch object. Raises BatchNotFound, BatchGone."""
        return public(batch_id, await self.record(batch_id))

    async def list_batches(
        self, *, after: str | None, limit: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return batches, newest first, and whether there are more. Raises BatchNotFound."""
        index, start = self._door.key("batches"), 0
        if after is not None:
            rank = await self._door.command("ZREVRANK", index, after)
            start = int(rank) + 1 if rank is not None else await self._missing(after)
        ids = await self._door.command("ZREVRANGE", index, start, start + limit)
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for batch_id in ids[:limit]:
                pipe.hgetall(self._door.key("batch", batch_id))
            records = await self._door.guard(pipe.execute()) if ids else []
        rows = zip(ids, records, strict=False)
        return [public(batch_id, record) for batch_id, record in rows if record], len(ids) > limit

    async def _missing(self, batch_id: str) -> NoReturn:
        if await self._door.command("EXISTS", self._door.key("gone", batch_id)):
            raise BatchGone(f"batch {batch_id} existed; its record is no longer kept")
        raise BatchNotFound(f"there is no batch {batch_id}")

    # --- what its runner does ---------------------------------------------------------------------

    async def active(self) -> list[str]:
        """Return the batches that have not ended, the one that is due first in front."""
        ids: list[str] = await self._door.command("ZRANGE", self._door.key("batch_work"), 0, -1)
        return ids

    async def begin(self, batch_id: str, token: str, total: int, model: str) -> bool:
        """Say that all lines are good; False where the batch is not the caller's to move on."""
        return bool(await self._door.call("begin_batch", batch_id, token, total, model))

    async def look(self, batch_id: str, token: str) -> Look | None:
        """Return where a batch is, None where it is no longer the caller's."""
        answer = await self._door.call("look_at_batch", batch_id, token)
        if answer is None:
            return None
        status, ending, is_open, output, error, is_late = answer
        laid_out: dict[ResultFile, int] = {"output": output, "error": error}
        return Look(BatchStatus(status), ending, is_open, laid_out, is_late == 1)

    async def move_cursor(self, batch_id: str, line: int, offset: int) -> None:
        """Note that all lines before a byte of the input are jobs."""
        await self._door.command(
            "HSET", self._door.key("batch", batch_id), "cursor", f"{line} {offset}"
        )

    async def open_jobs(self, batch_id: str) -> list[str]:
        """Return the jobs of a batch that have not ended."""
        ids = await self._door.command("SMEMBERS", self._door.key("bopen", batch_id))
        return sorted(ids)

    async def laid_out(self, batch_id: str, file: ResultFile, start: int, count: int) -> list[str]:
        """Return ended lines, oldest first: a job's id, or the entry of one that was no job."""
        key = self._door.key("bdone", f"{batch_id}:{file}")
        entries: list[str] = await self._door.command("LRANGE", key, start, start + count - 1)
        return entries

    async def fail_lines(
        self, batch_id: str, token: str, entries: Sequence[tuple[str, dict[str, Any]]]
    ) -> bool:
        """Lay out lines that never became jobs, by the ids that these would have had."""
        flat = [value for job_id, entry in entries for value in (job_id, dump(entry))]
        answer = await self._door.call("fail_lines", batch_id, token, keys.TOMBSTONE_S, *flat)
        return int(answer) >= 0

    async def next_part(
        self, batch_id: str, token: str, file: ResultFile, file_id: str, upload_id: str
    ) -> tuple[str, str, int] | None:
        """Return a results file's id, its upload's id, and a part number nobody else has had."""
        answer = await self._door.call("next_part", batch_id, token, file, file_id, upload_id)
        return None if answer is None else (answer[0], answer[1], int(answer[2]))

    async def record_part(self, batch_id: str, token: str, file: ResultFile, part: Part) -> bool:
        """Let a part count: its lines are written, and their jobs are let go."""
        return bool(
            await self._door.call(
                "record_part",
                batch_id,
                token,
                file,
                part.number,
                part.etag,
                part.size,
                part.lines,
                part.prompt_tokens,
                part.completion_tokens,
                RELEASED_S * 1000,
                self._door.settings.retention_s * 1000,
            )
        )

    async def parts(self, batch_id: str, file: ResultFile) -> tuple[list[tuple[int, str]], int]:
        """Return the recorded parts of a results file as (number, ETag), and their bytes."""
        key = self._door.key("bparts", f"{batch_id}:{file}")
        rows = [row.split(" ") for row in await self._door.command("LRANGE", key, 0, -1)]
        return [(int(row[0]), row[1]) for row in rows], sum(int(row[2]) for row in rows)

    async def close(
        self, batch_id: str, token: str, ending: BatchStatus, errors: Sequence[Any] = ()
    ) -> bool:
        """Begin no more lines: the batch is to end so; False where it is not the caller's."""
        told = dump(list(errors)) if errors else ""
        return bool(await self._door.call("close_batch", batch_id, token, ending, told))

    async def end(self, batch_id: str, token: str, files: Mapping[str, str]) -> BatchStatus | None:
        """End a batch as it was closed; return how, None where it is not the caller's."""
        flat = [value for pair in files.items() for value in pair]
        status = await self._door.call("end_batch", batch_id, token, KEEP_S * 1000, *flat)
        return None if status is None else BatchStatus(status)

    async def sweep(self) -> int:
        """Erase records that are over; return how many these were."""
        return int(await self._door.call("erase_batches", keys.TOMBSTONE_S, _SWEEP_BATCH))


def public(batch_id: str, record: Record) -> dict[str, Any]:
    """Return OpenAI's batch object."""
    moments = {
        name: int(record[name]) // 1000 if name in record else None
        for name in ("created_at", *_MOMENTS)
    }
    errors = json.loads(record["errors"]) if "errors" in record else None
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": record["endpoint"],
        "model": record.get("model") or None,
        "errors": None if errors is None else {"object": "list", "data": errors},
        "input_file_id": record["input_file_id"],
        "completion_window": record["completion_window"],
        "status": record["status"],
        "output_file_id": record.get("output_file_id"),
        "error_file_id": record.get("error_file_id"),
        **moments,
        "request_counts": {name: int(record[name]) for name in ("total", "completed", "failed")},
        "usage": _usage(record),
        "metadata": json.loads(record["metadata"]),
    }


def _usage(record: Record) -> dict[str, Any]:
    prompt = int(record.get("prompt_tokens", 0))
    completion = int(record.get("completion_tokens", 0))
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
