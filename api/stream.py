"""Server-sent events of a job, resumed at a cursor, for any number of readers."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from api.deps import Contract, Uses
from api.jobs import cursor_of
from api.schemas import ERRORS
from api.sse import EventStream
from worker.contract import view
from worker.contract.errors import JobError
from worker.contract.events import DELTA, STATUS, Event

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=ERRORS)


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def events(
    job_id: str,
    uses: Uses,
    last_event_id: Annotated[str | None, Header(json_schema_extra={"pattern": "^[0-9]*$"})] = None,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> EventStream:
    """Stream a job: status changes, text deltas, and last the whole job."""
    after = cursor_of(last_event_id, starting_after)
    record = await uses.reader.record(job_id)
    return EventStream(_frames(job_id, record, after, uses))


async def _frames(
    job_id: str, record: view.Record, after: int, uses: Contract
) -> AsyncGenerator[bytes, None]:
    base = int(record["base"])
    if after < base:
        queued = view.status_event(job_id, record, view.first_status(record))
        yield _frame(base, STATUS, _dump({"sequence_number": base} | queued))
    try:
        async with aclosing(uses.live.follow_together(job_id, max(after, base))) as followed:
            async for news in followed:
                # What is there at a time leaves in one write: each costs more than the events.
                told = [_frame(e.seq, e.kind, await _data(job_id, record, e, uses)) for e in news]
                yield b"".join(told)
    except JobError as error:  # the stream has begun: too late for a status
        yield b"event: error\ndata: " + _dump({"error": error.as_dict()}).encode() + b"\n\n"


async def _data(job_id: str, record: view.Record, event: Event, uses: Contract) -> str:
    number = f'{{"sequence_number":{event.seq},'
    if event.kind == DELTA:
        return number + event.data[1:]
    if event.kind == STATUS:
        return number + _dump(view.status_event(job_id, record, json.loads(event.data)))[1:]
    return number + _dump(await uses.reader.get(job_id))[1:]


def _frame(number: int, kind: str, data: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
