"""Celery as the waker of workers: the app, the names of tasks and queues, and sending tickets.

A ticket is a hint with the job id as its only argument and, for the model's queue, as its task id,
so that Flower shows a job under its own id; one for callbacks names a lane instead. It may be lost,
late or doubled: claims make that harmless and the sweeper sends new ones.
"""

import asyncio
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any

from celery import Celery
from kombu.entity import Exchange, Queue

from worker.contract import broker_redis, keys
from worker.contract.job import Lane, Priority
from worker.contract.log import event as log_event
from worker.contract.settings import Settings

CHAT_TASK = "forebay.chat"
MEDIA_TASK = "forebay.media"
HOOK_TASK = "forebay.webhook"
_URGENT = 0  # the recovery lane: tickets sent again are served before all others
_USUAL = 5
_BATCH = 200  # tickets per round trip to the broker
_OWN_EXPIRES_S = 60.0  # a worker's own queue that nobody reads is gone after this
_WEIGHTS = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}

_log = logging.getLogger(__name__)


class WeightedCycle:
    """The order in which kombu looks at queues: 16 high to 4 normal to 1 low while all wait.

    Smooth weighted round robin: each look adds a queue's weight to its credit, and the one served
    pays the sum of all weights. So urgent work goes first, and low work is never starved: it gets
    at least one turn in 21. A worker's own queue comes before all and takes nobody's turn: who has
    few jobs alone is sent tickets there.
    """

    def __init__(self, it: Sequence[str] | None = None) -> None:
        self._credit: dict[str, float] = dict.fromkeys(it or (), 0.0)

    def update(self, it: Sequence[str]) -> None:
        """Take over a changed set of queues."""
        self._credit = {name: self._credit.get(name, 0.0) for name in it}

    def consume(self, n: int) -> list[str]:
        """Return the queues, the one to be served first in front."""
        return sorted(self._credit, key=self._place)[:n]

    def _place(self, name: str) -> tuple[bool, float]:
        return not keys.is_own_queue(name), -(self._credit[name] + _weight(name))

    def rotate(self, last_used: str) -> None:
        """Note which queue gave a message."""
        if last_used not in self._credit or keys.is_own_queue(last_used):
            return
        total = sum(map(_weight, self._credit))
        for name in self._credit:
            # An empty queue must not save up turns, nor a served one sink without end.
            self._credit[name] = min(self._credit[name] + _weight(name), total)
        self._credit[last_used] = max(self._credit[last_used] - total, -total)


@cache
def _weight(queue_name: str) -> int:
    if keys.is_own_queue(queue_name):
        return 0
    suffix = queue_name.rsplit(".", 1)[-1]
    return _WEIGHTS[Priority(suffix)] if suffix in list(Priority) else _WEIGHTS[Priority.NORMAL]


def make_app(settings: Settings) -> Celery:
    """Return the Celery app, configured as the queue needs it."""
    app = Celery("forebay", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        # A ticket is acknowledged when its job is over or handed back, so at most `concurrency`
        # are out, and a killed worker's are delivered again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,  # the record is the result
        task_default_queue=keys.MEDIA_QUEUE,
        task_create_missing_queues=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # whoever watches us would only start us again
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the fence settles doubles
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        task_send_sent_event=False,
        task_publish_retry_policy={"max_retries": 3, "interval_max": 0.5},
    )
    if settings.broker_url.startswith(("redis", "valkey", "unix")):
        broker_redis.register()
        app.conf.broker_transport_options = _redis_options(settings)
        # A Redis that refuses writes, as with a full disk, is one that is away: it comes back.
        app.conf.broker_channel_error_retry = True
    else:
        app.conf.task_queue_max_priority = 10
    return app


def _redis_options(settings: Settings) -> dict[str, Any]:
    return {
        "global_keyprefix": settings.key_prefix,
        "visibility_timeout": 6 * 3600,  # a garbage collector only: leases do the recovery
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,
        "socket_timeout": 10,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "priority_steps": [_URGENT, _USUAL],
        "queue_order_strategy": "worker.contract.broker:WeightedCycle",
    }


def queues_of(lane: Lane, model: str = "") -> list[str]:
    """Return the queues that a worker of a lane listens to."""
    return [keys.MEDIA_QUEUE] if lane is Lane.MEDIA else list(keys.chat_queues(model))


def own_queue(app: Celery, model: str, owner: str) -> str:
    """Make a chat worker's own queue known to its app; return the name to listen to."""
    name = keys.own_queue(model, owner)
    app.amqp.queues[name] = _own(name)  # not by `add`, which would bind it to an exchange for ever
    return name


def _own(name: str) -> Queue:
    """Describe a worker's own queue.

    What is in it need not be acknowledged: it is a hint to a job that the outbox holds as well. If
    it were, tickets of a dead worker would come back, hours later, to a queue that nobody reads.
    """
    anonymous = Exchange("")  # type: ignore[no-untyped-call]  # kombu leaves both untyped
    return Queue(  # type: ignore[no-untyped-call]
        name, anonymous, routing_key=name, expires=_OWN_EXPIRES_S, no_ack=True
    )


