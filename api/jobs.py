"""Submit, poll, list, cancel, retry, delete."""

import asyncio
import re
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from api.deps import Contract, Uses
from api.schemas import ERRORS, JobList, JobView
from worker.contract import forms
from worker.contract.body import JobBody
from worker.contract.errors import InvalidRequest
from worker.contract.events import STATUS
from worker.contract.job import JobStatus
from worker.contract.store import Submitted
from worker.contract.view import links

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=ERRORS)

MAX_WAIT_S = 60
CANCEL_WAIT_S = 5.0  # an engine drops a job within one; what a loaded worker may need
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})(?:$|[,;\s])")

Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for a change")]


@router.post("", status_code=202, response_model=JobView, responses={200: {"model": JobView}})
async def submit(
    body: JobBody,
    request: Request,
    uses: Uses,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    prefer: Annotated[str | None, Header()] = None,
) -> Response:
    """Hand a job in: 202 once it is durable, 200 when it ended within `Prefer: wait=n`."""
    submitted = await uses.intake.submit(
        await uses.intake.read(body),
        forms.to_spec(body),
        idempotency=idempotency_key or "",
        body=await request.body(),
    )
    return await _answer(submitted, prefer, uses)


async def _answer(submitted: Submitted, prefer: str | None, uses: Contract) -> JSONResponse:
    headers = {"Location": links(submitted.job_id)["self"]}
    job, wait = submitted.job, _PREFER_WAIT.search(prefer or "")
    if wait is not None:
        wait_s = min(int(wait[1]), MAX_WAIT_S)
        await until_ended(submitted.job_id, wait_s, uses)
        headers["Preference-Applied"] = f"wait={wait_s}"
    if wait is not None or job is None:
        job = await uses.reader.get(submitted.job_id)
    return JSONResponse(job, 200 if JobStatus(job["status"]).is_terminal else 202, headers)


@router.get("", response_model=JobList)
async def list_jobs(  # noqa: PLR0917 - FastAPI passes them by name
    uses: Uses,
    status: JobStatus | None = None,
    model: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    dead: bool = False,
) -> Response:
    """List jobs, newest first. `after` is the `next` of the page before.

    `dead`: only those that took too many workers down, with their attempts; retry replays one.
    """
    jobs, cursor = await uses.reader.list_jobs(
        status=status, model=model, after=after, limit=limit, dead=dead
    )
    return JSONResponse(
        {"object": "list", "data": jobs, "has_more": cursor is not None, "next": cursor}
    )


@router.get("/{job_id}", response_model=JobView)
async def poll(job_id: str, uses: Uses, wait: Wait = 0) -> Response:
    """Return the job now, or as soon as its status changes."""
    if wait:
        await _until_changed(job_id, wait, uses)
    return JSONResponse(await uses.reader.get(job_id))


@router.post("/{job_id}/cancel", response_model=JobView)
async def cancel(job_id: str, uses: Uses) -> Response:
    """Ask for the end of a job. It is `cancelled` once the engine has dropped it; twice is fine."""
    if await uses.store.cancel(job_id) == "requested":
        await until_ended(job_id, CANCEL_WAIT_S, uses)
    return JSONResponse(await uses.reader.get(job_id))


@router.post("/{job_id}/retry", status_code=202, response_model=JobView)
async def retry(job_id: str, uses: Uses) -> Response:
    """Queue a job that failed, expired or was cancelled again, under the same id."""
    submitted = await uses.store.retry(job_id)
    uses.intake.send(submitted)
    return JSONResponse(await uses.reader.get(job_id), 202)


@router.delete("/{job_id}", status_code=204)
async def delete(job_id: str, uses: Uses) -> Response:
    """Erase a job and all it left; one that runs is cancelled first."""
    if await uses.store.cancel(job_id) == "requested":
        await until_ended(job_id, CANCEL_WAIT_S, uses)
    await uses.store.erase(job_id)
    return Response(status_code=204)


async def until_ended(job_id: str, wait_s: float | None, uses: Contract) -> None:
    """Return once a job is over, or after `wait_s` (None: only then)."""
    try:
        async with asyncio.timeout(wait_s), aclosing(uses.live.follow(job_id)) as events:
            async for _ in events:
                pass  # the last event ends it
    except TimeoutError:
        return


async def _until_changed(job_id: str, wait_s: float, uses: Contract) -> None:
    record = await uses.reader.record(job_id)
    if JobStatus(record["status"]).is_terminal:
        return
    same = f'"status":"{record["status"]}"'
    try:
        cursor = int(record["seq"])
        async with asyncio.timeout(wait_s), aclosing(uses.live.follow(job_id, cursor)) as events:
            async for event in events:
                if event.is_last or (event.kind == STATUS and same not in event.data):
                    return
    except TimeoutError:
        return


def cursor_of(last_event_id: str | None, starting_after: int | None) -> int:
    """Return the event number after which a stream goes on. The header wins: browsers resend it."""
    if not last_event_id:
        return starting_after or 0
    if not last_event_id.isdigit():
        raise InvalidRequest("Last-Event-ID must be an event's number", param="Last-Event-ID")
    return int(last_event_id)
