"""Endpoints and deliveries, for the OpenAPI document. They are made by `contract`."""

from typing import Any

from pydantic import BaseModel


class EndpointView(BaseModel):
    """A registered receiver. `signing_secret` is there once made and once rotated."""

    id: str
    object: str
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret: str | None = None
    signing_secret_hint: str
    status: str
    disabled_reason: str | None
    failing_since: float | None
    delivered_at: float | None


class EndpointList(BaseModel):
    """One page of receivers; `last_id` is the cursor of the following page."""

    object: str
    data: list[EndpointView]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeliveryView(BaseModel):
    """One event for one receiver: owed, delivered, given_up or dropped, and every try."""

    id: str
    object: str
    event_type: str
    object_id: str
    webhook_endpoint_id: str | None
    url: str | None
    status: str
    created_at: float
    settled_at: float | None
    next_attempt_at: float | None
    attempts: list[dict[str, Any]]


class DeliveryList(BaseModel):
    """Events, the youngest first."""

    object: str
    data: list[DeliveryView]
    has_more: bool
    first_id: str | None
    last_id: str | None


class EndpointTest(BaseModel):
    """What became of a sample; `status_code` null where there was no answer."""

    object: str
    event_type: str
    status_code: int | None
    success: bool
    webhook_endpoint_id: str | None
    delivery: DeliveryView
