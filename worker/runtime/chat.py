"""The process of a chat worker: one engine in a process of its own, and the jobs inside it."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

from celery import Celery

from worker.batcher import Batcher
from worker.chat import ChatAttempt, estimate_tokens
from worker.contract.errors import EngineDied, EngineFailed, OutOfMemory
from worker.contract.job import Hold, Lane
from worker.contract.log import event
from worker.contract.settings import Settings
from worker.engine import EngineSpec
from worker.engine.base import Delta, ModelCard, Prompt
from worker.engine.process import EngineProcess
from worker.runner import Verdict
from worker.runtime.base import Base, Failure, Identity, WhyCancelled
from worker.runtime.deaths import MAX_DEATHS, Deaths
from worker.stream import DeltaStream

_log = logging.getLogger(__name__)
_LOOK_S = 1.0


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
        self._deaths = Deaths()
        self._inside: set[str] = set()  # jobs that this life of the engine answers
        self._announced: dict[str, Any] | None = None  # the model's card

    async def start(self) -> None:
        """Load the model; return once jobs can be taken. Raises EngineFailed with a sentence."""
        await self._connect()
        await self.say("loading")
        model = await self._start_engine()
        self._batcher = Batcher(model.slots, _capacity_tokens(model))
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
            answer=partial(self._answer, hold.job_id),
            batcher=self._batcher,
            stream=self._stream,
            objects=self._objects,
            card=self._announced or {},
            cost=estimate_tokens,
            max_tokens=self._settings.max_tokens,
            max_picture_bytes=self._settings.image_max_bytes,
        )

    async def _answer(self, job_id: str, prompt: Prompt, take: Callable[[Delta], None]) -> None:
        """Have the engine answer; who is inside when it dies stays noted in that life of it."""
        if not self._ready.is_set():
            raise EngineDied("the engine starts again", was_inside=False)
        inside, died_with_it = self._inside, False
        inside.add(job_id)
        try:
            await self._engine.answer(prompt, take)
        except EngineDied as error:
            died_with_it = error.was_inside
            raise
        except OutOfMemory:
            died_with_it = not self._engine.is_alive
            raise
        finally:
            if not died_with_it:
                inside.discard(job_id)

    async def _start_engine(self) -> ModelCard:
        model = await self._engine.start()
        named = {"model": self._served_name, "options": sorted(model.options)}
        self._announced = asdict(model) | named
        return model

    def _card(self) -> dict[str, Any] | None:
        return self._announced

    async def _watch_deaths(self) -> None:
        """Start the engine again whenever it dies; stop the worker when that happens too often."""
        while True:
            how: str | None = await self._engine.wait_dead()
            self._ready.clear()
            self.on_ready(False)
            while how is not None:
                how = await self._start_again(how)
            self._ready.set()
            self.on_ready(True)
            await self.say("ready")

    async def _start_again(self, how: str) -> str | None:
        """Start the engine after a death; return how it died of that, None once it is back."""
        inside, self._inside = self._inside, set()
        event(_log, "engine.died", level=logging.ERROR, how=how, inside=len(inside))
        if self._deaths.are_too_many(inside, time.monotonic()):
            await self._fail(f"the engine died {MAX_DEATHS} times: {how}")
        await self.say("loading", how)
        try:
            await self._start_engine()
        except EngineFailed as error:
            if error.is_everywhere:
                await self._fail(error.message)
            return error.message  # a GPU's memory may be free a moment later
        return None

    async def _fail(self, reason: str) -> NoReturn:
        await self.fail(Failure(reason, is_everywhere=False))  # it was well once
        os.kill(os.getpid(), signal.SIGQUIT)  # hand everything back now
        while True:
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


def _capacity_tokens(card: ModelCard) -> int:
    """Return what all jobs inside may occupy; an engine that knows no bound has its slots."""
    return card.capacity_tokens or card.slots * card.context_tokens
