"""What every worker process has: the stores, the holds, the tickets, a heartbeat."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any, Self

from celery import Celery

from worker.contract import broker, keys
from worker.contract.door import RedisDoor
from worker.contract.errors import EngineFailed, JobError, StoreUnavailable
from worker.contract.job import Hold, Lane
from worker.contract.live import Orders
from worker.contract.registry import Presence, Registry
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.holds import Holds, Stop
from worker.runner import Runner

_log = logging.getLogger(__name__)
_CANCEL_S = 0.5
_STATES = {"loading": 0, "ready": 0, "draining": 1, "failed": 2}  # the way goes up alone
_FAULT_STATUS = 70  # EX_SOFTWARE: a background task of ours ended

WhyCancelled = Callable[[], Stop | None]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a worker process is: `owner` is unique per incarnation, `role` as on its command line."""

    owner: str
    role: str
    slots: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why starting this process again is no use; `is_everywhere`: nor is starting its like."""

    reason: str
    is_everywhere: bool

    @classmethod
    def of(cls, error: JobError) -> Self:
        """Return what an error at the start means; of an engine's, only what was made sure of."""
        if isinstance(error, EngineFailed):
            return cls(error.message, bool(error.is_everywhere))
        return cls(error.message, is_everywhere=True)


class Base:
    """What both lanes need: the stores, the holds, the tickets, a heartbeat."""

    def __init__(self, settings: Settings, app: Celery, me: Identity) -> None:
        self._settings = settings
        self._app = app
        self._me = me
        self._state, self._reason = "loading", ""
        self._started_at = time.time()
        self.failure: Failure | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def _connect(self) -> None:
        self._door = RedisDoor(self._settings)
        self._store = JobStore(self._door)
        self._registry = Registry(self._door)
        self._objects = ObjectStore(self._settings)
        self._orders = Orders(self._door, self._me.owner)
        self._holds = Holds(self._store, self._orders, self._settings.lease_s)
        self._tickets = broker.Tickets(self._app, self._store.published)
        self._door.on_owed = self._tickets.wake
        self._spawn(self._announce_forever())
        self._spawn(self._holds.run())

    def _runner(self, lane: Lane, begin: Any, why_cancelled: WhyCancelled) -> Runner:
        return Runner(
            self._store,
            self._holds,
            begin,
            lane=lane,
            owner=self._me.owner,
            give_up_s=self._settings.lease_s,
            why_cancelled=why_cancelled,
            send=self._send_again,
        )

    def _send_again(self, hold: Hold) -> None:
        self._tickets.send(hold.job_id, keys.queue_of(hold), urgent=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_end_with_it)
        self._tasks.append(task)

    async def say(self, state: str, reason: str = "") -> None:
        """Announce a state of `_STATES`; one that stands before the present one changes nothing.

        An engine that is back while its worker drains does not make that worker ready.
        """
        if _STATES[state] < _STATES[self._state]:
            return
        self._state, self._reason = state, reason
        with contextlib.suppress(StoreUnavailable):
            await self._announce()

    async def fail(self, failure: Failure) -> None:
        """Announce that no restart can help; it can be read for a while after the end."""
        self.failure = failure
        await self.say("failed", failure.reason)

    async def _announce(self) -> None:
        card = self._card()
        said = Presence(
            **asdict(self._me),
            state=self._state,
            reason=self._reason,
            in_flight=len(self._holds),
            pid=os.getpid(),
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            started_at=self._started_at,
            model=card["model"] if card else None,
        )
        await self._registry.announce(self._me.owner, asdict(said), card)

    async def _end(self) -> None:
        pending = set(self._tasks)
        for task in pending:
            task.remove_done_callback(_end_with_it)
        while pending:  # Python 3.11's wait_for, inside redis-py, may swallow a cancel
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_S)

    def _card(self) -> dict[str, Any] | None:
        return None

    async def _announce_forever(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self._announce()
            await asyncio.sleep(keys.ANNOUNCE_S)

    async def close(self) -> None:
        """End the background work, sign off (not after a failure) and close every connection."""
        await self._end()
        await self._tickets.close()
        with contextlib.suppress(StoreUnavailable):
            if self.failure is None:
                await self._registry.sign_off(self._me.owner)
            else:
                await self._announce()
        await self._orders.close()
        await self._objects.close()
        await self._door.close()


def _end_with_it(task: "asyncio.Task[None]") -> None:
    """End the process with a background task that ended: half a worker holds jobs for ever."""
    error = None if task.cancelled() else task.exception()
    _log.critical("worker.broken", extra={"task": task.get_name()}, exc_info=error)
    os._exit(_FAULT_STATUS)
