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
    resize: "Callable[[Room, int], None]"

    def is_now(self, tokens: int) -> None:
        """Say how many tokens the job occupies at most; what it does not need is given back."""
        if tokens != self.tokens:
            self.resize(self, tokens)


class Batcher:
    """Admits jobs to one engine: at most `slots` at once and `max_batch_tokens` in sum.

    A job that is larger than the whole budget enters when it is the only one.
    """

    def __init__(self, slots: int, max_batch_tokens: int) -> None:
        self._slots = slots
        self._budget = max_batch_tokens
        self._waiting: deque[Room] = deque()
        self._inside: set[Room] = set()
        self._used = 0  # tokens of all who are inside: to count anew for every job takes too long

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
        entry = Room(tokens, alone, entered, self._resize)
        if first:
            self._waiting.appendleft(entry)
        else:
            self._waiting.append(entry)
        self._admit()
        try:
            await entry.admitted
            yield entry
        finally:
            self._leave(entry)

    def _resize(self, entry: Room, tokens: int) -> None:
        if entry in self._inside:
            self._used += tokens - entry.tokens
        entry.tokens = tokens
        self._admit()

    def _leave(self, entry: Room) -> None:
        if entry in self._inside:
            self._inside.remove(entry)
            self._used -= entry.tokens
        else:
            with contextlib.suppress(ValueError):
                self._waiting.remove(entry)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            entry = self._waiting.popleft()
            if not entry.admitted.cancelled():
                self._inside.add(entry)
                self._used += entry.tokens
                entry.admitted.set_result(None)

    def _fits(self, entry: Room) -> bool:
        if not self._inside:
            return True
        if len(self._inside) >= self._slots or self._used + entry.tokens > self._budget:
            return False
        return (
            not entry.is_alone and not next(iter(self._inside)).is_alone
        )  # who then is the only one