def task_id_of(job_id: str, queue_name: str) -> str:
    """Return the ticket's task id: the job id for a model's queue, marked for the media queue.

    A lane has many tickets in its life, so each is marked by chance.
    """
    if queue_name == keys.HOOK_QUEUE:
        return f"{job_id}.{secrets.token_hex(4)}"
    return f"{job_id}.media" if queue_name == keys.MEDIA_QUEUE else job_id


class Tickets:
    """Sends tickets from a thread of its own, as many per round trip as are waiting.

    `on_sent` is called on the caller's loop with (job id, queue) of the tickets that the broker has
    taken. What could not be sent is logged and left: it stands in the outbox, and the sweeper sends
    it.
    """

    def __init__(
        self,
        app: Celery,
        on_sent: Callable[[Sequence[tuple[str, str]]], Coroutine[Any, Any, None]],
    ) -> None:
        self._app = app
        self._on_sent = on_sent
        self._waiting: queue.SimpleQueue[tuple[str, str, bool] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tickets")
        self._thread.start()

    def send(self, job_id: str, queue_name: str, *, urgent: bool = False) -> None:
        """Put a ticket into the broker soon; `urgent` before all that wait."""
        self._waiting.put((job_id, queue_name, urgent))

    def wake(self, lanes: Sequence[str]) -> None:
        """Send each of these lanes of callbacks a ticket; see `RedisDoor.on_owed`."""
        for lane in lanes:
            self.send(lane, keys.HOOK_QUEUE)

    async def close(self) -> None:
        """Send what waits, then end the thread."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, 5)

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, more = [first], True
            while more and len(batch) < _BATCH and not self._waiting.empty():
                item = self._waiting.get()
                more = item is not None
                if item is not None:
                    batch.append(item)
            self._publish(batch)
            if not more:
                return

    def _publish(self, batch: list[tuple[str, str, bool]]) -> None:
        try:
            with self._app.producer_or_acquire() as producer, producer.batch():
                for job_id, queue_name, urgent in batch:
                    send_ticket(self._app, producer, job_id, queue_name, urgent=urgent)
        except Exception:  # noqa: BLE001 - whatever the transport raises: the outbox has these jobs
            _log.exception("tickets.unsent", extra={"count": len(batch)})
            return
        sent = [(job_id, name) for job_id, name, _ in batch if name != keys.HOOK_QUEUE]
        asyncio.run_coroutine_threadsafe(self._confirm(sent), self._loop)

    async def _confirm(self, sent: Sequence[tuple[str, str]]) -> None:
        try:
            await self._on_sent(sent)
        except Exception as error:  # noqa: BLE001 - the outbox keeps them: doubled, not lost
            log_event(_log, "tickets.unconfirmed", level=logging.WARNING, reason=repr(error))


def send_ticket(app: Celery, producer: Any, job_id: str, queue_name: str, *, urgent: bool) -> None:
    """Publish one ticket through a producer."""
    tasks = {keys.MEDIA_QUEUE: MEDIA_TASK, keys.HOOK_QUEUE: HOOK_TASK}
    app.send_task(
        tasks.get(queue_name, CHAT_TASK),
        args=(job_id,),
        task_id=task_id_of(job_id, queue_name),
        priority=_priority(app, urgent=urgent),
        producer=producer,
        **_destination(app, queue_name),
    )


def _destination(app: Celery, queue_name: str) -> dict[str, Any]:
    """Return where a ticket goes, and what has to be declared for that.

    A worker's own queue is the worker's to declare: RabbitMQ drops what comes when it is gone. On
    Redis, where declaring makes nothing, it has the list expire that a ticket for the dead makes.
    """
    if not keys.is_own_queue(queue_name):
        return {"queue": queue_name}
    queue = _own(queue_name)
    return {"queue": queue, "declare": [] if _is_amqp(app) else [queue]}


def _is_amqp(app: Celery) -> bool:
    return app.conf.task_queue_max_priority is not None


def _priority(app: Celery, *, urgent: bool) -> int:
    """Return the transport's number: Redis serves the lowest first, AMQP the highest."""
    usual_first = app.conf.broker_transport_options.get("priority_steps")
    if usual_first:
        return _URGENT if urgent else _USUAL
    return 9 if urgent else 1


def depth(app: Celery, queue_name: str) -> int:
    """Return how many tickets wait in a broker queue; 0 where it does not exist."""
    is_amqp = _is_amqp(app)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        try:
            # kombu's Redis transport answers "passive" only for queues declared on this channel.
            return int(channel.queue_declare(queue=queue_name, passive=is_amqp).message_count)
        except connection.channel_errors:
            return 0
