"""The jobs that this process holds: leases renewed in one call, and orders to stop carried out.

A hold ends for one of four reasons: its job ended, the caller wants it cancelled, Redis says that
somebody else has it, or this process could not prove for a whole lease that it still has it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.contract.errors import StoreUnavailable
from worker.contract.job import Hold
from worker.contract.live import Orders
from worker.contract.log import event
from worker.contract.store import JobStore

_log = logging.getLogger(__name__)
_RENEWALS_PER_LEASE = 4


class Stop(StrEnum):
    """Why a job's work was interrupted from within this process."""

    CANCELLED = "cancelled"  # the caller's wish: end it, and say so
    LOST = "lost"  # not ours any more: write nothing


@dataclass(slots=True, eq=False)
class Held:
    """One hold and the asyncio task that works on it."""

    hold: Hold
    task: "asyncio.Task[Any]"
    stop: Stop | None = None
    is_ending: bool = False  # only the record is still to be written; the fence guards that

    def interrupt(self, why: Stop) -> None:
        """Cancel the task once; a hold found lost later makes the reason LOST."""
        if self.is_ending:
            return
        if self.stop is None:
            self.task.cancel(str(why))
        if self.stop is None or why is Stop.LOST:
            self.stop = why


class Holds:
    """All holds of a process. `run` must run as long as there are any."""

    def __init__(self, store: JobStore, orders: Orders, lease_s: float) -> None:
        self._store = store
        self._orders = orders
        self._lease_s = lease_s
        self._held: dict[str, Held] = {}
        self._proven_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._held)

    @contextlib.contextmanager
    def keep(self, hold: Hold) -> Iterator[Held]:
        """Renew this hold's lease while the block runs in the current task."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines run in tasks
        held = self._held[hold.job_id] = Held(hold, task)
        try:
            yield held
        finally:
            # A job that was lost and claimed again here has a younger hold under the same id.
            if self._held.get(hold.job_id) is held:
                del self._held[hold.job_id]

    def lose(self, job_ids: list[str]) -> None:
        """Stop work on jobs that Redis says are not ours."""
        self._interrupt(job_ids, Stop.LOST)

    async def run(self) -> None:
        """Renew leases and listen for orders, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew_forever())
            group.create_task(self._obey())

    async def _obey(self) -> None:
        async for job_id in self._orders.cancelled_ids():
            self._interrupt([job_id], Stop.CANCELLED)

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS_PER_LEASE)
            try:
                await self._renew()
            except StoreUnavailable as error:
                self._doubt(error)

    async def _renew(self) -> None:
        if self._held:
            pairs = [(held.hold.job_id, held.hold.fence) for held in self._held.values()]
            lost, cancel = await self._store.renew(pairs)
            self.lose([job_id for job_id in lost if (job_id, self._fence(job_id)) in pairs])
            self._interrupt(cancel, Stop.CANCELLED)
        self._proven_at = time.monotonic()

    def _doubt(self, error: StoreUnavailable) -> None:
        """Drop everything once no renewal has come through for a whole lease."""
        silent_s = time.monotonic() - self._proven_at
        event(
            _log,
            "lease.unrenewed",
            level=logging.WARNING,
            silent_s=round(silent_s, 1),
            reason=error.message,
        )
        if silent_s > self._lease_s:
            self.lose(list(self._held))

    def _fence(self, job_id: str) -> str | None:
        held = self._held.get(job_id)
        return held.hold.fence if held else None

    def _interrupt(self, job_ids: list[str], why: Stop) -> None:
        for job_id in job_ids:
            held = self._held.get(job_id)
            if held is not None and not held.is_ending:  # its own end may look like a loss
                event(_log, "job.interrupted", job_id=job_id, reason=str(why))
                held.interrupt(why)
