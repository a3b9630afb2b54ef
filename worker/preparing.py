"""The work of the media lane: a job's pictures and videos, ready for its model."""

from collections.abc import Awaitable, Callable, Sequence

from worker.contract.errors import JobError
from worker.contract.job import Hold, JobStatus, Outcome, PreparedMedia, Stage
from worker.contract.store import JobStore, Piece

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

    async def work(self) -> None:
        """Prepare all parts."""
        self._media = await self._prepare(self._hold, self._progress)

    async def _progress(self, stage: Stage, done: int) -> None:
        await self._store.stage(self._hold, stage, done)

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
