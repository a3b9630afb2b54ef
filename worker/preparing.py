"""The work of the media lane: a job's pictures and videos, ready for its model."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from worker.contract.errors import JobError, StoreUnavailable
from worker.contract.job import Hold, JobStatus, Outcome, PreparedMedia, Stage
from worker.contract.store import JobStore, Piece

# Between two words about progress, and before the first one. A picture is ready within a few
# milliseconds, to which each word would add a tenth; the claim and the hand-on are its progress.
TELL_S = 0.1

Prepare = Callable[
    [Hold, Callable[[Stage, int], Awaitable[None]]], Awaitable[tuple[PreparedMedia, ...]]
]
"""Prepares a hold's media; is given what to call on progress: stage, parts done."""


class PrepareAttempt:
    """One attempt. `send(job_id, queue)` publishes the ticket for the model's queue."""

    def __init__(
        self, hold: Hold, *, store: JobStore, prepare: Prepare, send: Callable[[str, str], None]
    ) -> None:
        self._hold = hold
        self._store = store
        self._prepare = prepare
        self._send = send
        self._media: tuple[PreparedMedia, ...] = ()
        self._reached = (Stage.FETCHING, 0)
        self._telling: asyncio.Task[None] | None = None

    async def work(self) -> None:
        """Prepare all parts."""
        timer = asyncio.get_running_loop().call_later(TELL_S, self._begin_to_tell)
        try:
            self._media = await self._prepare(self._hold, self._progress)
        finally:
            timer.cancel()
            if self._telling is not None:
                self._telling.cancel()

    async def _progress(self, stage: Stage, done: int) -> None:
        self._reached = (stage, done)

    def _begin_to_tell(self) -> None:
        self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        """Tell the store how far the work is, whenever it has got ahead, until cancelled."""
        told = (Stage.FETCHING, 0)  # as the claim has it
        while True:
            if told != self._reached:
                told = self._reached
                with contextlib.suppress(StoreUnavailable):  # the hand-on says all that matters
                    await self._store.stage(self._hold, *told)
            await asyncio.sleep(TELL_S)

    def outcome(self, status: JobStatus, error: JobError | None = None) -> Outcome:
        """Return the end of a job that never reached an engine."""
        return Outcome(status=status, error=error.as_dict() if error else None)

    async def unwritten(self) -> Sequence[Piece]:
        """Return nothing: this lane streams nothing."""
        return ()

    async def hand_on(self) -> bool:
        """Put the job into its model's queue."""
        queue = await self._store.media_ready(self._hold, self._media)
        if queue is not None:
            self._send(self._hold.job_id, queue)
        return queue is not None
