"""Which models are served: the cards that workers announce, by served name."""

import time
from collections.abc import Iterable
from typing import Any

from worker.contract.errors import UnknownModel
from worker.contract.registry import Registry

_CARDS_S = 2.0


class Models:
    """The served models as one process knows them, at most 2 s old."""

    def __init__(self, registry: Registry, configured: Iterable[str]) -> None:
        """`configured` names are served even before a worker has announced them."""
        self._registry = registry
        self._configured: dict[str, dict[str, Any]] = {name: {} for name in configured}
        self._cards: dict[str, dict[str, Any]] = {}
        self._cards_at = float("-inf")

    async def cards(self) -> dict[str, dict[str, Any]]:
        """Return the models' cards by served name, configured ones first; empty until announced."""
        if time.monotonic() - self._cards_at > _CARDS_S:
            self._cards = self._configured | await self._registry.models()
            self._cards_at = time.monotonic()
        return self._cards

    async def resolve(self, name: str | None) -> tuple[str, dict[str, Any]]:
        """Return the served name and card of a model, of the default one for None.

        Raises UnknownModel, with the names that are served.
        """
        cards = await self.cards()
        if name is None:
            if not cards:
                raise UnknownModel("no model is served yet", param="model")
            name = next(iter(cards))
        if name not in cards:
            known = ", ".join(cards) or "none"
            raise UnknownModel(f"no model {name!r}; served here: {known}", param="model")
        return name, cards[name]
