"""Which deaths of an engine are the engine's own, and when they are too many."""

from collections.abc import Set as AbstractSet

MAX_DEATHS, WITHIN_S = 3, 600.0


class Deaths:
    """The deaths of one engine within ten minutes for which no job is known to be to blame.

    A job that was alone inside is: for that death, and for the earlier ones that it was there at.
    """

    def __init__(self) -> None:
        self._unexplained: list[tuple[float, frozenset[str]]] = []

    def are_too_many(self, inside: AbstractSet[str], now_s: float) -> bool:
        """Add a death at the monotonic time `now_s`, with the jobs that were inside."""
        recent = [death for death in self._unexplained if now_s - death[0] <= WITHIN_S]
        if len(inside) == 1:
            self._unexplained = [death for death in recent if not death[1] & inside]
        else:
            self._unexplained = [*recent, (now_s, frozenset(inside))]
        return len(self._unexplained) >= MAX_DEATHS
