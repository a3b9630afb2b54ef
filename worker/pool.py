"""Our Celery pool: `async def` tasks on one asyncio loop, with every Celery feature at work.

    celery worker -P custom        with CELERY_CUSTOM_WORKER_POOL=worker.pool:AsyncPool

or `worker_pool = "worker.pool:AsyncPool"` in the app's configuration. Plain functions run in
threads, by Celery's own tracer.

Two threads share the work. The *hub* is the worker's main thread: Celery's consumer and the broker
connection live there, and Celery is called back there only. The *loop* is where the tasks run. Hub
to loop goes by `call_soon_threadsafe`, loop to hub by the outbox.

With `acks_late` and a prefetch multiplier of 1 exactly `-c` tasks are in flight; with early
acknowledgement, Celery's default, the whole queue would be. The broker must have an event loop:
Redis or RabbitMQ.
"""

import asyncio
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured
from celery.worker import state
from kombu.asynchronous import get_event_loop

from worker.pool_loop import DaemonThreads, LoopThread, Outbox
from worker.pool_run import CancelReason, Report, Run, TaskRequest, current_request
from worker.pool_tracer import CoroutineTracer, FunctionTracer, Tracer

log = logging.getLogger(__name__)

LOOK_S = 0.1  # how often a boot looks for a shutdown request
FIRST_PID = 1 << 22  # Linux gives out no process ids from here on: a stray kill hits nobody


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a pool starts and stops.

    Attributes:
        boot: runs on the loop before anything is consumed. An error ends the worker with exit
            status 1; SIGTERM cancels it.
        shutdown: runs on the loop once no task is left, also after a boot that did not succeed.
        drain_s: how long running tasks may go on after SIGTERM.
        hand_back_s: how long they may take to end once cancelled; nobody is waited for after that.
        close_s: how long `shutdown` may take.
    """

    boot: "Callable[[AsyncPool], Coroutine[Any, Any, None]] | None" = None
    shutdown: "Callable[[AsyncPool], Coroutine[Any, Any, None]] | None" = None
    drain_s: float = 30.0
    hand_back_s: float = 5.0
    close_s: float = 10.0


def configure(app: Any, options: PoolOptions) -> None:
    """Give an app's pool its options; where the app is made, before the worker starts."""
    app.pool_options = options


