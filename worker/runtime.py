"""Builds and owns what one worker process needs: start, run jobs, drain, close. Decides nothing."""

import asyncio
import contextlib
import logging
import os
import platform
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from celery import Celery

from worker.batcher import Batcher
from worker.batches.desk import BatchDesk
from worker.batches.run import Stores
from worker.chat import ChatAttempt, estimate_tokens
from worker.contract import broker, keys
from worker.contract.batches import Batches
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.errors import EngineFailed, StoreUnavailable
from worker.contract.files import Files
from worker.contract.intake import Intake
from worker.contract.job import Hold, Lane, MediaProfile, PreparedMedia
from worker.contract.live import Orders
from worker.contract.log import event
from worker.contract.models import Models
from worker.contract.reader import JobReader
from worker.contract.registry import Notes, Registry
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.courier import Courier
from worker.engine import EngineSpec
from worker.engine.base import ModelCard
from worker.engine.process import EngineProcess
from worker.expiry import Expiry
from worker.holds import Holds, Stop
from worker.media.stage import OnProgress, prepare_all
from worker.media.workshop import Shared
from worker.outbound import Poster
from worker.preparing import PrepareAttempt
from worker.runner import Runner, Verdict
from worker.stream import DeltaStream
from worker.sweeper import Sweeper
from worker.webhook import ANSWER_BYTES, TIMEOUT_S, deliver

_log = logging.getLogger(__name__)
_ANNOUNCE_S = 4.0
_LOOK_S = 1.0
_CANCEL_S = 0.5
_MAX_DEATHS, _DEATHS_WITHIN_S = 3, 600.0
_CARD_S = 10.0  # how long a model's profile is remembered
_OVERDUE_S = 5.0  # callbacks due for so long have tickets that nobody takes
_FAULT_STATUS = 70  # EX_SOFTWARE: a background task of ours ended

