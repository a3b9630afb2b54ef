"""Which models are served: the cards that workers announce, by served name."""

import time
from collections.abc import Iterable
from typing import Any

from worker.contract.errors import UnknownModel
from worker.contract.registry import Registry

_CARDS_S = 2.0
_ALIKE = str.maketrans("_.", "--")


class Models:
    """The served models as one process knows them, at most 2 s old."""

    def __init__(self, registry: Registry, configured: Iterable[str]) -> None:
        """`configured` names are served even before a worker has announced them."""
        self._registry = registry
        since = {"created": int(time.time())}
        self._configured: dict[str, dict[str, Any]] = dict.fromkeys(configured, since)
        self._cards: dict[str, dict[str, Any]] = {}
        self._cards_at = float("-inf")

    async def cards(self) -> dict[str, dict[str, Any]]:
        """Return the models' cards by served name, configured ones first.

        A card has `created`, the second in which it was first announced, and nothing else while no
        worker has announced it.
        """
        if time.monotonic() - self._cards_at > _CARDS_S:
            self._cards = self._configured | await self._registry.models()
            self._cards_at = time.monotonic()
        return self._cards

    async def resolve(self, name: str | None) -> tuple[str, dict[str, Any]]:
        """Return the served name and card of a model, of the default one for None.

        A name is known by heart: case, and which of `-`, `_` and `.` stand in it, do not matter
        where no other model has exactly that name. Raises UnknownModel, with what is served.
        """
        cards = await self.cards()
        if name is None and not cards:
            raise UnknownModel("no model is served yet", param="model")
        found = next(iter(cards)) if name is None else _named(name, cards)
        if found is None:
            known = ", ".join(cards) or "none"
            raise UnknownModel(f"no model {name!r}; served here: {known}", param="model")
        return found, cards[found]


def _named(name: str, served: Iterable[str]) -> str | None:
    if name in served:
        return name
    return next((one for one in served if _folded(one) == _folded(name)), None)


def _folded(name: str) -> str:
    return name.lower().translate(_ALIKE)


def aliases(name: str) -> list[str]:
    """Return the usual other spellings of a served name; `resolve` knows more of them."""
    folded = _folded(name)
    return sorted({folded, folded.replace("-", "_")} - {name})
