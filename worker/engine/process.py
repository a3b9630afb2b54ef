"""An engine in a process of its own: its loop is not ours, and neither is its death.

`EngineProcess` has the protocol of the engine inside. One event loop owns it. The child dies with
the thread that called `start` (Linux ties the two), so that thread must live as long as the engine.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from worker.contract.errors import EngineDied, EngineFailed, JobError, OutOfMemory
from worker.contract.log import event
from worker.engine import EngineSpec
from worker.engine.base import Counters, Delta, ModelCard, Prompt
from worker.engine.child_process import command
from worker.engine.host import MEMORY_STATUS
from worker.engine.wire import Outbox, frames

CANCEL_S = 5.0
"""How long a closed iterator waits until the engine has confirmed that the prompt is out."""
CLOSE_S = 10.0
"""How long `close` waits for the engine to free its device before the process is killed."""
_ALONE = "the engine ran out of memory on this job, with no other inside"
_STDERR = 2
_LAST_WORDS_S = 0.5  # an ended process's last frames may still lie in the socket

log = logging.getLogger(__name__)


class EngineProcess:
    """Hosts any engine in a child process; after its death `start` brings a fresh one."""

    def __init__(
        self, spec: EngineSpec, *, log_level: str = "INFO", start_timeout_s: float = 1800.0
    ) -> None:
        self._spec = spec
        self._log_level = log_level
        self._start_timeout_s = start_timeout_s
        self._child: _Child | None = None

    async def start(self) -> ModelCard:
        """Start the process and return once its engine has loaded the model.

        Raises:
            EngineFailed: the engine's own sentence, or how the process ended while it loaded, or
                that it took longer than `start_timeout_s`, or that one runs already.
        """
        if self.is_alive:
            raise EngineFailed("the engine process runs already")
        began = time.monotonic()
        self._child = child = await _Child.spawn(self._log_level)
        card = await self._loaded(child)
        took_s = round(time.monotonic() - began, 3)
        event(log, "engine.started", pid=child.pid, model=card.model, engine=card.engine, s=took_s)
        return card

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the answer. Closing the iterator returns when the engine has dropped the prompt.

        Raises:
            EngineDied: the process is gone, by whatever cause; every open iterator says so.
        """
        items: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        child = self._living()
        stream = child.ask(prompt, items.put_nowait)
        stream.over.add_done_callback(lambda over: items.put_nowait(over.result()))
        try:
            while isinstance(item := await items.get(), Delta):
                yield item
            if item is not None:
                raise item
        finally:
            await child.leave(stream)

    async def answer(self, prompt: Prompt, take: Callable[[Delta], None]) -> None:
        """Give `take` the answer; return at its end, and when cancelled once the engine dropped it.

        What hundreds of answers gained since the last frame arrives in one: each delta is taken
        where it is read, and no task wakes up for it. An error of `take` ends this answer alone.

        Raises as `generate` does.
        """
        child = self._living()
        stream = child.ask(prompt, take)
        try:
            await asyncio.wait({stream.over})
            if (error := stream.fault or stream.over.result()) is not None:
                raise error
        finally:
            await child.leave(stream)

    async def counters(self) -> Counters:
        """Return what the engine in the process counts. Raises EngineDied where it is gone."""
        return await self._living().counters()

    async def close(self) -> None:
        """Let the engine free its device and end the process; kill it where that takes long."""
        if self._child is not None and self.is_alive:
            await self._child.close()

    def kill(self) -> None:
        """End the process and all that it started at once: what a hung engine needs."""
        if self._child is not None:
            self._child.kill()

    async def wait_dead(self) -> str:
        """Wait until the process that was started last is gone; return a sentence that says how."""
        if self._child is None:
            raise EngineFailed("the engine process was never started")
        return await asyncio.shield(self._child.gone)

    @property
    def is_alive(self) -> bool:
        """True from `start` on until the process is gone."""
        return self._child is not None and not self._child.gone.done()

    @property
    def pid(self) -> int | None:
        """The living process's id."""
        return self._child.pid if self._child is not None and self.is_alive else None

    @property
    def in_flight(self) -> int:
        """Prompts that are inside."""
        return len(self._child.streams) if self._child is not None else 0

    @property
    def last_output_age_s(self) -> float:
        """Seconds since the engine last gave anything while prompts are inside, else 0."""
        return self._child.silence_s if self._child is not None and self.in_flight else 0.0

    async def _loaded(self, child: "_Child") -> ModelCard:
        child.outbox.post(("load", self._spec))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                outcome = await asyncio.shield(child.loaded)
        except BaseException as error:
            child.kill()
            await asyncio.shield(child.gone)
            if isinstance(error, TimeoutError):
                msg = f"the model was not loaded within {self._start_timeout_s:g} s"
                raise EngineFailed(msg) from error
            raise
        if isinstance(outcome, JobError):
            await asyncio.shield(child.gone)
            raise outcome
        return outcome

    def _living(self) -> "_Child":
        if self._child is None:
            raise EngineFailed("the engine process was never started")
        if self._child.gone.done():
            raise EngineDied(self._child.gone.result(), was_inside=False)
        return self._child


@dataclass(slots=True, eq=False)
class _Stream:
    """One answer under way: who takes its deltas; `over` once it is out, with the error if any.

    `fault` is what its taker raised.
    """

    number: int
    take: Callable[[Delta], None]
    over: asyncio.Future[JobError | None]
    fault: Exception | None = None


