"""Reading jobs: views for polls and lists."""

import time
from collections.abc import Sequence
from typing import Any

from worker.contract import keys, view
from worker.contract.door import RedisDoor
from worker.contract.events import joined_text

_LIST_SCAN = 5_000  # records one list call looks at before it hands out a cursor


class JobReader:
    """Reads job records; writes nothing."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door

    async def record(self, job_id: str) -> view.Record:
        """Return the record's fields that views need. Raises JobNotFound or JobGone."""
        values = await self._door.command("HMGET", self._door.key("job", job_id), *view.VIEW_FIELDS)
        if values[0] is None:
            await self._door.missing(job_id)
        return _present(values)

    async def get(self, job_id: str) -> dict[str, Any]:
        """Return the job object as it is now. Raises JobNotFound or JobGone."""
        return await self._public(job_id, await self.record(job_id))

    async def _public(self, job_id: str, record: view.Record) -> dict[str, Any]:
        if record["status"] == "queued":
            position, eta_s = await self._position(job_id, record)
            return view.public(job_id, record, position=position, eta_s=eta_s)
        if "result" in record:
            return view.public(job_id, record)
        text = joined_text(await self._door.events(job_id))
        return view.public(job_id, record, partial_text=text)

    async def _position(self, job_id: str, record: view.Record) -> tuple[int | None, float | None]:
        """Return the jobs ahead and the seconds they will take at the last minute's pace."""
        queue, model = record["queue"], record["model"]
        ahead = keys.chat_queues(model)
        ahead = ahead[: ahead.index(queue)] if queue in ahead else ()
        minute = int(time.time() // 60)
        async with self._door.redis.pipeline(transaction=False) as pipe:
            pipe.zrank(self._door.key("queued", queue), job_id)
            for other in ahead:
                pipe.zcard(self._door.key("queued", other))
            pipe.mget(
                self._door.key("done", f"{model}:{minute}"),
                self._door.key("done", f"{model}:{minute - 1}"),
            )
            rank, *cards, done = await self._door.guard(pipe.execute())
        if rank is None:
            return None, None
        position = rank + sum(cards)
        per_s = sum(int(n or 0) for n in done) / (60 + time.time() % 60)
        return position, round((position + 1) / per_s, 1) if per_s else None

    async def list_jobs(
        self, *, status: str | None, model: str | None, after: str | None, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs, newest first, and the cursor for the next call (None: there is no more).

        A filter that matches little returns a short page with a cursor: one call looks at
        5 000 records at most.
        """
        index, start, looked_at = self._door.key("jobs"), 0, 0
        if after is not None:
            rank = await self._door.command("ZREVRANK", index, after)
            if rank is None:
                await self._door.missing(after)
            start = int(rank) + 1
        found: list[dict[str, Any]] = []
        while looked_at < _LIST_SCAN:
            page = await self._door.command("ZREVRANGE", index, start, start + limit * 2 - 1)
            for job_id, record in zip(page, await self._records(page), strict=True):
                looked_at += 1
                if record and _matches(record, status, model):
                    found.append(await self._public(job_id, record))
                    if len(found) == limit:
                        return found, job_id
            if len(page) < limit * 2:
                return found, None
            start += len(page)
        return found, page[-1]

    async def _records(self, job_ids: Sequence[str]) -> list[view.Record]:
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(self._door.key("job", job_id), list(view.VIEW_FIELDS))
            rows = await self._door.guard(pipe.execute()) if job_ids else []
        return [_present(row) if row[0] is not None else {} for row in rows]


def _present(values: Sequence[str | None]) -> view.Record:
    pairs = zip(view.VIEW_FIELDS, values, strict=True)
    return {name: value for name, value in pairs if value is not None}


def _matches(record: view.Record, status: str | None, model: str | None) -> bool:
    return (status is None or record["status"] == status) and (
        model is None or record["model"] == model
    )
