"""The pool of reading processes, as the engine process sees it: one await per prompt.

LMDeploy preprocesses pictures on one thread beside its engine's loop. Here that loop writes a
prompt's few kilobytes of JPEG to one of several processes, and maps the tensors that come back.
"""

import asyncio
import contextlib
import logging
import os
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from enum import Enum, auto
from itertools import count
from typing import TYPE_CHECKING, Any

from worker.contract.errors import EngineDied, EngineFailed, JobError
from worker.contract.log import event
from worker.engine.base import EngineOptions, Turn
from worker.engine.child_process import command
from worker.engine.lmdeploy import parcel
from worker.engine.lmdeploy.reading_process import READY, TICKET
from worker.engine.wire import Outbox

if TYPE_CHECKING:
    from worker.engine.lmdeploy.reading import Read, ReaderSpec

MAX_TRIES = 2
"""How many processes a prompt may take down: its own fault is certain with the second."""
_STDERR = 2
# No GPU. And what a picture took stays with the process for the next one: a tensor of megabytes
# would come from the system each time, page by page, which takes longer than to compute it.
_ENVIRON = (
    "CUDA_VISIBLE_DEVICES=",
    "MALLOC_MMAP_THRESHOLD_=33554432",
    "MALLOC_TRIM_THRESHOLD_=268435456",
)

_log = logging.getLogger(__name__)


class Readers:
    """`size` processes that read prompts for one engine. One event loop owns it."""

    def __init__(self, size: int, log_level: str = "INFO") -> None:
        self._size = size
        self._log_level = log_level
        self._spec: ReaderSpec | None = None
        self._started: list[_Child] = []
        self._children: list[_Child] = []  # those that have opened the model
        self._alive: set[_Child] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._coming = 0  # that are to replace one that ended
        self._came = asyncio.Event()
        self._is_closed = False

    async def start(self) -> None:
        """Start the processes. They import LMDeploy, which takes seconds, while others go on."""
        self._started = [await self._spawn() for _ in range(self._size)]

    async def open(self, spec: "ReaderSpec") -> None:
        """Return once all have opened the model's preprocessing.

        Raises:
            EngineFailed: one could not; the sentence says why.
        """
        self._spec = spec
        started, self._started = self._started, []
        await asyncio.gather(*(self._open(child) for child in started))

    async def read(self, turns: Sequence[Turn], options: EngineOptions) -> "Read":
        """Return a prompt as the engine takes it.

        Raises:
            EngineFailed, OutOfMemory: this prompt alone cannot be read.
            EngineDied: no process is left, or the pool was closed.
        """
        tries = 0
        while tries < MAX_TRIES:
            child = await self._least_busy()
            answer: Read | JobError | _Lost = await child.ask(tuple(turns), options)
            if isinstance(answer, JobError):
                raise answer
            if not isinstance(answer, _Lost):
                return answer
            tries += answer is _Lost.IN_WORK
        raise EngineFailed(
            "preparing this prompt ended the process that did it: its pictures or its JSON schema "
            "take too long, or too much memory"
        )

    async def close(self) -> None:
        """End all processes; whoever waits for one hears EngineDied."""
        self._is_closed = True
        for child in self._alive:
            child.kill()
        if self._watching:
            await asyncio.wait(self._watching)

    @property
    def pids(self) -> list[int]:
        """The living processes' ids."""
        return [child.pid for child in self._children]

    async def _least_busy(self) -> "_Child":
        """Return the process with the least to do; while all are being replaced, wait for one."""
        while self._coming and not self._children and not self._is_closed:
            self._came.clear()
            await self._came.wait()
        if self._is_closed or not self._children:
            raise EngineDied("no process is left that could prepare prompts", was_inside=False)
        return min(self._children, key=lambda one: len(one.waiting))

    async def _spawn(self) -> "_Child":
        child = await _Child.spawn(self._log_level)
        self._alive.add(child)
        if self._is_closed:
            child.kill()
        watching = asyncio.create_task(self._watch(child))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return child

    async def _open(self, child: "_Child") -> None:
        error = await child.open(self._spec)
        if error is not None:
            child.kill()
            raise error
        self._children.append(child)

    async def _watch(self, child: "_Child") -> None:
        """Replace a process that ends; one that cannot even open the model is not replaced."""
        status = await child.ended()
        self._alive.discard(child)
        if child not in self._children:
            return
        self._children.remove(child)
        if self._is_closed:
            return
        event(_log, "reader.ended", level=logging.WARNING, pid=child.pid, status=status)
        self._coming += 1
        try:
            await self._open(await self._spawn())
        except JobError as error:
            event(_log, "reader.lost", level=logging.ERROR, reason=error.message)
        finally:
            self._coming -= 1
            self._came.set()


