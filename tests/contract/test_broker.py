"""Tickets on the real broker, and the order in which a worker looks at its queues."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from celery import Celery

from tests.conftest import MakeSettings
from tests.support.factories import MODEL, submit
from tests.support.processes import until_async
from worker.contract import broker, keys
from worker.contract.broker import Tickets, WeightedCycle
from worker.contract.door import RedisDoor
from worker.contract.job import Lane, Priority
from worker.contract.store import JobStore
from worker.server import RunningServer

HIGH, NORMAL, LOW = keys.chat_queues(MODEL)
OWN = keys.own_queue(MODEL, "0123456789abcdef")


class Sent:
    """What the broker has confirmed, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, str]]] = []

    async def __call__(self, tickets: Sequence[tuple[str, str]]) -> None:
        self.batches.append(list(tickets))

    @property
    def count(self) -> int:
        return sum(map(len, self.batches))


@pytest.fixture
def app(make_settings: MakeSettings) -> Celery:
    return broker.make_app(make_settings())


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
async def tickets(app: Celery, sent: Sent) -> AsyncIterator[Tickets]:
    made = Tickets(app, sent)
    yield made
    await made.close()
    app.close()


def test_a_channel_keeps_its_client_until_its_connections_are_given_up(app: Celery):
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert second is first
        channel._disconnect_pools()  # as kombu does when it closes one
        with channel.conn_or_acquire() as later:
            assert later is not first
            assert later.ping()


def served(cycle: WeightedCycle, rounds: int, empty: Sequence[str] = ()) -> list[str]:
    """Return which queue gives a message, turn by turn, as kombu asks."""
    out = []
    for _ in range(rounds):
        name = next(q for q in cycle.consume(4) if q not in empty)
        cycle.rotate(name)
        out.append(name)
    return out


def test_full_queues_are_served_sixteen_to_four_to_one():
    names = served(WeightedCycle([LOW, NORMAL, HIGH]), 21 * 10)

    assert [names.count(name) for name in (HIGH, NORMAL, LOW)] == [160, 40, 10]


def test_low_work_gets_a_turn_in_every_round():
    names = served(WeightedCycle([HIGH, NORMAL, LOW]), 21 * 10)

    turns = [n for n, name in enumerate(names) if name == LOW]
    assert max(b - a for a, b in pairwise(turns)) <= 21


def test_the_most_urgent_queue_is_looked_at_first():
    assert WeightedCycle([LOW, HIGH, NORMAL]).consume(3) == [HIGH, NORMAL, LOW]


def test_an_empty_queue_saves_up_no_turns():
    cycle = WeightedCycle([HIGH, NORMAL, LOW])
    served(cycle, 1000, empty=[HIGH, NORMAL])

    names = served(cycle, 21)

    assert 14 <= names.count(HIGH) <= 18
    assert names.count(LOW) <= 2


def test_a_workers_own_queue_is_looked_at_first_and_takes_nobodys_turn():
    cycle = WeightedCycle([HIGH, OWN, NORMAL, LOW])

    names = served(cycle, 105, empty=[OWN])
    between = served(cycle, 10)
    names += served(cycle, 105, empty=[OWN])

    assert [names.count(name) for name in (HIGH, NORMAL, LOW)] == [160, 40, 10]
    assert between == [OWN] * 10


def test_a_model_whose_name_looks_like_a_workers_own_queue_has_shared_ones():
    names = (*keys.chat_queues("org/a.b@main"), keys.MEDIA_QUEUE, keys.HOOK_QUEUE)

    assert not any(keys.is_own_queue(name) for name in names)
    assert keys.is_own_queue(keys.own_queue("org/a.b@main", "0123"))


def test_queues_may_come_and_go():
    cycle = WeightedCycle([HIGH, LOW])
    cycle.rotate("gone")
    cycle.update([NORMAL, LOW])

    assert set(cycle.consume(5)) == {NORMAL, LOW}


def test_every_lane_has_its_queues():
    assert broker.queues_of(Lane.MEDIA) == ["media"]
    assert broker.queues_of(Lane.CHAT, "m") == ["chat.m.high", "chat.m.normal", "chat.m.low"]
    assert broker.task_id_of("job_1", NORMAL) == "job_1"
    assert broker.task_id_of("job_1", OWN) == "job_1"
    assert broker.task_id_of("job_1", keys.MEDIA_QUEUE) == "job_1.media"


async def test_tickets_reach_the_queue_and_are_confirmed(tickets: Tickets, sent: Sent, app: Celery):
    for n in range(500):
        tickets.send(f"job_{n}", NORMAL)
    await until_async(lambda: sent.count == 500)

    assert [i for batch in sent.batches for i, _ in batch] == [f"job_{n}" for n in range(500)]
    assert max(map(len, sent.batches)) <= 200
    assert len(sent.batches) < 100
    assert await asyncio.to_thread(broker.depth, app, NORMAL) == 500


async def test_an_urgent_ticket_is_served_before_all_that_wait(
    tickets: Tickets, sent: Sent, app: Celery
):
    tickets.send("job_1", NORMAL)
    tickets.send("job_2", NORMAL, urgent=True)
    await until_async(lambda: sent.count == 2)

    assert await asyncio.to_thread(_take, app, NORMAL, 2) == [("job_2",), ("job_1",)]


async def test_a_ticket_holds_the_id_and_nothing_else(tickets: Tickets, sent: Sent, app: Celery):
    tickets.send("job_1", keys.MEDIA_QUEUE)
    await until_async(lambda: sent.count == 1)

    ((headers, body),) = await asyncio.to_thread(_messages, app, keys.MEDIA_QUEUE, 1)

    assert (headers["id"], headers["task"]) == ("job_1.media", broker.MEDIA_TASK)
    assert body[:2] == [["job_1"], {}]


