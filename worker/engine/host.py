"""The engine process: it runs one engine's asynchronous loop and nothing else.

Started by `process.EngineProcess`, it talks over the socket that it inherits. It ends when it is
told to, when its parent is gone, or when its engine is.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from typing import Any

from worker.contract.errors import EngineDied, EngineFailed, JobError, OutOfMemory
from worker.contract.log import event, set_up
from worker.engine import EngineSpec, device, load_engine
from worker.engine.base import Engine, Prompt
from worker.engine.child_process import die_with, ignore_stops
from worker.engine.wire import Outbox, frames

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop  # type: ignore[assignment]  # either is an event loop

LOST_STATUS = 70
"""Exit status of a process whose engine said EngineDied: every prompt inside is lost with it."""
MEMORY_STATUS = 71
"""The same, where the engine had run out of memory."""

log = logging.getLogger(__name__)


class Host:
    """Answers the parent's messages, one task per prompt."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._engine: Engine | None = None
        self._loading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._is_closing = False

    async def take(self, message: Any) -> None:
        """Do what one message of the parent says."""
        match message:
            case ("prompt", number, prompt):
                self._begin(number, prompt)
            case ("cancel", number):
                if task := self._answers.get(number):
                    task.cancel()
            case ("count", number):
                self._count(number)
            case ("load", spec):
                self._loading = asyncio.create_task(self._load(spec))
            case ("close",):
                await self._close()

    async def _load(self, spec: EngineSpec) -> None:
        try:
            self._engine = load_engine(spec)
            self._outbox.post(("card", await self._engine.start()))
        except Exception as error:  # noqa: BLE001 - the edge of the process: the parent tells it on
            self._outbox.post(("failed", _why_not_loaded(error)))
            await self._outbox.drain()
            _leave(1)

    def _count(self, number: int) -> None:
        """Tell the engine's counters, as the answer to a prompt without an answer."""
        task = asyncio.create_task(self._tell_counters(number))
        self._answers[number] = task
        task.add_done_callback(lambda done: self._end(number, done))

    async def _tell_counters(self, number: int) -> None:
        if self._engine is None:
            raise EngineFailed("the model is not loaded yet")
        self._outbox.post(("counters", number, await self._engine.counters()))

    def _begin(self, number: int, prompt: Prompt) -> None:
        task = asyncio.create_task(self._answer(number, prompt))
        self._answers[number] = task
        task.add_done_callback(lambda done: self._end(number, done))

    async def _answer(self, number: int, prompt: Prompt) -> None:
        if self._engine is None:
            raise EngineFailed("the model is not loaded yet")
        async with contextlib.aclosing(self._engine.generate(prompt)) as deltas:
            async for d in deltas:
                plain = (d.text, d.token_ids, d.prompt_tokens, d.finish_reason)
                rare = (d.reasoning, d.tool_calls, d.logprobs)
                self._outbox.post(("delta", number, *plain, *(rare if any(rare) else ())))

    def _end(self, number: int, task: asyncio.Task[None]) -> None:
        """Tell how a prompt ended. A callback, as a task cancelled early runs no `finally`."""
        del self._answers[number]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, EngineDied) and not self._is_closing:
            event(log, "engine.lost", level=logging.ERROR, reason=error.message)
            _leave(MEMORY_STATUS if device.is_out_of_memory(error) else LOST_STATUS)
        told = None if error is None else _as_job_error(error, "answering a prompt")
        self._outbox.post(("end", number, told))

    async def _close(self) -> None:
        self._is_closing = True
        if self._engine is not None:
            await self._engine.close()
        await self._outbox.drain()
        _leave(0)


async def serve(connection: socket.socket) -> None:
    """Answer the parent at the other end of the socket until it is gone."""
    reader, writer = await asyncio.open_connection(sock=connection)
    host = Host(Outbox(writer))
    async for messages in frames(reader):
        for message in messages:
            await host.take(message)
    _leave(0)


def main() -> None:
    """Run the process: its arguments are a socket's descriptor, the parent's pid, a log level."""
    descriptor, parent_pid, level = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    set_up(level)
    ignore_stops()
    if not die_with(parent_pid):
        _leave(0)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(socket.socket(fileno=descriptor)))


def _why_not_loaded(error: Exception) -> EngineFailed:
    """Return why, and whether another worker with the same options would fail alike."""
    told = _as_job_error(error, "loading the model")
    failed = told if isinstance(told, EngineFailed) else EngineFailed(told.message)
    if failed.is_everywhere is None:
        failed.is_everywhere = not device.is_to_blame(error)
    return failed


def _as_job_error(error: BaseException, doing: str) -> JobError:
    """Return an error that the parent can raise; log one that no engine should have let through."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(f"the engine ran out of memory while {doing}")
    log.error("engine.unexpected", exc_info=error, extra={"doing": doing})
    return EngineFailed(f"the engine failed while {doing}: {type(error).__name__}")


def _leave(status: int) -> None:
    """End without waiting for an engine's threads, which may be in the middle of a computation."""
    logging.shutdown()
    os._exit(status)
