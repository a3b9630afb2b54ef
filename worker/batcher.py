"""Which jobs are inside the engine at once. Knows no job record.

Batching is continuous: a job enters as soon as there is room, whoever else is inside. Room is a
number of slots and a budget of tokens (prompt + pictures + answer), first come, first served; an
answer that somebody reads already goes before those that have not begun.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Room:
    """What one job holds: `tokens` are guessed before it enters, and known once it is inside."""

    tokens: int
    is_alone: bool
    admitted: "asyncio.Future[None]"
    admit_others: Callable[[], None]

    def is_now(self, tokens: int) -> None:
        """Say how many tokens the job occupies at most; what it does not need is given back."""
        if tokens != self.tokens:
            self.tokens = tokens
            self.admit_others()


class Batcher:
    """Admits jobs to one engine: at most `slots` at once and `max_batch_tokens` in sum.

    A job that is larger than the whole budget enters when it is the only one.
    """

    def __init__(self, slots: int, max_batch_tokens: int) -> None:
        self._slots = slots
        self._budget = max_batch_tokens
        self._waiting: deque[Room] = deque()
        self._inside: set[Room] = set()

    def __len__(self) -> int:
        return len(self._inside)

    @contextlib.asynccontextmanager
    async def room(
        self, tokens: int, *, alone: bool = False, first: bool = False
    ) -> AsyncIterator[Room]:
        """Wait for room, and hold it while the block runs.

        `first`: before all that wait, for a job that goes on with what it has streamed.
        `alone`: nobody else is inside meanwhile, for a job that is suspected of killing engines.
        """
        entered = asyncio.get_running_loop().create_future()
        entry = Room(tokens, alone, entered, self._admit)
        if first:
            self._waiting.appendleft(entry)
        else:
            self._waiting.append(entry)
        self._admit()
        try:
            await entry.admitted
            yield entry
        finally:
            self._inside.discard(entry)
            with contextlib.suppress(ValueError):
                self._waiting.remove(entry)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            entry = self._waiting.popleft()
            if not entry.admitted.cancelled():
                self._inside.add(entry)
                entry.admitted.set_result(None)

    def _fits(self, entry: Room) -> bool:
        if not self._inside:
            return True
        if entry.is_alone or any(other.is_alone for other in self._inside):
            return False
        used = sum(other.tokens for other in self._inside)
        return len(self._inside) < self._slots and used + entry.tokens <= self._budget
