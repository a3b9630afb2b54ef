"""Erases files and records of batches that are over. One process at a time does it."""

import asyncio
import logging

from worker.contract.batches import Batches
from worker.contract.errors import JobError
from worker.contract.files import Files
from worker.contract.log import event
from worker.contract.registry import Notes

_log = logging.getLogger(__name__)
_PERIOD_S = 5.0
_LOCK_S = 30.0


class Expiry:
    """Runs beside the sweeper; the cost grows with what is due, not with what exists."""

    def __init__(self, files: Files, batches: Batches, notes: Notes, *, owner: str) -> None:
        self._files = files
        self._batches = batches
        self._notes = notes
        self._owner = owner

    async def run(self) -> None:
        """Erase for ever."""
        while True:
            try:
                if await self._notes.acquire("expiry", self._owner, _LOCK_S):
                    await self.sweep()
            except JobError as error:
                event(_log, "expiry.skipped", level=logging.WARNING, reason=error.message)
            except Exception:  # noqa: BLE001 - a fault in one sweep must not end all sweeping
                _log.exception("expiry.failed")
            await asyncio.sleep(_PERIOD_S)

    async def sweep(self) -> None:
        """Erase what is due now, a hundred of each kind at most."""
        files, batches = await self._files.sweep(), await self._batches.sweep()
        if files or batches:
            event(_log, "expired", files=files, batches=batches)
