"""What is said in place of workers that were given up: that they failed, and why.

They have ended, and their own last words go away with their heartbeat. Their supervisor goes on,
and for as long an operator should see that a set is down.
"""

import asyncio
import contextlib
import time
from dataclasses import asdict

from worker.contract import keys
from worker.contract.errors import StoreUnavailable
from worker.contract.registry import Presence, Registry


class Notices:
    """The failed workers of one supervisor, of one `role` and `model` (None: of no model)."""

    def __init__(self, registry: Registry, role: str, model: str | None) -> None:
        self._registry = registry
        self._role = role
        self._model = model
        self._failed: dict[str, Presence] = {}

    async def post(self, owner: str, gpus: str, reason: str) -> None:
        """Say that a worker failed; `run` says it again."""
        self._failed[owner] = Presence(
            owner=owner,
            role=self._role,
            state="failed",
            reason=reason,
            gpus=gpus,
            started_at=time.time(),
            model=self._model,
        )
        await self._announce(owner)

    async def run(self) -> None:
        """Go on saying it until cancelled."""
        while True:
            await asyncio.sleep(keys.ANNOUNCE_S)
            for owner in list(self._failed):
                await self._announce(owner)

    async def withdraw(self) -> None:
        """Say no more of them: they are not wanted any longer."""
        for owner in self._failed:
            with contextlib.suppress(StoreUnavailable):
                await self._registry.sign_off(owner)

    async def _announce(self, owner: str) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._registry.announce(owner, asdict(self._failed[owner]), None)
