"""A small real Celery app for the pool's tests; tasks tell what happens to them in a Redis list.

Loaded by a worker process, `celery -A tests.support.pool_app worker`, with POOL_APP_URL, _PREFIX,
_BOOT and so on in its environment. The tests make the same app and send tasks by name.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable
from typing import Any

import redis
import redis.asyncio
from celery import Celery, signals
from celery.exceptions import Ignore

from worker.pool import AsyncPool, PoolOptions, configure
from worker.pool_run import current_request

WAIT_S = 30  # no wait of a task is longer; tests release or cancel them long before


def make_app(url: str, prefix: str) -> Celery:
    app = Celery("pool_app", broker=url, set_as_current=False)
    app.conf.update(
        result_backend=url,
        result_backend_transport_options={"global_keyprefix": prefix},
        broker_transport_options={
            "global_keyprefix": prefix,
            "visibility_timeout": 3600,
        },
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_default_queue="q",
        task_ignore_result=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_consumer=os.environ.get("POOL_APP_CONSUMER", "celery.worker.consumer:Consumer"),
        worker_pool=os.environ.get("POOL_APP_POOL", "worker.pool:AsyncPool"),
        worker_prefetch_multiplier=1,
    )
    return app


URL, PREFIX = os.environ.get("POOL_APP_URL", ""), os.environ.get("POOL_APP_PREFIX", "")
app = make_app(URL, PREFIX)
client = redis.asyncio.Redis.from_url(
    URL or "redis://127.0.0.1:1", decode_responses=True, socket_timeout=60
)


async def tell(what: str) -> None:
    await unbroken(client.rpush(f"{PREFIX}told:{what}", "1"))


async def unbroken(call: Awaitable[Any]) -> None:
    """Await a call to Redis; a cancel meanwhile counts, whatever redis-py makes of it."""
    await asyncio.shield(asyncio.ensure_future(call))


pools: list[AsyncPool] = []
consumers: list[Any] = []
signals.worker_ready.connect(lambda sender, **_: consumers.append(sender), weak=False)


class Interrupting:
    """A lock whose first holder is interrupted by one more SIGTERM."""

    def __init__(self, lock: Any) -> None:
        self._lock, self._is_due = lock, True

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._is_due:
            self._is_due = False
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


async def boot(pool: AsyncPool) -> None:
    pools.append(pool)
    await tell("booting")
    match os.environ.get("POOL_APP_BOOT"):
        case "hangs":
            try:
                await asyncio.sleep(WAIT_S)
            finally:
                await tell("boot cancelled")
        case "fails":
            raise RuntimeError("no such model")
        case "impatient":
            signals.worker_shutting_down.lock = Interrupting(signals.worker_shutting_down.lock)
    await tell(f"booted with {pool.limit}")


async def shut_down(pool: AsyncPool) -> None:
    await tell(f"shut down with {pool.in_flight} in flight")


configure(
    app,
    PoolOptions(
        boot=boot,
        shutdown=shut_down,
        drain_s=float(os.environ.get("POOL_APP_DRAIN_S", "20")),
        hand_back_s=float(os.environ.get("POOL_APP_HAND_BACK_S", "5")),
    ),
)


@app.task(name="echo")
async def echo(value: Any) -> Any:
    return value


@app.task(name="leave_tickets")
async def leave_tickets() -> None:
    """Take no tickets until a push to `go:<id>`."""
    request = current_request.get()
    pools[0].on_hub(consumers[0].take, False)
    await tell("leaving")
    await client.blpop([f"{PREFIX}go:{request.id}"], timeout=WAIT_S)
    pools[0].on_hub(consumers[0].take, True)


@app.task(name="hold")
async def hold(when_cancelled: str = "raise") -> str:
    """Wait for a push to `go:<id>`."""
    request = current_request.get()
    try:
        await tell(f"{request.id} started")  # whoever hears it may cancel before the next line
        await unbroken(
            client.blpop([f"{PREFIX}go:{request.id}", f"{PREFIX}go:all"], timeout=WAIT_S)
        )
    except asyncio.CancelledError:
        await tell(f"{request.id} cancelled: {request.cancel_reason}")
        match when_cancelled:
            case "ignore":
                raise Ignore from None
            case "return":
                return "stopped early"
            case "fail":
                raise ValueError("cleaning up went wrong") from None
            case "stay":
                await asyncio.sleep(WAIT_S)
            case "refuse":
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(WAIT_S)
        raise
    await tell(f"{request.id} done")
    return "done"


@app.task(name="fail")
async def fail(kind: str) -> None:
    raise {
        "value": ValueError("bad value"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "memory": MemoryError(),
        "cancelled": asyncio.CancelledError(),
    }[kind]


@app.task(name="exit_in_subtask")
async def exit_in_subtask() -> str:
    async def leave() -> None:
        raise SystemExit(4)

    subtask = asyncio.create_task(leave())
    await asyncio.wait([subtask])
    return type(subtask.exception()).__name__


@app.task(name="flaky", autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0)
async def flaky(failures: int) -> int:
    retries = current_request.get().retries
    if retries < failures:
        raise ValueError(f"attempt {retries}")
    return retries


@app.task(name="rate_limited", rate_limit="5/s")
async def rate_limited() -> None:
    return None


class Engine:
    """Fails everyone who waits for it with one and the same exception."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    async def answer(self, needed: int) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        if len(self.waiting) == needed:
            error = RuntimeError("engine died")
            for waiter in self.waiting:
                waiter.set_exception(error)
        await future


engine = Engine()


@app.task(name="share_an_error")
async def share_an_error(needed: int, *, is_patient: bool) -> None:
    """Fail together; the others report once the patient ones are cleaning up."""
    try:
        await engine.answer(needed)
    except RuntimeError:
        await tell("patient" if is_patient else "others")
        await client.blpop([f"{PREFIX}go:{'patient' if is_patient else 'others'}"], timeout=WAIT_S)
        if is_patient:
            await tell("cleaned up")
        raise


@app.task(name="block_the_loop")
async def block_the_loop() -> None:
    await tell("blocking")
    with redis.Redis.from_url(URL, socket_timeout=60) as blocking:
        blocking.blpop([f"{PREFIX}go:unblock"], timeout=WAIT_S)


@app.task(name="plain")
def plain(value: Any) -> list[Any]:
    return [value, threading.current_thread().name, current_request.get().id]


@app.task(name="plain_hold")
def plain_hold() -> None:
    """Block a thread for longer than any test."""
    with redis.Redis.from_url(URL, socket_timeout=60) as blocking:
        blocking.rpush(f"{PREFIX}told:plain started", "1")
        blocking.blpop([f"{PREFIX}go:plain"], timeout=WAIT_S)


@app.task(name="delivery_tag")
async def delivery_tag() -> bool:
    return bool(await client.hexists(f"{PREFIX}unacked", current_request.get().delivery_tag))
