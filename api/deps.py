"""What routes share: the process's stores, and who may call."""

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from api.errors import Unauthorized
from worker.contract.broker import Tickets
from worker.contract.errors import UnknownModel
from worker.contract.live import LiveEvents
from worker.contract.metrics import Totals
from worker.contract.reader import JobReader
from worker.contract.registry import Registry
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings
from worker.contract.store import JobStore

_CARDS_S = 2.0


@dataclass(slots=True)
class Contract:
    """Everything behind the API, made once per process."""

    settings: Settings
    store: JobStore
    reader: JobReader
    registry: Registry
    live: LiveEvents
    objects: ObjectStore
    tickets: Tickets
    totals: Callable[[], Awaitable[Totals]]
    _cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    _cards_at: float = float("-inf")

    async def cards(self) -> dict[str, dict[str, Any]]:
        """Return the models' cards by served name, at most 2 s old; configured ones first."""
        if time.monotonic() - self._cards_at > _CARDS_S:
            announced = await self.registry.models()
            configured: dict[str, dict[str, Any]] = {n: {} for n in self.settings.model_names}
            self._cards = configured | announced
            self._cards_at = time.monotonic()
        return self._cards

    async def model(self, name: str | None) -> tuple[str, dict[str, Any]]:
        """Return the served name and card of a model, of the default one for None."""
        cards = await self.cards()
        if name is None:
            if not cards:
                raise UnknownModel("no model is served yet", param="model")
            name = next(iter(cards))
        if name not in cards:
            known = ", ".join(cards) or "none"
            raise UnknownModel(f"no model {name!r}; served here: {known}", param="model")
        return name, cards[name]


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