async def test_tickets_for_a_worker_that_is_gone_expire(
    tickets: Tickets, sent: Sent, door: RedisDoor
):
    for n in range(3):
        tickets.send(f"job_{n}", OWN)
        tickets.send(f"job_{n}", NORMAL)
        await until_async(lambda n=n: sent.count == 2 * n + 2)

    prefix = door.settings.key_prefix
    found = {key: await door.redis.ttl(key) for key in await door.redis.keys(f"{prefix}*")}

    (own,) = [key for key in found if key.startswith(prefix + OWN)]
    assert await door.redis.llen(own) == 3
    assert 0 < found[own] <= broker._OWN_EXPIRES_S
    assert [key for key in found if key.startswith(prefix + NORMAL) and found[key] == -1]
    assert not [key for key in found if "binding" in key and await mentions(door, key, OWN)]


async def mentions(door: RedisDoor, key: str, queue: str) -> bool:
    return any(queue in member for member in await door.redis.smembers(key))


async def test_a_ticket_from_a_workers_own_queue_does_not_come_back(
    tickets: Tickets, sent: Sent, app: Celery
):
    own = broker.own_queue(app, MODEL, "0123456789abcdef")
    for queue in (NORMAL, own):
        tickets.send("job_1", queue)
    await until_async(lambda: sent.count == 2)

    for queue in (NORMAL, own):
        await asyncio.to_thread(_listen, app, [queue], turns=1)

    left = [await asyncio.to_thread(broker.depth, app, queue) for queue in (NORMAL, own)]
    assert left == [1, 0]


async def test_a_workers_own_queue_is_bound_to_no_exchange(app: Celery, door: RedisDoor):
    name = broker.own_queue(app, MODEL, "0123456789abcdef")

    await asyncio.to_thread(_listen, app, [NORMAL, name])

    prefix = door.settings.key_prefix
    bindings = await door.redis.keys(f"{prefix}_kombu.binding.*")
    assert name == OWN
    assert [key for key in bindings if await mentions(door, key, NORMAL)]
    assert not [key for key in bindings if await mentions(door, key, OWN)]


async def test_sent_tickets_leave_the_outbox(app: Celery, store: JobStore, door: RedisDoor):
    tickets = Tickets(app, store.published)
    job_ids = [await submit(store) for _ in range(3)]
    for job_id in job_ids[:2]:
        tickets.send(job_id, NORMAL)

    await until_outbox_holds(door, [keys.ticket(job_ids[2], NORMAL)])

    await tickets.close()
    app.close()


async def test_without_a_broker_the_jobs_stay_in_the_outbox(
    make_settings: MakeSettings, own_redis: RunningServer, sent: Sent
):
    app = broker.make_app(make_settings(CELERY_BROKER_URL=own_redis.url))
    own_redis.stop()
    tickets = Tickets(app, sent)

    tickets.send("job_1", NORMAL)
    await tickets.close()

    assert not tickets._thread.is_alive()
    assert sent.batches == []


async def test_closing_sends_what_waits(app: Celery, sent: Sent):
    tickets = Tickets(app, sent)
    for n in range(300):
        tickets.send(f"job_{n}", LOW)

    await tickets.close()

    await until_async(lambda: sent.count == 300)
    assert await asyncio.to_thread(broker.depth, app, LOW) == 300
    app.close()


async def test_a_confirmation_that_fails_ends_nothing(app: Celery):
    calls: list[list[str]] = []

    async def fails(job_ids: Sequence[str]) -> None:
        calls.append(list(job_ids))
        raise OSError("no")

    tickets = Tickets(app, fails)
    tickets.send("job_1", NORMAL)
    await until_async(lambda: len(calls) == 1)
    tickets.send("job_2", NORMAL)
    await until_async(lambda: len(calls) == 2)

    await tickets.close()
    app.close()


def test_a_queue_that_was_never_used_is_empty(app: Celery):
    assert broker.depth(app, "chat.never.normal") == 0


def test_another_broker_than_redis_gets_its_own_priorities(make_settings: MakeSettings):
    app = broker.make_app(make_settings(CELERY_BROKER_URL="amqp://guest@127.0.0.1//"))

    assert app.conf.task_queue_max_priority == 10
    assert broker._priority(app, urgent=True) > broker._priority(app, urgent=False)


def test_classes_are_in_the_order_of_their_queues():
    assert [queue.rsplit(".", 1)[1] for queue in (HIGH, NORMAL, LOW)] == list(Priority)


async def until_outbox_holds(door: RedisDoor, tickets: list[str]) -> None:
    async with asyncio.timeout(5):
        while await door.redis.zrange(door.key("outbox"), 0, -1) != tickets:  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)


def _listen(app: Celery, queues: list[str], turns: int = 0) -> None:
    """Listen to queues as a worker does, take so many tickets, and answer none."""
    app.amqp.queues.select(queues)
    with (
        app.connection_for_read() as connection,
        app.amqp.TaskConsumer(connection, callbacks=[lambda *_: None]),
    ):
        for _ in range(turns):
            connection.drain_events(timeout=5)


def _messages(app: Celery, queue: str, count: int) -> list[tuple[dict[str, Any], Any]]:
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as simple:
        out = []
        for _ in range(count):
            message = simple.get(timeout=5)
            message.ack()
            out.append((message.headers, message.payload))
        return out


def _take(app: Celery, queue: str, count: int) -> list[tuple[str, ...]]:
    return [tuple(body[0]) for _, body in _messages(app, queue, count)]
