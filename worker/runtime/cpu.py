"""The processes without an engine: sweeper, callbacks, media stage, batches."""

from functools import partial

from celery import Celery

from worker.batches.desk import BatchDesk
from worker.batches.run import Stores
from worker.contract import broker, keys
from worker.contract.batches import Batches
from worker.contract.debts import Debts
from worker.contract.endpoints import Endpoints
from worker.contract.files import Files
from worker.contract.intake import Intake
from worker.contract.job import Hold, Lane, MediaProfile, PreparedMedia
from worker.contract.models import Models
from worker.contract.reader import JobReader
from worker.contract.registry import Notes
from worker.contract.settings import Settings
from worker.courier import Courier
from worker.expiry import Expiry
from worker.media.stage import OnProgress, prepare_all
from worker.media.workshop import Shared
from worker.outbound import Poster
from worker.preparing import PrepareAttempt
from worker.runner import Verdict
from worker.runtime.base import Base, Identity, WhyCancelled
from worker.sweeper import Sweeper
from worker.webhook import ANSWER_BYTES, TIMEOUT_S, deliver

_OVERDUE_S = 5.0  # callbacks due for so long have tickets that nobody takes


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

    async def _open(self) -> None:
        await super()._open()
        self._shared = Shared()
        self._models = Models(self._registry, self._settings.model_names)
        await self._objects.ensure_bucket()
        self._media = self._runner(Lane.MEDIA, self._begin, self._why_cancelled)
        desk = BatchDesk(self._batch_stores(), self._notes, owner=self._me.owner)
        self._spawn(desk.run())

    def _batch_stores(self) -> Stores:
        return Stores(
            settings=self._settings,
            batches=self._batches,
            files=self._files,
            jobs=self._store,
            reader=JobReader(self._door),
            objects=self._objects,
            models=self._models,
            intake=Intake(
                self._settings,
                self._store,
                self._models,
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
        card = (await self._models.cards()).get(model, {})
        if "max_pixels" not in card:  # configured, and no worker has come yet
            return MediaProfile()
        return MediaProfile(card["max_pixels"], card["frame_max_pixels"], card["pixel_multiple"])