class _Lost(Enum):
    """Where a prompt was when its process ended: in work, and so perhaps to blame, or behind it."""

    IN_WORK = auto()
    IN_LINE = auto()


class _Child:
    """One life of a reading process. Its futures carry values: `_Lost` means that it is gone.

    `waiting` has what it was asked and has not answered, in the order in which it does; also what
    nobody waits for any more.
    """

    def __init__(self, process: Process, outbox: Outbox, told: socket.socket) -> None:
        self.pid = process.pid
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self._process = process
        self._outbox = outbox
        self._told = told
        self._numbers = count(1)

    @classmethod
    async def spawn(cls, log_level: str) -> "_Child":
        """Start a process that waits for what to open. It sees no GPU."""
        asking, asked = socket.socketpair()
        hearing, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked, told, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(asking)
            unless_started.enter_context(hearing)
            process = await asyncio.create_subprocess_exec(
                "env",
                *_ENVIRON,
                *command(
                    "worker.engine.lmdeploy.reading_process",
                    *map(str, (asked.fileno(), told.fileno(), os.getpid(), log_level)),
                ),
                stdin=DEVNULL,
                stdout=_STDERR,
                pass_fds=[asked.fileno(), told.fileno()],
            )
            unless_started.pop_all()
        _, writer = await asyncio.open_connection(sock=asking)
        hearing.setblocking(False)
        child = cls(process, Outbox(writer), hearing)
        asyncio.get_running_loop().add_reader(hearing, child._hear)
        return child

    async def open(self, spec: "ReaderSpec | None") -> JobError | None:
        """Send what to open; return None once that is done, else why it cannot be."""
        opened = self._expect(READY)
        self._outbox.post(spec)
        answer = await opened
        if isinstance(answer, _Lost):
            said = "a process that prepares prompts ended while it opened the model"
            return EngineFailed(said, is_everywhere=False)
        return answer if isinstance(answer, JobError) else None

    async def ask(self, turns: tuple[Turn, ...], options: EngineOptions) -> Any:
        """Return a `Read`, a JobError, or `_Lost` where the process ended meanwhile."""
        number = next(self._numbers)
        answer = self._expect(number)
        self._outbox.post((number, turns, options))
        return await answer

    async def ended(self) -> int:
        """Wait until the process is gone and everybody who waited for it knows."""
        status = await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._told)
        self._hear()  # its last words
        self._told.close()
        self._outbox.close()
        for place, answer in enumerate(self.waiting.values()):
            if not answer.done():
                answer.set_result(_Lost.IN_LINE if place else _Lost.IN_WORK)
        return status

    def kill(self) -> None:
        """Send SIGKILL if it is not gone yet."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _expect(self, number: int) -> asyncio.Future[Any]:
        answer = self.waiting[number] = asyncio.get_running_loop().create_future()
        return answer

    def _hear(self) -> None:
        while True:
            try:
                ticket, held, _, _ = socket.recv_fds(self._told, TICKET.size, 1)
            except (BlockingIOError, ConnectionError):
                return
            if not ticket:
                asyncio.get_running_loop().remove_reader(self._told)
                return
            self._take(TICKET.unpack(ticket)[0], held[0])

    def _take(self, number: int, descriptor: int) -> None:
        """Open a parcel; one for a prompt that was cancelled is only closed."""
        try:
            answer = self.waiting.pop(number)
            if not answer.done():
                answer.set_result(parcel.unpack(descriptor))
        except OSError as error:  # no memory to map it into
            answer.set_result(EngineFailed(f"the prepared prompt cannot be taken: {error}"))
        finally:
            os.close(descriptor)
