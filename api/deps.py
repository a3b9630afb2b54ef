"""What routes share: the process's stores, and who may call."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.errors import Unauthorized
from worker.contract.batches import Batches
from worker.contract.broker import Tickets
from worker.contract.debts import Debts
from worker.contract.endpoints import Endpoints
from worker.contract.files import Files
from worker.contract.intake import Intake
from worker.contract.live import LiveEvents
from worker.contract.metrics import Totals
from worker.contract.models import Models
from worker.contract.reader import JobReader
from worker.contract.registry import Registry
from worker.contract.responses.door import Responses
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings
from worker.contract.store import JobStore


@dataclass(slots=True)
class Contract:
    """Everything behind the API, made once per process."""

    settings: Settings
    store: JobStore
    reader: JobReader
    registry: Registry
    live: LiveEvents
    objects: ObjectStore
    models: Models
    files: Files
    batches: Batches
    intake: Intake
    tickets: Tickets
    debts: Debts
    endpoints: Endpoints
    responses: Responses
    totals: Callable[[], Awaitable[Totals]]


# Both are `async` although they wait for nothing: FastAPI sends plain functions to a thread.
async def contract(request: Request) -> Contract:
    """Return the process's stores."""
    made: Contract = request.app.state.contract
    return made


async def authorized(request: Request) -> None:
    """Let a call pass if no keys are configured or its bearer key is one of them."""
    keys = request.app.state.settings.keys
    if not keys:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not any(hmac.compare_digest(given, key.encode()) for key in keys):
        raise Unauthorized("send a valid key as 'Authorization: Bearer <key>'")


Uses = Annotated[Contract, Depends(contract)]
