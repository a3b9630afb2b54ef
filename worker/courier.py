"""Delivers what is owed, lane by lane: which events are on their way at once, and what comes next.

A lane is looked after from its ticket until nothing was due for a while. Each has its own bound of
tries in flight, which grows by one with each answer and halves with each silence, so a receiver
that hangs costs a slot or two and never the others' time. Knows no HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from worker.contract.callbacks import wait_s
from worker.contract.debts import Debts, Owed, Settled
from worker.contract.endpoints import Endpoints
from worker.contract.errors import StoreUnavailable
from worker.contract.log import event as log_event
from worker.contract.payloads import payloads
from worker.contract.reader import JobReader
from worker.webhook import Tried

SLOTS = 512  # tries in flight in one process
SILENT_SLOTS = 128  # of them for receivers whose last try got no answer
FIRST_LIMIT, MAX_LIMIT = 4, 32  # of one lane

_POLL_S = 0.025  # how often a lane in use is looked at
_FULL_S = 1.0  # how often one that has no room says that it is looked after
_LINGER_S = 1.0  # a lane is looked at for so long after its last event
_GATHER_S = 0.01  # outcomes are settled together
_SETTLE_AT_ONCE = 200
_RETRY_S = 0.3
_GRACE_S = 5.0

_log = logging.getLogger(__name__)


Deliver = Callable[[str, str, bytes, Sequence[str]], Awaitable[Tried]]
"""Tries once: URL, event id, body, secrets."""


@dataclass(slots=True, eq=False)
class _Lane:
    """A lane that is looked after: its tries in flight, and how many there may be."""

    name: str
    limit: int = FIRST_LIMIT
    is_silent: bool = False
    tries: set["asyncio.Task[None]"] = field(default_factory=set)
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def learn(self, status: int | None) -> None:
        """Take in whether a try got an answer, of whatever kind."""
        self.is_silent = status is None
        self.limit = max(1, self.limit // 2) if status is None else min(MAX_LIMIT, self.limit + 1)

    def end(self, task: "asyncio.Task[None]") -> None:
        """Note that a try is over. One that failed by a fault of ours is due again in time."""
        self.tries.discard(task)
        self.freed.set()
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("webhook.fault", extra={"lane": self.name}, exc_info=fault)


class Courier:
    """Looks after lanes. Make it on the process's loop; `attend` a lane when a ticket says so.

    `deliver` tries once; `run` must run as long as there are tries.
    """

    def __init__(
        self, debts: Debts, reader: JobReader, endpoints: Endpoints, deliver: Deliver
    ) -> None:
        self._debts = debts
        self._reader = reader
        self._endpoints = endpoints
        self._deliver = deliver
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled: list[Settled] = []
        self._settling = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """How many tries are on their way."""
        return sum(len(lane.tries) for lane in self._lanes.values())

    def attend(self, name: str) -> None:
        """Look after a lane, unless that is being done."""
        if name not in self._lanes:
            lane = self._lanes[name] = _Lane(name)
            task = asyncio.create_task(self._look_after(lane), name=f"lane {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Write down how tries ended, for ever, as many at once as there are."""
        while True:
            await self._settling.wait()
            await asyncio.sleep(_GATHER_S)
            try:
                await self._settle()
            except StoreUnavailable as error:
                log_event(_log, "webhooks.waiting", level=logging.WARNING, reason=error.message)
                await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Take nothing more; give tries in flight a few seconds, and write down how they ended.

        One that has to be cut off is due again when its lease is over.
        """
        tries = {one for lane in self._lanes.values() for one in lane.tries}
        await _cancelled(self._tasks)
        if tries:
            _, late = await asyncio.wait(tries, timeout=_GRACE_S)
            await _cancelled(late)
        try:
            while self._settled:
                await self._settle()
        except StoreUnavailable as error:
            log_event(_log, "webhooks.unsettled", level=logging.WARNING, reason=error.message)

    async def _look_after(self, lane: _Lane) -> None:
        try:
            await self._drain(lane)
        except Exception:  # noqa: BLE001 - a fault in one lane: the sweep sends a ticket for it again
            _log.exception("webhooks.lane_failed", extra={"lane": lane.name})
        finally:
            del self._lanes[lane.name]

    async def _drain(self, lane: _Lane) -> None:
        """Claim what there is room for, until nothing was due and nothing in flight for a while."""
        busy_at = time.monotonic()
        while True:
            room = self._room(lane)
            try:
                started = await self._start(lane, room)
                if started or lane.tries:
                    busy_at = time.monotonic()
                elif time.monotonic() - busy_at > _LINGER_S and await self._debts.leave(lane.name):
                    return
            except StoreUnavailable as error:
                log_event(_log, "webhooks.waiting", level=logging.WARNING, reason=error.message)
                await asyncio.sleep(_RETRY_S)
            await self._pause(lane, _POLL_S if room else _FULL_S)

    def _room(self, lane: _Lane) -> int:
        room = min(lane.limit - len(lane.tries), SLOTS - self.in_flight)
        if lane.is_silent:
            silent = sum(len(one.tries) for one in self._lanes.values() if one.is_silent)
            room = min(room, SILENT_SLOTS - silent)
        return max(0, room)

    async def _start(self, lane: _Lane, room: int) -> int:
        """Claim and start tries; return how many. Without room only say that we are here."""
        claimed = await self._debts.claim(lane.name, room)
        if not claimed.events:
            return 0
        signing = claimed.secrets or await self._endpoints.default_secrets()
        bodies = await payloads(claimed.events, self._reader)
        for event, body in zip(claimed.events, bodies, strict=True):
            task = asyncio.create_task(self._try(lane, event, body, signing))
            lane.tries.add(task)
            task.add_done_callback(lane.end)
        return len(claimed.events)

    async def _try(self, lane: _Lane, event: Owed, body: bytes, secrets: Sequence[str]) -> None:
        tried = await self._deliver(event.url, event.event_id, body, secrets)
        lane.learn(tried.status)
        self._note(event, tried)

    def _note(self, event: Owed, tried: Tried) -> None:
        is_over = tried.result in {"delivered", "gone"}
        wait = None if is_over else wait_s(event.step, tried.retry_after_s)
        self._settled.append(
            Settled(event, tried.result, wait, tried.at_s, tried.took_s, tried.status, tried.answer)
        )
        self._settling.set()
        log_event(
            _log,
            f"webhook.{tried.result}",
            level=logging.DEBUG if tried.result == "delivered" else logging.INFO,
            event_id=event.event_id,
            job_id=event.object_id,
            attempt=event.attempt,
            status_code=tried.status,
            next_in_s=wait,
        )

    async def _settle(self) -> None:
        self._settling.clear()
        batch, self._settled = self._settled[:_SETTLE_AT_ONCE], self._settled[_SETTLE_AT_ONCE:]
        if self._settled:
            self._settling.set()
        if not batch:
            return
        try:
            disabled = await self._debts.settle(batch)
        except StoreUnavailable:
            self._settled = batch + self._settled
            self._settling.set()
            raise
        for one in disabled:
            log_event(
                _log,
                "webhook.endpoint_disabled",
                level=logging.WARNING,
                endpoint_id=one.endpoint_id,
                reason=one.reason,
                enable=f"forebay webhooks endpoints enable {one.endpoint_id}",
            )

    @staticmethod
    async def _pause(lane: _Lane, limit_s: float) -> None:
        """Return when a try has ended, or after a while."""
        try:
            async with asyncio.timeout(limit_s):
                await lane.freed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_GATHER_S)  # what ends together makes room together
        lane.freed.clear()


async def _cancelled(tasks: "set[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(set(tasks))
