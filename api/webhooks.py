"""Callbacks: registered endpoints, what was delivered to whom, redelivery and samples.

Paths and objects of endpoints are those that OpenAI's `client.webhooks` knows; deliveries, which it
does not, stand beside.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.deps import Contract, Uses
from api.schemas import ERRORS
from api.webhook_views import DeliveryList, DeliveryView, EndpointList, EndpointTest, EndpointView
from worker.contract.callbacks import MAX_TYPES, MAX_URL_CHARS, EventType, check_url

router = APIRouter(prefix="/v1", tags=["webhooks"], responses=ERRORS)

TEST_WAIT_S = 20.0  # longer than a delivery may take
_LOOK_S = 0.1

Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_CHARS)]
Name = Annotated[str, StringConstraints(max_length=128)]
Types = Annotated[list[EventType], Field(max_length=MAX_TYPES)]
Limit = Annotated[int, Query(ge=1, le=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointBody(_Body):
    """A receiver: where, a name for people, and what it wants (empty: how everything ends)."""

    url: Url
    name: Name = ""
    event_types: Types = Field(default_factory=list)


class ChangeBody(_Body):
    """What is to be different."""

    url: Url | None = None
    name: Name | None = None
    event_types: Types | None = None


class RotateBody(_Body):
    """Whether the old secret goes on signing for a day, beside the new one."""

    keep_old_secret_active_for_24_hours: bool = True


class TestBody(_Body):
    """What the sample is a sample of."""

    event_type: EventType = EventType.JOB_COMPLETED


class UrlTestBody(TestBody):
    """The same, for a URL as a job would name it."""

    url: Url


# --- endpoints ------------------------------------------------------------------------------------


@router.post("/webhook_endpoints", status_code=201, response_model=EndpointView)
async def create(body: EndpointBody, uses: Uses) -> Response:
    """Register a receiver; its `signing_secret` is told here and never again."""
    _check(body.url, uses)
    return JSONResponse(await uses.endpoints.add(body.url, body.name, body.event_types), 201)


@router.get("/webhook_endpoints", response_model=EndpointList)
async def list_endpoints(uses: Uses, after: str | None = None, limit: Limit = 20) -> Response:
    """List receivers, newest first. `after` is the last one's id of the page before."""
    found, has_more = await uses.endpoints.list(after, limit)
    return JSONResponse(_page(found) | {"has_more": has_more})


@router.get("/webhook_endpoints/{endpoint_id}", response_model=EndpointView)
async def retrieve(endpoint_id: str, uses: Uses) -> Response:
    """Return a receiver and how it does."""
    return JSONResponse(await uses.endpoints.get(endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}", response_model=EndpointView)
@router.patch("/webhook_endpoints/{endpoint_id}", response_model=EndpointView)
async def change(endpoint_id: str, body: ChangeBody, uses: Uses) -> Response:
    """Change a receiver; what it is owed already goes to its new URL."""
    if body.url is not None:
        _check(body.url, uses)
    return JSONResponse(
        await uses.endpoints.change(
            endpoint_id, url=body.url, name=body.name, types=body.event_types
        )
    )


@router.delete("/webhook_endpoints/{endpoint_id}")
async def delete(endpoint_id: str, uses: Uses) -> dict[str, Any]:
    """Forget a receiver and what it is owed."""
    await uses.endpoints.delete(endpoint_id)
    return {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret", response_model=EndpointView)
async def rotate(endpoint_id: str, uses: Uses, body: RotateBody | None = None) -> Response:
    """Make a new secret; both sign for a day unless the body says otherwise."""
    overlap = (body or RotateBody()).keep_old_secret_active_for_24_hours
    return JSONResponse(await uses.endpoints.rotate(endpoint_id, overlap=overlap))


@router.post("/webhook_endpoints/{endpoint_id}/enable", response_model=EndpointView)
async def enable(endpoint_id: str, uses: Uses) -> Response:
    """Tell a disabled receiver again; what waited for it is delivered first."""
    return JSONResponse(await uses.endpoints.enable(endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}/test", response_model=EndpointTest)
async def sample(endpoint_id: str, uses: Uses, body: TestBody | None = None) -> Response:
    """Send a sample and wait for the first answer to it, for at most 20 s."""
    made = await _sample(endpoint_id, (body or TestBody()).event_type, uses)
    return JSONResponse(made | {"webhook_endpoint_id": endpoint_id})


@router.get("/webhook_endpoints/{endpoint_id}/deliveries", response_model=DeliveryList)
async def of_endpoint(endpoint_id: str, uses: Uses, limit: Limit = 20) -> Response:
    """List what a receiver was told or is owed, the youngest first."""
    await uses.endpoints.get(endpoint_id)
    return JSONResponse(_page(await uses.debts.deliveries(endpoint_id, limit)))


@router.get("/webhook_event_types")
async def event_types() -> dict[str, Any]:
    """List everything that a receiver can be told of."""
    return {"object": "list", "data": list(EventType)}


# --- deliveries -----------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/webhooks", response_model=DeliveryList)
async def of_job(job_id: str, uses: Uses, limit: Limit = 20) -> Response:
    """List what receivers were told of a job or are owed, the youngest first."""
    await uses.reader.record(job_id)
    return JSONResponse(_page(await uses.debts.deliveries(job_id, limit)))


@router.get("/webhook_deliveries/{event_id}", response_model=DeliveryView)
async def delivery(event_id: str, uses: Uses) -> Response:
    """Return one event, with every try and the beginning of its answer."""
    return JSONResponse(await uses.debts.delivery(event_id))


@router.post(
    "/webhook_deliveries/{event_id}/redeliver", status_code=202, response_model=DeliveryView
)
async def redeliver(event_id: str, uses: Uses) -> Response:
    """Deliver an event again, now and under its id; its schedule begins anew."""
    return JSONResponse(await uses.debts.redeliver(event_id), 202)


@router.post("/webhook_tests", response_model=EndpointTest)
async def sample_url(body: UrlTestBody, uses: Uses) -> Response:
    """Send a sample to a URL, signed as for a job, and wait for the answer, for at most 20 s."""
    _check(body.url, uses)
    made = await _sample(body.url, body.event_type, uses)
    return JSONResponse(made | {"webhook_endpoint_id": None})


@router.get("/webhooks/default/secret")
async def default_secret(uses: Uses) -> dict[str, str]:
    """Return the secret that signs the callbacks of jobs with a `webhook_url`."""
    newest, *_ = await uses.endpoints.default_secrets()
    return {"key": newest}


def _check(url: str, uses: Contract) -> None:
    config = uses.settings
    check_url(url, config.webhook_guard, https_only=config.webhook_https_only, param="url")


def _page(data: list[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": None,
        "last_id": None,
    } | ends


async def _sample(receiver: str, event_type: EventType, uses: Contract) -> dict[str, Any]:
    event_id = await uses.debts.test(receiver, event_type)
    seen = await _until_tried(event_id, uses)
    tried = seen["attempts"][0] if seen["attempts"] else {"status_code": None}
    return {
        "object": "webhook_endpoint.test",
        "event_type": event_type,
        "status_code": tried["status_code"],
        "success": seen["status"] == "delivered",
        "delivery": seen,
    }


async def _until_tried(event_id: str, uses: Contract) -> dict[str, Any]:
    """Return a delivery once it was tried, or as it is after a while."""
    try:
        async with asyncio.timeout(TEST_WAIT_S):
            # A worker does it; nothing here could be waited for.
            while not (seen := await uses.debts.delivery(event_id))["attempts"]:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return await uses.debts.delivery(event_id)
    return seen