WhyCancelled = Callable[[], Stop | None]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a worker process is: `owner` is unique per incarnation, `role` as on its command line."""

    owner: str
    role: str
    slots: int


class Base:
    """What both lanes need: the stores, the holds, the tickets, a heartbeat."""

    def __init__(self, settings: Settings, app: Celery, me: Identity) -> None:
        self._settings = settings
        self._app = app
        self._me = me
        self._state, self._reason = "loading", ""
        self._started_at = time.time()
        self.failure: str | None = None  # why no restart can help
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
        """Announce a state: loading, ready, draining or failed."""
        self._state, self._reason = state, reason
        with contextlib.suppress(StoreUnavailable):
            await self._announce()

    async def _announce(self) -> None:
        info = asdict(self._me) | {
            "state": self._state,
            "reason": self._reason,
            "in_flight": len(self._holds),
            "host": platform.node(),
            "pid": os.getpid(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "started_at": self._started_at,
        }
        card = self._card()
        await self._registry.announce(
            self._me.owner, info | {"model": card["model"] if card else None}, card
        )

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
            await asyncio.sleep(_ANNOUNCE_S)

    async def close(self) -> None:
        """End the background work, sign off and close every connection."""
        await self._end()
        await self._tickets.close()
        with contextlib.suppress(StoreUnavailable):
            await self._registry.sign_off(self._me.owner)
        await self._orders.close()
        await self._objects.close()
        await self._door.close()


class ChatRuntime(Base):
    """One engine in a process of its own, and the jobs inside it.

    `on_ready` is called with False when the engine is gone, and with True once it is back: until
    then the tickets that come here are better off with other workers.
    """

    def __init__(
        self,
        settings: Settings,
        app: Celery,
        me: Identity,
        *,
        spec: EngineSpec,
        served_name: str,
        why_cancelled: WhyCancelled,
    ) -> None:
        super().__init__(settings, app, me)
        self._served_name = served_name
        self._engine = EngineProcess(spec, log_level=settings.log_level)
        self._why_cancelled = why_cancelled
        self.on_ready: Callable[[bool], None] = lambda _is_ready: None
        self._ready = asyncio.Event()
        self._deaths: deque[float] = deque()
        self._model: ModelCard | None = None

    async def start(self) -> None:
        """Load the model; return once jobs can be taken. Raises EngineFailed with a sentence."""
        await self._connect()
        await self.say("loading")
        self._model = await self._engine.start()
        self._batcher = Batcher(self._model.slots, _capacity_tokens(self._model))
        self._stream = DeltaStream(self._store, self._holds.lose)
        self._chat = self._runner(Lane.CHAT, self._begin, self._why_cancelled)
        self._spawn(self._stream.run())
        self._spawn(self._watch_deaths())
        self._spawn(self._watch_silence())
        self._ready.set()
        await self.say("ready")

    async def run(self, job_id: str) -> Verdict:
        """Do what a ticket asks for, once the engine is there."""
        await self._ready.wait()
        return await self._chat.run(job_id)

    def _begin(self, hold: Hold) -> ChatAttempt:
        return ChatAttempt(
            hold,
            engine=self._engine,
            batcher=self._batcher,
            stream=self._stream,
            objects=self._objects,
            cost=estimate_tokens,
            max_tokens=self._settings.max_tokens,
            max_picture_bytes=self._settings.image_max_bytes,
        )

    def _card(self) -> dict[str, Any] | None:
        if self._model is None:
            return None
        card = asdict(self._model)
        return card | {"model": self._served_name, "options": sorted(self._model.options)}

    async def _watch_deaths(self) -> None:
        """Start the engine again whenever it dies; stop the worker when that happens too often."""
        while True:
            how = await self._engine.wait_dead()
            self._ready.clear()
            self.on_ready(False)
            lost = self._engine.lost_prompts
            event(_log, "engine.died", level=logging.ERROR, how=how, inside=lost)
            if self._is_too_often(lost):
                return await self._fail(f"the engine died {_MAX_DEATHS} times: {how}")
            await self.say("loading", how)
            try:
                self._model = await self._engine.start()
            except EngineFailed as error:
                return await self._fail(error.message)
            self._ready.set()
            self.on_ready(True)
            await self.say("ready")

    def _is_too_often(self, lost: int) -> bool:
        """Count a death, unless one job was alone inside: then that job is to blame."""
        if lost != 1:
            self._deaths.append(time.monotonic())
        while self._deaths and time.monotonic() - self._deaths[0] > _DEATHS_WITHIN_S:
            self._deaths.popleft()
        return len(self._deaths) >= _MAX_DEATHS

    async def _fail(self, reason: str) -> None:
        self.failure = reason
        await self.say("failed", reason)
        os.kill(os.getpid(), signal.SIGQUIT)  # hand everything back now
        await asyncio.Event().wait()

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            silent_s = self._engine.last_output_age_s
            if silent_s > self._settings.engine_silence_s:
                event(_log, "engine.hung", level=logging.ERROR, silent_s=round(silent_s, 1))
                self._engine.kill()

    async def _end(self) -> None:
        await super()._end()  # whoever would start the engine again has ended
        await self._engine.close()


class SweepRuntime(Base):
    """The sweeper alone; no queue is listened to."""

    async def start(self) -> None:
        """Connect and begin to sweep."""
        await self._open()
        await self.say("ready")

    async def _open(self) -> None:
        await self._connect()
        self._notes = Notes(self._door)
        sweeper = Sweeper(
            self._store,
            self._notes,
            Debts(self._door),
            owner=self._me.owner,
            lease_s=self._settings.lease_s,
            send=lambda job_id, queue: self._tickets.send(job_id, queue, urgent=True),
            depth=lambda queue: broker.depth(self._app, queue),
            wake=self._wake,
        )
        self._spawn(sweeper.run())
        self._files, self._batches = Files(self._door, self._objects), Batches(self._door)
        expiry = Expiry(self._files, self._batches, self._notes, owner=self._me.owner)
        self._spawn(expiry.run())

    def _wake(self, lane: str, _overdue_s: float) -> None:
        self._tickets.send(lane, keys.HOOK_QUEUE, urgent=True)


class HookRuntime(SweepRuntime):
    """Callbacks and a sweeper, in one CPU process."""

    async def _connect(self) -> None:
        await super()._connect()
        guard = self._settings.webhook_guard
        self._poster = Poster(guard, total_s=TIMEOUT_S, head_bytes=ANSWER_BYTES)
        self._courier = Courier(
            Debts(self._door),
            JobReader(self._door),
            Endpoints(self._door),
            partial(deliver, self._poster),
        )
        self._spawn(self._courier.run())

    def attend(self, lane: str) -> None:
        """Do what a ticket for a lane asks for: look after it, beside everything else."""
        self._courier.attend(lane)

    def _wake(self, lane: str, overdue_s: float) -> None:
        """Send a ticket; where tickets are of no use, look after the lane here."""
        if overdue_s > _OVERDUE_S:
            self._courier.attend(lane)
        else:
            super()._wake(lane, overdue_s)

    async def close(self) -> None:
        """Give callbacks on their way a few seconds, then end as the others do."""
        await self._courier.close()
        await self._poster.close()
        await super().close()


class CpuRuntime(HookRuntime):
    """The media stage, callbacks, the runner of batches and a sweeper, in one CPU process."""

    def __init__(
        self, settings: Settings, app: Celery, me: Identity, why_cancelled: WhyCancelled
    ) -> None:
        super().__init__(settings, app, me)
        self._why_cancelled = why_cancelled
        self._cards: dict[str, dict[str, Any]] = {}
        self._cards_at = float("-inf")

    async def _open(self) -> None:
        await super()._open()
        self._shared = Shared()
        await self._objects.ensure_bucket()
        self._media = self._runner(Lane.MEDIA, self._begin, self._why_cancelled)
        desk = BatchDesk(self._batch_stores(), self._notes, owner=self._me.owner)
        self._spawn(desk.run())

    def _batch_stores(self) -> Stores:
        models = Models(self._registry, self._settings.model_names)
        return Stores(
            settings=self._settings,
            batches=self._batches,
            files=self._files,
            jobs=self._store,
            reader=JobReader(self._door),
            objects=self._objects,
            models=models,
            intake=Intake(
                self._settings,
                self._store,
                models,
                self._objects,
                self._tickets.send,
                self._files,
            ),
        )

    async def run(self, job_id: str) -> Verdict:
        """Do what a ticket asks for."""
        return await self._media.run(job_id)

    def _begin(self, hold: Hold) -> PrepareAttempt:
        return PrepareAttempt(
            hold, store=self._store, prepare=self._prepare, send=self._tickets.send
        )

    async def _prepare(self, hold: Hold, on_progress: OnProgress) -> tuple[PreparedMedia, ...]:
        profile = await self._profile(hold.request.model)
        return await prepare_all(
            hold.request.media,
            profile,
            hold.request.video,
            self._objects,
            self._notes,
            self._settings,
            on_progress,
            shared=self._shared,
        )

    async def _profile(self, model: str) -> MediaProfile:
        """Return what the model wants; the default until a worker has announced it."""
        if time.monotonic() - self._cards_at > _CARD_S or model not in self._cards:
            self._cards = await self._registry.models()
            self._cards_at = time.monotonic()
        card = self._cards.get(model)
        if card is None:
            return MediaProfile()
        return MediaProfile(card["max_pixels"], card["frame_max_pixels"], card["pixel_multiple"])


def _end_with_it(task: "asyncio.Task[None]") -> None:
    """End the process with a background task that ended: half a worker holds jobs for ever."""
    error = None if task.cancelled() else task.exception()
    _log.critical("worker.broken", extra={"task": task.get_name()}, exc_info=error)
    os._exit(_FAULT_STATUS)


def _capacity_tokens(card: ModelCard) -> int:
    """Return what all jobs inside may occupy; an engine that knows no bound has its slots."""
    return card.capacity_tokens or card.slots * card.context_tokens
