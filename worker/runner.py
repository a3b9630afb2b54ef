"""One job in one lane, from its ticket to its end. No Redis key, no HTTP, no CUDA.

    claim → hold the lease → work → record how it ended

What the work is differs by lane (`chat`, `preparing`); what can happen to it does not: it succeeds,
fails with a code, is cancelled by the caller, is lost to somebody else, or goes back to its queue.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from worker.contract.errors import (
    EngineDied,
    Internal,
    JobError,
    StoreUnavailable,
)
from worker.contract.job import Hold, JobStatus, Lane, Outcome
from worker.contract.log import event
from worker.contract.store import JobStore, Piece
from worker.holds import Held, Holds, Stop

_log = logging.getLogger(__name__)
_RETRY_S = 0.3
_BACK_OFF_S = 1.0  # before a job goes back because a store did not answer

T = TypeVar("T")


class Verdict(StrEnum):
    """What became of a ticket: the task's result, which Flower shows."""

    NOT_OURS = "not_ours"  # somebody has the job, or it is over
    GIVEN_BACK = "given_back"  # it waits in its queue again
    HANDED_ON = "handed_on"  # its media are ready; it waits for an engine
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Attempt(Protocol):
    """The work on one hold."""

    async def work(self) -> None:
        """Do it. Raises JobError where it cannot be done."""
        ...

    def outcome(self, status: JobStatus, error: JobError | None = None) -> Outcome:
        """Return how it ended, with all that is there so far."""
        ...

    async def unwritten(self) -> Sequence[Piece]:
        """Stop streaming and return what is not yet written."""
        ...

    async def hand_on(self) -> bool | None:
        """Record success where that is not the job's end; None: it is."""
        ...


@dataclass(frozen=True, slots=True)
class _Ended:
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _GoesBack:
    crash: JobError | None = None  # None: in good order


_End = _Ended | _GoesBack | None  # None: not ours any more, write nothing


class Runner:
    """Runs the jobs of one lane.

    `begin` makes the work on a hold. `give_up_s` bounds how long a write is tried again while the
    store does not answer: a whole lease, after which the job is somebody else's. `why_cancelled`
    says what a cancellation from outside means: None gives the job back (drain, shutdown). `send`
    publishes the ticket of a job that went back.
    """

    def __init__(
        self,
        store: JobStore,
        holds: Holds,
        begin: Callable[[Hold], Attempt],
        *,
        lane: Lane,
        owner: str,
        give_up_s: float,
        why_cancelled: Callable[[], Stop | None],
        send: Callable[[Hold], None],
    ) -> None:
        self._store = store
        self._holds = holds
        self._begin = begin
        self._lane = lane
        self._owner = owner
        self._give_up_s = give_up_s
        self._why_cancelled = why_cancelled
        self._send = send

    async def run(self, job_id: str) -> Verdict:
        """Do what a ticket asks for. Being cancelled from outside gives the job back."""
        hold = await self._claim(job_id)
        if hold is None:
            return Verdict.NOT_OURS
        with self._holds.keep(hold) as held:
            attempt = self._begin(hold)
            end = await self._watch(held, attempt)
            held.is_ending = True
            return await asyncio.shield(self._record(hold, attempt, end))

    async def _claim(self, job_id: str) -> Hold | None:
        nonce = secrets.token_hex(8)
        hold = await self._persist(
            lambda: self._store.claim(job_id, self._lane, self._owner, nonce)
        )
        if hold is not None:
            event(_log, "job.claimed", job_id=job_id, lane=str(self._lane), attempt=hold.attempt)
        return hold

    async def _watch(self, held: Held, attempt: Attempt) -> _End:
        """Turn every way in which work can end into one value."""
        try:
            await attempt.work()
        except asyncio.CancelledError:
            held.task.uncancel()
            return _after_cancel(held.stop or self._why_cancelled(), attempt)
        except EngineDied as error:
            return _GoesBack(error if error.was_inside else None)
        except StoreUnavailable:
            await asyncio.sleep(_BACK_OFF_S)
            return _GoesBack()
        except JobError as error:
            return _Ended(attempt.outcome(JobStatus.FAILED, error))
        except Exception:  # noqa: BLE001 - the one place for faults of ours: logged here, told as `internal`
            _log.exception("job.internal_error", extra={"job_id": held.hold.job_id})
            fault = Internal("something went wrong on our side; the worker's log has the details")
            return _Ended(attempt.outcome(JobStatus.FAILED, fault))
        return _Ended(attempt.outcome(JobStatus.COMPLETED))

    async def _record(self, hold: Hold, attempt: Attempt, end: _End) -> Verdict:
        unwritten = await attempt.unwritten()
        match end:
            case None:
                verdict = Verdict.NOT_OURS
            case _GoesBack(crash):
                verdict = await self._give_back(hold, unwritten, crash)
            case _Ended(outcome):
                verdict = await self._finish(hold, attempt, outcome, unwritten)
        event(_log, f"job.{verdict}", job_id=hold.job_id, attempt=hold.attempt)
        return verdict

    async def _finish(
        self, hold: Hold, attempt: Attempt, outcome: Outcome, unwritten: Sequence[Piece]
    ) -> Verdict:
        if outcome.status is JobStatus.COMPLETED:
            is_handed_on = await self._persist(attempt.hand_on)
            if is_handed_on is not None:
                return Verdict.HANDED_ON if is_handed_on else Verdict.NOT_OURS
        is_ours = await self._persist(lambda: self._store.finish(hold, outcome, unwritten))
        return Verdict(str(outcome.status)) if is_ours else Verdict.NOT_OURS

    async def _give_back(
        self, hold: Hold, unwritten: Sequence[Piece], crash: JobError | None
    ) -> Verdict:
        if unwritten:  # what the next attempt goes on from
            await self._persist(lambda: self._store.append(unwritten))
        if await self._persist(lambda: self._store.release(hold, crash)):
            self._send(hold)
        return Verdict.GIVEN_BACK

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat a write that may be repeated until the store answers, or the time is over."""
        deadline = time.monotonic() + self._give_up_s
        while True:
            try:
                return await write()
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                event(_log, "store.waiting", level=logging.WARNING, reason=error.message)
                await asyncio.sleep(_RETRY_S)


def _after_cancel(why: Stop | None, attempt: Attempt) -> _End:
    match why:
        case Stop.CANCELLED:
            return _Ended(attempt.outcome(JobStatus.CANCELLED))
        case Stop.LOST:
            return None
        case None:
            return _GoesBack()
