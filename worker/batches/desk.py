"""Which batches this process runs: any that has no runner, the one that is due first in front."""

import asyncio
import contextlib
import logging

from worker.batches.results import NotOursError
from worker.batches.run import BatchRun, Stores
from worker.contract.batches import lock_name
from worker.contract.errors import JobError
from worker.contract.log import event
from worker.contract.registry import Notes

_log = logging.getLogger(__name__)
_PERIOD_S = 0.5
_LOCK_S, _RENEW_S = 6.0, 1.5  # a killed process stands in the way for so long
_MAX_RUNS = 16  # at a time; each may hold a page of input and two parts of results
_AGAIN_S = 1.0  # after a run was broken off


class BatchDesk:
    """Runs batches for ever; `run` it as a task, cancel that to hand all of them over."""

    def __init__(self, stores: Stores, notes: Notes, *, owner: str) -> None:
        self._stores = stores
        self._notes = notes
        self._owner = owner
        self._runs: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look for batches that nobody runs, and run them."""
        try:
            while True:
                try:
                    await self._look_around()
                except JobError as error:
                    event(_log, "batches.skipped", level=logging.WARNING, reason=error.message)
                await asyncio.sleep(_PERIOD_S)
        finally:
            await self._hand_over()

    async def _look_around(self) -> None:
        for batch_id in await self._stores.batches.active():
            if len(self._runs) >= _MAX_RUNS:
                return
            if batch_id in self._runs:
                continue
            if await self._notes.acquire(lock_name(batch_id), self._owner, _LOCK_S):
                self._runs[batch_id] = asyncio.create_task(self._run(batch_id))

    async def _run(self, batch_id: str) -> None:
        """Run one batch while its lock is ours; whatever breaks it off, it is taken up again."""
        try:
            await self._run_locked(batch_id)
        except NotOursError:
            event(_log, "batch.lost", level=logging.WARNING, batch_id=batch_id)
        except JobError as error:
            event(
                _log, "batch.waits", level=logging.WARNING, batch_id=batch_id, reason=error.message
            )
            await asyncio.sleep(_AGAIN_S)
        except Exception:  # noqa: BLE001 - a fault in one batch must not end the others
            _log.exception("batch.broken", extra={"batch_id": batch_id})
            await asyncio.sleep(_LOCK_S)
        finally:
            del self._runs[batch_id]

    async def _run_locked(self, batch_id: str) -> None:
        running = asyncio.create_task(BatchRun(batch_id, self._owner, self._stores).run())
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=_RENEW_S)
                if not await self._notes.renew(lock_name(batch_id), self._owner, _LOCK_S):
                    raise NotOursError
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await self._notes.release(lock_name(batch_id), self._owner)

    async def _hand_over(self) -> None:
        """Stop all runs and free their locks, for the next process to go on at once."""
        ids = list(self._runs)
        tasks = set(self._runs.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for batch_id in ids:
            with contextlib.suppress(JobError):
                await self._notes.release(lock_name(batch_id), self._owner)
