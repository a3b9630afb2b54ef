"""The pool's threads: one with the asyncio loop, some for blocking calls, and the way to the hub.

All are daemons. `concurrent.futures` joins its threads when the interpreter exits, which would turn
one stuck call into a shutdown without an end.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop  # type: ignore[assignment]  # either is an event loop

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

BEAT_S = 0.1  # how often the loop shows that it lives
WIND_UP_S = 1.0  # how long left-over tasks may take to end once cancelled


class LoopThread:
    """An asyncio loop in a thread, uvloop's where that is installed."""

    def __init__(self) -> None:
        self.loop = new_event_loop()
        self._beat_at = time.monotonic()
        self._is_closing = False
        self._thread = threading.Thread(target=self._live, name="pool-loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def lag_s(self) -> float:
        """Seconds for which the loop has been overdue: grows while something blocks it."""
        return max(0.0, time.monotonic() - self._beat_at - BEAT_S)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop, soon. From any thread or signal handler."""
        self.loop.call_soon_threadsafe(function, *args)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop. From any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        """Cancel what is left and end the thread; a thread that is stuck is left behind."""
        self._is_closing = True
        self.call(self.loop.stop)
        self._thread.join(2 * WIND_UP_S)

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._beat)
        while not self._is_closing:
            try:
                self.loop.run_forever()
            except BaseException:  # a subtask of a task raised SystemExit: the others go on
                log.exception("pool.loop_interrupted")
        self.loop.run_until_complete(_wind_up())
        self.loop.close()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self.loop.call_later(BEAT_S, self._beat)


async def _wind_up() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=WIND_UP_S)


class Outbox:
    """Calls for the hub's thread, made there in order. A file for its poller.

    Not `hub.call_soon()`: what a call queues there itself, as every acknowledgement is, would wait
    for the next poll, up to a second. No lock either: signal handlers post as well.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Return what becomes readable when there is something to deliver."""
        return self._reader.fileno()

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Queue a call. From any thread or signal handler."""
        self._calls.append((function, args))
        self.wake()

    def wake(self) -> None:
        """Have the hub's poller return at once."""
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(OSError):  # full, which wakes as well; or closed
                self._writer.send(b"\0")

    def deliver(self) -> None:
        """Make the calls. Raises nothing: an error would end the hub."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        self._is_woken = False  # before the calls are read: one posted meanwhile wakes again
        while self._calls:
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                log.exception("pool.callback_failed")

    def close(self) -> None:
        """Give the sockets back; what is posted from here on is never called."""
        self._reader.close()
        self._writer.close()


class DaemonThreads(Executor):
    """At most `limit` threads; another one is started when a call finds none idle."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue a call. From the loop's thread alone."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            _settle(*self._calls.get())
            self._idle.release()


def _settle(future: "Future[Any]", call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whoever awaits the future gets it, SystemExit too
        future.set_exception(error)
