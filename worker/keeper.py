"""Keeps one child running: starts it again when it ends, until it is told to stop or it is no use.

Knows nothing of what the child does, only how it ended.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from worker.children import KILL_WAIT_S, Child, Command
from worker.contract.log import event

EXIT_RESTART = 75  # the engine died; start me again (EX_TEMPFAIL)
EXIT_CONFIG = 78  # a setting or the model is wrong; starting again is no use (EX_CONFIG)
EXIT_USAGE = 2  # so is the command line
EXIT_GAVE_UP = 69  # it cannot go on here, others like it may; or its supervisor gave up all of them

FIRST_PAUSE_S = 1.0  # from the second start to the third; the second comes at once
MAX_PAUSE_S = 60.0
LONG_LIFE_S = 60.0  # who lived so long was well: pauses and counts begin anew
MAX_ENGINE_DEATHS = 3
ENGINE_DEATHS_S = 600.0
MAX_FAILED_STARTS = 6  # about 15 s of trying, then whoever started us should know

_log = logging.getLogger(__name__)


class GaveUpError(Exception):
    """A child is not started again. `status` is its last exit status; the message says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class RestartPolicy:
    """When to start again, and when not: starts are at least 0, 1, 2 … 60 s apart.

    What it lived counts: who worked for a while and was killed is not made to wait as well.
    """

    _pause_s: float = 0.0
    _failed_starts: int = 0
    _engine_deaths: deque[float] = field(default_factory=deque)

    def after(self, status: int, lived_s: float, words: str, now_s: float) -> float:
        """Return the pause in seconds after a child ended.

        Args:
            status: exit status, negative for a signal.
            lived_s: how long it ran.
            words: its last line.
            now_s: monotonic time.

        Raises:
            GaveUpError: (1) it said that starting it again is no use; (2) its engine died three
                times in ten minutes; (3) it failed six times in a row, never running for a minute.
                Being killed counts for none of them.
        """
        if lived_s >= LONG_LIFE_S:
            self._pause_s, self._failed_starts = 0.0, 0
        if status in {EXIT_CONFIG, EXIT_USAGE, EXIT_GAVE_UP}:
            raise GaveUpError(words or f"it ended with status {status}", status)
        if status == EXIT_RESTART:
            self._count_engine_death(words, now_s)
        elif status > 0:
            self._count_failed_start(status, words)
        pause_s = self._pause_s
        self._pause_s = min(max(pause_s * 2, FIRST_PAUSE_S), MAX_PAUSE_S)
        return max(0.0, pause_s - lived_s)

    def _count_engine_death(self, words: str, now_s: float) -> None:
        self._engine_deaths.append(now_s)
        while now_s - self._engine_deaths[0] > ENGINE_DEATHS_S:
            self._engine_deaths.popleft()
        if len(self._engine_deaths) >= MAX_ENGINE_DEATHS:
            raise GaveUpError(
                f"the engine died {MAX_ENGINE_DEATHS} times in ten minutes; the last "
                f"word was: {words or 'none'}",
                EXIT_RESTART,
            )

    def _count_failed_start(self, status: int, words: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise GaveUpError(
                f"it failed {MAX_FAILED_STARTS} times in a row; the last time it "
                f"said: {words or 'nothing'}",
                status,
            )


async def _nothing_to_do() -> None:
    return


class Keeper:
    """One child and its successors.

    `make` gives the command of every incarnation; `on_end` is awaited after each end, before the
    next start, and must have a bound.
    """

    def __init__(
        self, make: Callable[[], Command], *, on_end: Callable[[], Awaitable[None]] = _nothing_to_do
    ) -> None:
        self._make = make
        self._on_end = on_end
        self._policy = RestartPolicy()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._child: Child | None = None

    @property
    def is_stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    def start(self) -> Child:
        """Start the first child and return it. Raises OSError where no process can be made."""
        child = self._spawn()
        self._task = asyncio.create_task(self._keep(child))
        return child

    async def ended(self) -> None:
        """Return once it was stopped. Raises GaveUpError when starting again is no use."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self, grace_s: float) -> None:
        """Stop for good: SIGTERM, at most `grace_s` seconds, SIGKILL. Fine if it never started."""
        self._stopping.set()
        if self._task is None:
            return
        self.send(signal.SIGTERM)
        await asyncio.wait({self._task}, timeout=grace_s)
        self.send(signal.SIGKILL)
        await asyncio.wait({self._task}, timeout=KILL_WAIT_S)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the child, if there is one now."""
        if self._child is not None:
            self._child.send(signum)

    def _spawn(self) -> Child:
        child = self._child = Child(self._make())
        self._began_s = time.monotonic()
        event(_log, "child.started", child=child.command.name, pid=child.pid)
        return child

    async def _keep(self, child: Child) -> None:
        while True:
            pause_s = await self._one_life(child)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            if self._stopping.is_set():
                return
            child = self._spawn()

    async def _one_life(self, child: Child) -> float:
        status = await asyncio.shield(asyncio.wrap_future(child.ended))
        now_s = time.monotonic()
        lived_s = now_s - self._began_s
        event(
            _log,
            "child.ended",
            child=child.command.name,
            pid=child.pid,
            status=status,
            lived_s=round(lived_s, 1),
        )
        await self._on_end()
        if self._stopping.is_set():
            return 0.0
        return self._policy.after(status, lived_s, child.last_words(), now_s)
