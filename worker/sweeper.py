"""Does what is due: lost leases and tickets, late and old jobs, callbacks. One is active at a time.

Runs in every CPU process; a lock in Redis chooses the active one. Everything it does is safe to do
twice.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from worker.contract.debts import Debts
from worker.contract.errors import StoreUnavailable
from worker.contract.log import event
from worker.contract.registry import Notes
from worker.contract.store import JobStore, Swept

_log = logging.getLogger(__name__)
_PERIOD_S = 1.0
_LOCK_S = 5.0
_STALLED_S = 5.0  # a job that waits so long although the broker's queue is empty has no ticket


class Sweeper:
    """Sweeps once a second while it has the lock.

    `send(job_id, queue)` publishes a ticket before all that wait; `depth(queue)` counts the
    broker's tickets (it blocks: called in a thread). `wake(lane, overdue_s)` sees to a lane of
    callbacks that nobody looks after.
    """

    def __init__(
        self,
        store: JobStore,
        notes: Notes,
        debts: Debts,
        *,
        owner: str,
        lease_s: float,
        send: Callable[[str, str], None],
        depth: Callable[[str], int],
        wake: Callable[[str, float], None],
    ) -> None:
        self._store = store
        self._notes = notes
        self._debts = debts
        self._owner = owner
        self._lease_s = lease_s
        self._send = send
        self._depth = depth
        self._judges_from = float("-inf")  # monotonic
        self._wake = wake

    async def run(self) -> None:
        """Sweep for ever; judge no worker for a lease after a stall of Redis."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                is_active = await self._notes.acquire("sweeper", self._owner, _LOCK_S)
                now = time.monotonic()
                stalled_s = now - last - _PERIOD_S
                if stalled_s > self._lease_s / 2:
                    event(_log, "sweep.stalled", level=logging.WARNING, s=round(stalled_s, 1))
                    self._judges_from = now + self._lease_s
                if is_active:
                    await self.sweep()
                last = time.monotonic()
            except StoreUnavailable as error:
                event(_log, "sweep.skipped", level=logging.WARNING, reason=error.message)
            except Exception:  # noqa: BLE001 - a fault in one sweep must not end all sweeping
                _log.exception("sweep.failed")

    async def sweep(self) -> Swept:
        """Do everything that is due now."""
        # What kept us from Redis has kept the workers from it: their silence says nothing yet.
        # Tickets and deadlines do not wait for that.
        swept = await self._store.sweep(silent_too=time.monotonic() >= self._judges_from)
        for job_id, queue in swept.tickets:
            self._send(job_id, queue)
        if swept.taken_back or swept.expired or swept.timed_out or swept.tickets:
            event(
                _log,
                "swept",
                taken_back=swept.taken_back,
                expired=swept.expired,
                timed_out=swept.timed_out,
                erased=swept.erased,
                tickets=len(swept.tickets),
            )
        for lane, overdue_s in await self._debts.sweep():
            self._wake(lane, overdue_s)
        await self._find_lost_tickets()
        return swept

    async def _find_lost_tickets(self) -> None:
        for queue in await self._store.stalled_queues(_STALLED_S):
            if await asyncio.to_thread(self._depth, queue) == 0:
                count = await self._store.reissue(queue, _STALLED_S)
                event(_log, "tickets.reissued", queue=queue, count=count)
