"""Batches as the `openai` client creates, watches, lists and cancels them."""

import hashlib
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from api.deps import Uses
from api.files import as_page
from api.schemas import ERRORS
from worker.contract.batches import NewBatch
from worker.contract.body import Metadata, WholeBody
from worker.contract.errors import InvalidRequest
from worker.contract.files import BATCH
from worker.contract.lines import ENDPOINTS

router = APIRouter(prefix="/v1/batches", tags=["batches"], responses=ERRORS)

_WINDOW = re.compile(r"([1-9]\d{0,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_WINDOW_S = 30 * 86_400


class ResultLife(BaseModel):
    """How long the files with the results are kept, from when they are made."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=30 * 86_400)


class BatchBody(WholeBody):
    """What to run: a file of lines that was uploaded with the purpose `batch`."""

    input_file_id: str = Field(max_length=64)
    endpoint: str = Field(max_length=64)
    completion_window: str = Field(max_length=16, description="such as 24h, 90m or 7d")
    metadata: Metadata | None = None
    output_expires_after: ResultLife | None = None


class BatchErrors(BaseModel):
    """What is wrong with the input, by line."""

    object: str
    data: list[dict[str, Any]]


class BatchView(BaseModel):
    """A batch. Moments are whole seconds since the epoch, null until they come."""

    id: str
    object: str
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: dict[str, int]
    usage: dict[str, Any]
    metadata: dict[str, str]


class BatchList(BaseModel):
    """One page of batches; `last_id` is the cursor of the following page."""

    object: str
    data: list[BatchView]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("", response_model=BatchView)
async def create(
    body: BatchBody,
    request: Request,
    uses: Uses,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Begin a batch. Its lines are checked first; a bad one fails it, with the line's number."""
    if body.endpoint not in ENDPOINTS:
        known = ", ".join(ENDPOINTS)
        raise InvalidRequest(f"{body.endpoint!r} is none of {known}", param="endpoint")
    window_s = _window_s(body.completion_window)
    file = await uses.files.get(body.input_file_id)
    if file.purpose != BATCH:
        raise InvalidRequest(
            f"file {file.id} has purpose {file.purpose}: upload it with purpose {BATCH}",
            param="input_file_id",
        )
    life_s = body.output_expires_after.seconds if body.output_expires_after else None
    new = NewBatch(
        body.endpoint, file.id, body.completion_window, window_s, body.metadata or {}, life_s
    )
    key = idempotency_key or ""
    body_hash = hashlib.sha256(await request.body()).hexdigest() if key else ""
    batch_id = await uses.batches.create(new, idempotency=key, body_hash=body_hash)
    return JSONResponse(await uses.batches.get(batch_id))


def _window_s(text: str) -> int:
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_WINDOW_S:
        raise InvalidRequest(
            f"{text!r} is no window: send a number with s, m, h or d, at most 30d, such as 24h",
            param="completion_window",
        )
    return seconds


@router.get("", response_model=BatchList)
async def list_batches(
    uses: Uses,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """List batches, newest first. `after` is the `last_id` of the page before."""
    batches, has_more = await uses.batches.list_batches(after=after, limit=limit)
    return JSONResponse(as_page(batches, has_more=has_more))


@router.get("/{batch_id}", response_model=BatchView)
async def retrieve(batch_id: str, uses: Uses) -> Response:
    """Return a batch as it is now; the counts are live."""
    return JSONResponse(await uses.batches.get(batch_id))


@router.post("/{batch_id}/cancel", response_model=BatchView)
async def cancel(batch_id: str, uses: Uses) -> Response:
    """Ask for the end of a batch. What was answered stays; the other lines say why not."""
    await uses.batches.cancel(batch_id)
    return JSONResponse(await uses.batches.get(batch_id))