class AsyncPool(BasePool):  # type: ignore[misc]  # celery ships no types
    """Runs tasks for one Celery worker, which makes, starts and stops it.

    SIGTERM lets running tasks go on for `drain_s` and then cancels them; a second SIGTERM, SIGQUIT
    or a second Ctrl-C cancels at once. See `CancelReason.SHUTDOWN` for what becomes of messages.
    """

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = False

    @property
    def loop_lag_s(self) -> float:
        """Seconds for which the loop has been overdue: grows while a task blocks it."""
        return self._loop.lag_s

    @property
    def in_flight(self) -> int:
        """How many tasks are in the pool."""
        return len(self._runs)

    def on_start(self) -> None:
        """Start the loop and boot. Celery starts to consume once this returns."""
        if self.options.get("threads"):
            raise ImproperlyConfigured("AsyncPool needs Redis or RabbitMQ as its broker")
        self._set_up()
        self._loop.start()
        # Sent by signal handlers: a second SIGTERM may interrupt the first while it has the lock.
        signals.worker_shutting_down.lock = threading.RLock()
        signals.worker_shutting_down.connect(self._on_shutdown_signal)
        try:
            self._boot()
        except BaseException:
            self._close()
            raise

    def _set_up(self) -> None:
        self._options: PoolOptions = getattr(self.app, "pool_options", PoolOptions())
        self._hub: Any = get_event_loop()
        self._loop = LoopThread()
        self._outbox = Outbox()
        self._threads = DaemonThreads(self.limit, "pool-task")
        self._blocking = DaemonThreads(1, "pool-backend")
        self._runs: dict[int, Run] = {}
        self._pids = itertools.count(FIRST_PID)
        self._tracers: dict[str, Tracer] = {}
        self._sigterms = 0
        self._is_ordered = self._is_draining = self._is_handing_back = self._has_given_up = False

    def _boot(self) -> None:
        if self._options.boot is None:
            return
        booting = self._loop.submit(self._options.boot(self))
        try:
            while not booting.done():
                state.maybe_shutdown()  # raises what a signal asked for
                wait([booting], LOOK_S)
            booting.result()
        finally:
            booting.cancel()

    def register_with_event_loop(self, hub: Any) -> None:
        """Listen on the hub. Celery calls this again after each reconnect."""
        self._hub = hub
        hub.add_reader(self._outbox, self._outbox.deliver)

    def on_hub(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the hub, where Celery may be called, soon. From any thread."""
        self._outbox.post(function, *args)

    def on_apply(  # noqa: PLR0917 - Celery's signature
        self,
        target: Callable[..., Report],
        args: Any,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        timeout_callback: Any = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Run | None:
        """Take a task. One that slips in while the pool closes goes back with the channel."""
        if not self.active or self._is_handing_back:
            return None
        name, task_id, headers, *body = args
        run = Run(
            pid=next(self._pids),
            request=_request(name, task_id, headers),
            headers=headers,
            body=tuple(body),
            target=functools.partial(target, *args, **(kwargs or {})),
            on_end=callback,
            on_timeout=timeout_callback,
            soft_limit_s=soft_timeout,
            hard_limit_s=timeout,
        )
        self._runs[run.pid] = run
        accept_callback(run.pid, time.monotonic())  # the pid is what revoke will come with
        self._loop.call(self._spawn, run)
        return run

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Cancel a task: revoke(terminate=True), or any task at a cold shutdown.

        By way of the outbox: the two can be told apart once the shutdown's signal handler is over.
        """
        self._outbox.post(self._terminate, pid, signal)

    def _terminate(self, pid: int, signal: int | None) -> None:
        run = self._runs.get(pid)
        if run is not None and self.active:
            run.signal = signal
            self._loop.call(run.cancel, CancelReason.TERMINATED)

    def _spawn(self, run: Run) -> None:
        run.task = self._loop.loop.create_task(self._perform(run), name=run.request.id)

    async def _perform(self, run: Run) -> None:
        current_request.set(run.request)
        self._set_limits(run)
        report = None
        try:
            report = await self._tracer(run.request.name).trace(run)
        finally:
            self._outbox.post(self._end, run, report)

    def _tracer(self, name: str) -> Tracer:
        tracer = self._tracers.get(name)
        if tracer is None:
            tracer = self._tracers[name] = self._make_tracer(self.app.tasks[name])
        return tracer

    def _make_tracer(self, task: Any) -> Tracer:
        # Celery's autoretry wraps `run` in a plain function and keeps the original beside it.
        if asyncio.iscoroutinefunction(getattr(task, "_orig_run", task.run)):
            return CoroutineTracer(self.app, task, self._blocking)
        return FunctionTracer(self.app, task, self._blocking, self._threads)

    def _set_limits(self, run: Run) -> None:
        limits = (
            (CancelReason.SOFT_LIMIT, run.soft_limit_s),
            (CancelReason.HARD_LIMIT, run.hard_limit_s),
        )
        for reason, limit_s in limits:
            if limit_s:
                timer = self._loop.loop.call_later(limit_s, self._limit, run, reason, limit_s)
                run.timers.append(timer)

    def _limit(self, run: Run, reason: CancelReason, limit_s: float) -> None:
        if run.cancel(reason):
            self._outbox.post(run.on_timeout, reason is CancelReason.SOFT_LIMIT, limit_s)

    def _end(self, run: Run, report: Report | None) -> None:
        del self._runs[run.pid]
        if report is not None:
            run.on_end(report)

    def on_stop(self) -> None:
        """Drain; or only order the hand-back, from the signal handler of a cold shutdown.

        That handler may have interrupted anything, Celery's event dispatcher with its lock held for
        one: whoever turns the hub there waits for ever. What it interrupted comes back here, or is
        our drain already, or ends in `on_terminate`.
        """
        if state.should_terminate and not self._is_ordered:
            self._order_hand_back()
        elif not self._is_draining:
            self._drain()

    def on_terminate(self) -> None:
        """Finish a cold shutdown."""
        self._order_hand_back()
        self._drain()

    def _order_hand_back(self) -> None:
        self._is_ordered = True
        self._outbox.post(self._hand_back)

    def _on_shutdown_signal(self, sig: str = "", **_: Any) -> None:
        self._sigterms += sig == "SIGTERM"
        if self._sigterms > 1:
            self._outbox.post(self._hand_back)  # a handler, too

    def _drain(self) -> None:
        """Wait for the tasks, bounded. The hub goes on: acks go out, late deliveries go back."""
        self._is_draining = True
        self._hub.call_later(self._options.drain_s, self._hand_back)
        while self._runs and not self._has_given_up:
            self._turn_hub()
        if self._runs:
            log.error("pool.gave_up", extra={"tasks": len(self._runs)})
        self._outbox.wake()
        self._turn_hub()  # the last acks, before a shutdown hook that takes its time
        self._close()

    def _turn_hub(self) -> None:
        try:
            self._hub.run_once()
        except Exception:  # the broker is gone; each ack tries a connection of its own
            log.warning("pool.drains_without_broker", exc_info=True)
            self._hub.reset()
            self.register_with_event_loop(self._hub)
            time.sleep(LOOK_S)  # the next turn may fail at once again

    def _hand_back(self) -> None:
        self._is_handing_back = True
        self._loop.call(self._cancel_all)
        self._hub.call_later(self._options.hand_back_s, self._give_up)

    def _cancel_all(self) -> None:
        for run in list(self._runs.values()):
            run.cancel(CancelReason.SHUTDOWN)

    def _give_up(self) -> None:
        self._has_given_up = True

    def _close(self) -> None:
        """Run the shutdown hook, bounded, and end the loop."""
        if self._options.shutdown is not None:
            closing = self._loop.submit(self._options.shutdown(self))
            try:
                closing.result(self._options.close_s)
            except Exception:  # TimeoutError too: the process ends all the same
                log.exception("pool.shutdown_failed")
        self._loop.close()
        self._hub.remove(self._outbox)
        self._outbox.close()

    def _get_info(self) -> dict[str, Any]:
        info = {"in-flight": self.in_flight, "loop-lag-s": round(self.loop_lag_s, 3)}
        return {**super()._get_info(), **info}


def _request(name: str, task_id: str, headers: dict[str, Any]) -> TaskRequest:
    return TaskRequest(
        id=task_id,
        name=name,
        retries=headers.get("retries") or 0,
        delivery_tag=str(headers["properties"].get("delivery_tag", "")),
    )
