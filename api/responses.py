"""`/v1/responses`: create, stream, retrieve, cancel, delete, list what went in."""

import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from api.deps import Contract, Uses
from api.jobs import CANCEL_WAIT_S, cursor_of, until_ended
from api.presence import CLIENT_GONE, unless_hung_up
from api.schemas import ERRORS, InputItemList, ResponseDeleted, ResponseView
from api.sse import EventStream
from worker.contract.errors import InvalidRequest, JobError
from worker.contract.responses import view
from worker.contract.responses.body import Includable, ResponseBody
from worker.contract.responses.door import Found

router = APIRouter(prefix="/v1/responses", tags=["responses"], responses=ERRORS)

_FORGET_WAIT_S = 10.0
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

Include = Annotated[list[Includable] | None, Query(alias="include[]")]


@router.post("", response_model=ResponseView, responses=_STREAMED)
async def create(
    body: ResponseBody,
    request: Request,
    uses: Uses,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Make a response: at once with `background`, event by event with `stream`, else at its end.

    A stored one goes on when its client hangs up; one with `store: false` is cancelled then, and
    erased when it was answered.
    """
    submitted = await uses.responses.submit(
        body, idempotency=idempotency_key or "", raw=await request.body()
    )
    found = await uses.responses.at(submitted.job_id)
    if body.stream:
        return _stream(found, -1, uses)
    if body.background and submitted.job is not None:
        return JSONResponse(found.blank, headers=_job_header(found))
    if not body.background:
        ended = await unless_hung_up(request, _ended(found, uses))
        if ended is None:
            await _forget_unstored(found, uses)
            return Response(status_code=CLIENT_GONE)
    response = await uses.responses.get(found.job_id)
    forget = BackgroundTask(_forget_unstored, found, uses)
    return JSONResponse(response, headers=_job_header(found), background=forget)


@router.get("/{response_id}", response_model=ResponseView, responses=_STREAMED)
async def retrieve(  # noqa: PLR0917 - FastAPI passes them by name
    response_id: str,
    uses: Uses,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
    include: Include = None,  # noqa: ARG001 - all of it is there anyway
    include_obfuscation: Annotated[Literal[False] | None, Query()] = None,  # noqa: ARG001 - the same
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Return a response as it is now; with `stream`, its events after `starting_after`, to the end.

    Any stored response can be streamed, however it was made, by any number of readers.
    """
    found = await uses.responses.find(response_id)
    if stream:
        return _stream(found, _cursor(last_event_id, starting_after), uses)
    if starting_after is not None:
        raise InvalidRequest("starting_after needs stream=true", param="starting_after")
    return JSONResponse(await uses.responses.get(found.job_id), headers=_job_header(found))


@router.post("/{response_id}/cancel", response_model=ResponseView)
async def cancel(response_id: str, uses: Uses) -> Response:
    """End a response, in the background or not. `cancelled` once the engine has dropped it."""
    found = await uses.responses.find(response_id)
    if await uses.store.cancel(found.job_id) == "requested":
        await until_ended(found.job_id, CANCEL_WAIT_S, uses)
    return JSONResponse(await uses.responses.get(found.job_id), headers=_job_header(found))


@router.delete("/{response_id}", response_model=ResponseDeleted)
async def delete(response_id: str, uses: Uses) -> Response:
    """Erase a response and all it left; one that runs is cancelled first."""
    found = await uses.responses.find(response_id)
    if await uses.store.cancel(found.job_id) == "requested":
        await until_ended(found.job_id, CANCEL_WAIT_S, uses)
    await uses.store.erase(found.job_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.get("/{response_id}/input_items", response_model=InputItemList)
async def input_items(  # noqa: PLR0917 - FastAPI passes them by name
    response_id: str,
    uses: Uses,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    include: Include = None,  # noqa: ARG001 - all of it is there anyway
) -> Response:
    """List what went into a response, turns of earlier ones included, the newest first."""
    items = await uses.responses.input_items(await uses.responses.find(response_id))
    page = view.page(items, after=after, limit=limit, newest_first=order == "desc")
    if page is None:
        raise InvalidRequest(f"{response_id} has no item {after}", param="after")
    return JSONResponse(page)


def _job_header(found: Found) -> dict[str, str]:
    return {"x-forebay-job-id": found.job_id}


def _cursor(last_event_id: str | None, starting_after: int | None) -> int:
    """Return the number after which a stream goes on; -1, for events count from 0, is all of it."""
    if last_event_id is None and starting_after is None:
        return -1
    return cursor_of(last_event_id, starting_after)


def _stream(found: Found, after: int, uses: Contract) -> EventStream:
    forget = BackgroundTask(_forget_unstored, found, uses)
    return EventStream(_frames(found, after, uses), _job_header(found), background=forget)


async def _frames(found: Found, after: int, uses: Contract) -> AsyncGenerator[bytes, None]:
    told = after
    try:
        async with aclosing(uses.responses.follow(found, after)) as events:
            async for event in events:
                yield _frame(event)
                told = event["sequence_number"]
    except JobError as error:  # the stream has begun: too late for a status
        # Under the last number: a reader who resumes after it misses nothing.
        yield _frame({
            "type": "error", "sequence_number": max(told, 0), "code": error.code,
            "message": error.message, "param": error.param,
        })  # fmt: skip


def _frame(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"id: {event['sequence_number']}\nevent: {event['type']}\ndata: {data}\n\n".encode()


async def _ended(found: Found, uses: Contract) -> bool:
    await until_ended(found.job_id, None, uses)
    return True


async def _forget_unstored(found: Found, uses: Contract) -> None:
    """See that nothing is left of an unstored response: end it if it runs, then erase it.

    Where this fails its retention, which is short, does so.
    """
    if found.blank["store"]:
        return
    with contextlib.suppress(JobError):
        if await uses.store.cancel(found.job_id) == "requested":
            await until_ended(found.job_id, _FORGET_WAIT_S, uses)
        await uses.store.erase(found.job_id)
