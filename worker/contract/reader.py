"""Reading jobs: views for polls and lists."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.contract import view
from worker.contract.door import RedisDoor
from worker.contract.events import joined
from worker.contract.job import ChatRequest, JobSpec, PreparedMedia, Said
from worker.contract.record import join

_LIST_SCAN = 5_000  # records one list call looks at before it hands out a cursor


@dataclass(frozen=True, slots=True)
class _Read:
    """A job at one moment: its record, and where it stands while it waits (-1: not known)."""

    record: view.Record
    ahead: int
    eta_ms: int


class JobReader:
    """Reads job records; writes nothing."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door

    async def record(self, job_id: str) -> view.Record:
        """Return the record's fields that views need. Raises JobNotFound or JobGone."""
        return (await self._one(job_id)).record

    async def get(self, job_id: str) -> dict[str, Any]:
        """Return the job object as it is now. Raises JobNotFound or JobGone."""
        return await self._public(job_id, await self._one(job_id))

    async def with_spec(self, job_id: str) -> tuple[dict[str, Any], JobSpec]:
        """Return the job object as `get` does, and what was asked for beside the question."""
        read = await self._one(job_id)
        return await self._public(job_id, read), view.spec_of(read.record)

    async def question(self, job_id: str) -> tuple[ChatRequest, tuple[PreparedMedia, ...]]:
        """Return what a job asks, and what the media stage has made of its media, in their order.

        Raises JobNotFound or JobGone.
        """
        key = self._door.key("doc", job_id)
        request, media = await self._door.command("HMGET", key, "request", "media")
        if request is None:
            await self._door.missing(job_id)
        prepared = tuple(PreparedMedia.from_dict(item) for item in json.loads(media or "[]"))
        return ChatRequest.from_dict(json.loads(request)), prepared

    async def many(self, job_ids: Sequence[str]) -> dict[str, tuple[view.Record, dict[str, Any]]]:
        """Return records and job objects by id; jobs that are gone are left out."""
        found = zip(job_ids, await self._each(job_ids), strict=True)
        return {
            job_id: (read.record, await self._public(job_id, read))
            for job_id, read in found
            if read
        }

    async def _one(self, job_id: str) -> _Read:
        answer = await self._door.call("read", job_id)
        return _read(answer) if answer else await self._door.missing(job_id)

    async def _each(self, job_ids: Sequence[str]) -> list[_Read | None]:
        answers = await self._door.call_each("read", [(job_id,) for job_id in job_ids])
        return [_read(answer) if answer else None for answer in answers]

    async def _public(self, job_id: str, read: _Read) -> dict[str, Any]:
        return view.public(
            job_id,
            read.record,
            streamed=await self._streamed(job_id, read.record),
            position=read.ahead if read.ahead >= 0 else None,
            eta_s=view.eta_s(read.eta_ms),
        )

    async def _streamed(self, job_id: str, record: view.Record) -> Said:
        """Return what the events hold and the record does not.

        That is all of it while there is no result, also of a job that waits to be gone on with;
        then only logprobs.
        """
        if "tokens" not in record or view.is_complete(record):
            return Said()
        return joined(await self._door.events(job_id))

    async def list_jobs(
        self,
        *,
        status: str | None,
        model: str | None,
        after: str | None,
        limit: int,
        dead: bool = False,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs, newest first, and the cursor for the next call (None: there is no more).

        `dead`: only those that took their workers down, the last to fail first. A filter that
        matches little returns a short page with a cursor: one call looks at 5 000 records at most.
        """
        index, looked_at = self._door.key("dead" if dead else "jobs"), 0
        start = await self._start(index, after, dead=dead)
        found: list[dict[str, Any]] = []
        while looked_at < _LIST_SCAN:
            page = await self._door.command("ZREVRANGE", index, start, start + limit * 2 - 1)
            for job_id, read in zip(page, await self._each(page), strict=True):
                looked_at += 1
                if read and _matches(read.record, status, model):
                    found.append(await self._public(job_id, read))
                    if len(found) == limit:
                        return found, job_id
            if len(page) < limit * 2:
                return found, None
            start += len(page)
        return found, page[-1]

    async def _start(self, index: str, after: str | None, *, dead: bool) -> int:
        if after is None:
            return 0
        rank = await self._door.command("ZREVRANK", index, after)
        if rank is not None:
            return int(rank) + 1
        if dead and await self._door.command("EXISTS", self._door.key("job", after)):
            return 0  # replayed since, as the page before it may be: what is left is on top
        return await self._door.missing(after)


def _read(answer: Sequence[Any]) -> _Read:
    """Read what the script READ answers."""
    short, long, ahead, eta_ms = answer
    return _Read(join(short, long), ahead, eta_ms)


def _matches(record: view.Record, status: str | None, model: str | None) -> bool:
    return (status is None or record["status"] == status) and (
        model is None or record["model"] == model
    )
