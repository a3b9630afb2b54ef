"""When answers are looked at: all that have something new, together, at a bearable pace.

LMDeploy tells of every token of every answer. With hundreds inside, hearing each of them costs more
than the GPU takes to make it: the loop falls behind, seats that are free stay empty, and the GPU
waits. A bell that rings is therefore only written down, and at the next beat all who rang are heard
at once: each finds all tokens that came since.
"""

import asyncio
from collections import deque
from collections.abc import Callable

UNPACED = 8
"""Up to so many answers inside, every bell is heard at once."""
TOKENS_A_PIECE = 2.8
"""What an answer should gain from beat to beat while more are inside: 128 tokens in 45 pieces."""
SHORTEST_S, LONGEST_S = 0.01, 0.06
"""From beat to beat, however fast or slow the tokens come."""

Bell = Callable[[], None]
"""Lets one answer's reader go on."""


class Pulse:
    """Hears bells on the loop on which it was made: calls each once for every time it was rung.

    `inside` says how many answers there are. A beat and all that it sets off are followed by a rest
    half as long: the engine, on the same loop, has a third of it whatever the load is.
    """

    def __init__(self, inside: Callable[[], int]) -> None:
        self._inside = inside
        self._loop = asyncio.get_running_loop()
        self._rung: deque[Bell] = deque()
        self._is_called = False
        self._began_at = self._next_at = 0.0
        self._looks = self._tokens = 0

    def ring(self, bell: Bell) -> None:
        """Have a bell heard with the next beat. From any thread."""
        self._rung.append(bell)
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._due)

    def looked(self, tokens: int) -> None:
        """Take note of what an answer's reader found."""
        self._looks += 1
        self._tokens += tokens

    def _due(self) -> None:
        if self._inside() <= UNPACED or self._loop.time() >= self._next_at:
            self._beat()
        else:
            self._loop.call_at(self._next_at, self._beat)

    def _beat(self) -> None:
        self._is_called = False  # before it is emptied: whoever rings from now on calls again
        since_s, self._began_at = self._loop.time() - self._began_at, self._loop.time()
        for _ in range(len(self._rung)):
            self._rung.popleft()()
        self._loop.call_soon(self._rest, since_s)  # after all who were woken

    def _rest(self, since_s: float) -> None:
        """Choose the next beat by how many tokens came in the `since_s` before this one."""
        now = self._loop.time()
        wanted_s = since_s * TOKENS_A_PIECE * self._looks / max(self._tokens, 1)
        self._looks = self._tokens = 0
        after_s = min(max(wanted_s, SHORTEST_S), LONGEST_S)
        self._next_at = max(self._began_at + after_s, now + (now - self._began_at) / 2)