class _Child:
    """One life of the engine process. All futures carry values, so none warns when unread."""

    def __init__(self, process: Process, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.outbox = Outbox(writer)
        self.streams: dict[int, _Stream] = {}
        self.questions: dict[int, asyncio.Future[Counters]] = {}
        self.loaded: asyncio.Future[ModelCard | JobError] = loop.create_future()
        self.gone: asyncio.Future[str] = loop.create_future()
        self._process = process
        self._numbers: Iterator[int] = count(1)
        self._heard_at = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls, log_level: str) -> "_Child":
        """Start a process that waits for what to load."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(ours)
            process = await asyncio.create_subprocess_exec(
                *command("worker.engine.host", str(theirs.fileno()), str(os.getpid()), log_level),
                stdin=DEVNULL,
                stdout=_STDERR,  # what libraries print must not mix with our own output
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the parent's, and a kill takes all ranks along
            )
            unless_started.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, writer)
        child._watching = asyncio.create_task(child._watch(reader))
        return child

    @property
    def silence_s(self) -> float:
        """Seconds since the last message, or since a prompt joined an empty engine."""
        return time.monotonic() - self._heard_at

    def ask(self, prompt: Prompt, take: Callable[[Delta], None]) -> _Stream:
        """Send a prompt. It gets a number: its key may be used again before all of it is over."""
        if not self.streams:
            self._heard_at = time.monotonic()
        stream = _Stream(next(self._numbers), take, asyncio.get_running_loop().create_future())
        self.streams[stream.number] = stream
        self.outbox.post(("prompt", stream.number, prompt))
        return stream

    async def counters(self) -> Counters:
        """Ask for the engine's counters."""
        number = next(self._numbers)
        asked: asyncio.Future[Counters] = asyncio.get_running_loop().create_future()
        self.questions[number] = asked
        self.outbox.post(("count", number))
        both: set[asyncio.Future[Any]] = {asked, self.gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        del self.questions[number]
        if not asked.done():
            raise EngineDied(self.gone.result(), was_inside=False)
        return asked.result()

    async def leave(self, stream: _Stream) -> None:
        """Take a prompt out, and wait (CANCEL_S at most) until the engine has dropped it."""
        stream.take = _drop
        try:
            if not stream.over.done():
                self.outbox.post(("cancel", stream.number))
                await asyncio.wait({stream.over}, timeout=CANCEL_S)
        finally:
            self.streams.pop(stream.number, None)

    async def close(self) -> None:
        """Ask the process to end; kill it after CLOSE_S."""
        self.outbox.post(("close",))
        await asyncio.wait({self.gone}, timeout=CLOSE_S)
        self.kill()
        await asyncio.shield(self.gone)

    def kill(self) -> None:
        """Send SIGKILL to the process and its own children, if it is not gone yet."""
        if not self.gone.done():
            _kill_group(self.pid)

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Hand messages on until the socket ends or the process does, then tell everybody."""
        hearing = asyncio.create_task(self._hear(reader))
        ending = asyncio.create_task(self._process.wait())
        done, _ = await asyncio.wait({hearing, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending in done:  # its own children may hold the socket open: no end of file then
            await asyncio.wait({hearing}, timeout=_LAST_WORDS_S)
        hearing.cancel()
        _kill_group(self.pid)
        self._bury(await ending)
        self.outbox.close()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        async for messages in frames(reader):
            self._heard_at = time.monotonic()
            for message in messages:
                self._take(message)

    def _take(self, message: Any) -> None:
        match message:
            case ("delta", number, *fields):
                if stream := self.streams.get(number):
                    self._give(stream, Delta(*fields))
            case ("counters", number, counters):
                if asked := self.questions.get(number):
                    asked.set_result(counters)
            case ("end", number, error):
                if stream := self.streams.get(number):
                    stream.over.set_result(error)
            case (("card" | "failed"), outcome):
                self.loaded.set_result(outcome)

    def _give(self, stream: _Stream, delta: Delta) -> None:
        try:
            stream.take(delta)
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is that answer's alone
            stream.fault, stream.take = fault, _drop
            self.outbox.post(("cancel", stream.number))

    def _bury(self, status: int) -> None:
        """Tell everybody. A prompt that was alone when memory ran out is to blame for that."""
        how = _how_it_ended(status)
        is_to_blame = status == MEMORY_STATUS and len(self.streams) == 1
        event(log, "engine.ended", pid=self.pid, how=how, in_flight=len(self.streams))
        self.gone.set_result(how)
        if not self.loaded.done():
            self.loaded.set_result(EngineFailed(f"{how} while it loaded the model"))
        for stream in self.streams.values():
            if not stream.over.done():
                stream.over.set_result(OutOfMemory(_ALONE) if is_to_blame else EngineDied(how))


def _drop(_: Delta) -> None:
    """Take what nobody wants any more."""


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _how_it_ended(status: int) -> str:
    if status == MEMORY_STATUS:
        return "the engine ran out of memory"
    if status >= 0:
        return f"the engine process ended with status {status}"
    name = signal.Signals(-status).name
    hint = " (killed, or out of the machine's memory)" if name == "SIGKILL" else ""
    return f"the engine process was ended by {name}{hint}"
