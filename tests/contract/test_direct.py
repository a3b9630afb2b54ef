"""Tickets for the worker that has a beginning: when they go there, and what is left of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.contract.test_store import until_swept
from tests.support.factories import MODEL, PICTURE, claim, ended, question, submit
from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.job import ChatRequest, Hold, JobSpec, Lane, Message, Priority
from worker.contract.near import near_of
from worker.contract.reader import JobReader
from worker.contract.registry import Registry
from worker.contract.store import JobStore, Submitted

pytestmark = pytest.mark.usefixtures("near")

SHARED = keys.chat_queue(MODEL, Priority.NORMAL)
OWN = keys.own_queue(MODEL, "a")
SLOTS = 16
ROOM = SLOTS // keys.DIRECT_SHARE
FIRST = question("hello")
FOLLOW_UP = ChatRequest(
    MODEL, (*FIRST.messages, Message("assistant", ("hi",)), Message("user", ("and?",)))
)


async def announce(door: RedisDoor, owner: str = "a", **changed: Any) -> None:
    """Have a worker say how it does."""
    said = {"role": "chat", "state": "ready", "model": MODEL, "slots": SLOTS} | changed
    await Registry(door).announce(owner, said, None)


async def answer_first(store: JobStore, owner: str = "a") -> None:
    """Have a worker answer the first question of the conversation."""
    hold = await claim(store, (await store.submit(FIRST, JobSpec())).job_id, owner)
    await store.finish(hold, ended("hi"))


async def follow_up(store: JobStore, **spec: Any) -> Submitted:
    """Hand the next question in."""
    return await store.submit(FOLLOW_UP, JobSpec(**spec))


async def sent_to(door: RedisDoor, owner: str = "a") -> list[str]:
    ids: list[str] = await door.redis.zrange(door.key("direct", owner), 0, -1)
    return ids


@pytest.fixture
async def near(door: RedisDoor, store: JobStore) -> str:
    """Have a worker that is idle and answered the first question; return its name."""
    await announce(door)
    await answer_first(store)
    return "a"


async def test_a_follow_up_goes_to_the_worker_that_answered_before(store: JobStore, near: str):
    made = await follow_up(store)

    assert made.queue == OWN == f"chat.{MODEL}@{near}"


async def test_the_same_question_once_more_goes_to_all(store: JobStore):
    made = await store.submit(FIRST, JobSpec())

    assert made.queue == SHARED


async def test_a_question_that_begins_otherwise_goes_to_all(store: JobStore):
    other = question("good evening")
    answered = (*other.messages, *FOLLOW_UP.messages[1:])
    made = await store.submit(replace(other, messages=answered), JobSpec())

    assert made.queue == SHARED


async def test_a_picture_goes_to_the_worker_that_has_seen_it(store: JobStore):
    first = await fetched(store, await submit(store, "what is it?", pictures=1))
    asked = await submit(store, "how many?", pictures=1)
    before = await store.media_ready(first, [PICTURE])
    await claim(store, first.job_id, "a")

    after = await store.media_ready(await fetched(store, asked), [PICTURE])

    assert (before, after) == (SHARED, OWN)


async def fetched(store: JobStore, job_id: str) -> Hold:
    return await claim(store, job_id, "media", Lane.MEDIA)


async def test_the_last_one_who_took_it_has_it(door: RedisDoor, store: JobStore):
    await announce(door, "b")
    await answer_first(store, "b")

    assert (await follow_up(store)).queue == keys.own_queue(MODEL, "b")


async def test_it_is_not_remembered_for_ever(door: RedisDoor):
    life_s = await door.redis.ttl(door.key("near", near_of(FOLLOW_UP)))

    assert 0 < life_s <= keys.NEAR_S


@pytest.mark.parametrize(
    "changed",
    [
        {"state": "draining"},
        {"state": "loading"},
        {"state": "failed"},
        {"role": "media"},
        {"model": "another"},
        {"model": None},
        {"slots": 0},
    ],
)
async def test_a_worker_that_would_not_take_it_gets_none(
    door: RedisDoor, store: JobStore, near: str, changed: dict[str, Any]
):
    await announce(door, near, **changed)

    assert (await follow_up(store)).queue == SHARED
    assert await sent_to(door) == []


async def test_a_silent_worker_gets_none(door: RedisDoor, store: JobStore, near: str):
    await door.redis.delete(door.key("worker", near))

    assert (await follow_up(store)).queue == SHARED


async def test_a_worker_gets_no_more_than_it_has_idle_room_for(store: JobStore):
    queues = [(await follow_up(store)).queue for _ in range(ROOM + 1)]

    assert queues == [OWN] * ROOM + [SHARED]


async def test_jobs_that_it_holds_take_of_that_room(store: JobStore, near: str):
    for _ in range(ROOM - 1):
        await claim(store, await submit(store, "good evening"), near)

    queues = [(await follow_up(store)).queue for _ in range(2)]

    assert queues == [OWN, SHARED]


async def test_a_worker_that_leaves_a_ticket_lying_gets_no_more(
    door: RedisDoor, store: JobStore, near: str
):
    left = await follow_up(store)
    await door.redis.zincrby(door.key("direct", near), -keys.DIRECT_WAIT_MS - 1, left.job_id)

    refused = await follow_up(store)
    await claim(store, left.job_id, near)
    again = await follow_up(store)

    assert (left.queue, refused.queue, again.queue) == (OWN, SHARED, OWN)


async def test_a_delayed_job_and_one_that_is_tried_again_go_to_all(store: JobStore):
    delayed = await follow_up(store, not_before_ms=2_000_000_000_000)
    failed = await follow_up(store)
    await store.cancel(failed.job_id)

    again = await store.retry(failed.job_id)

    assert (delayed.queue, again.queue) == (None, SHARED)


async def test_it_waits_where_all_wait(door: RedisDoor, store: JobStore, reader: JobReader):
    before = await store.submit(question("good evening"), JobSpec())
    made = await follow_up(store)

    in_order = await waiting(door)
    assert set(in_order) == {before.job_id, made.job_id}
    assert made.job is not None
    assert made.job["queue_position"] == in_order.index(made.job_id)
    assert (await reader.get(made.job_id)) == made.job
    assert await Registry(door).depths() == {SHARED: 2}


async def waiting(door: RedisDoor) -> list[str]:
    ids: list[str] = await door.redis.zrange(door.key("queued", SHARED), 0, -1)
    return ids


async def test_a_ticket_that_its_worker_does_not_take_is_sent_to_all(
    door: RedisDoor, store: JobStore
):
    made = await follow_up(store)
    await store.published([(made.job_id, OWN)])
    tickets: Sequence[tuple[str, str]] = ()

    def are_due(swept: Any) -> bool:
        nonlocal tickets
        tickets = swept.tickets
        return bool(tickets)

    await shift_outbox(door, keys.OUTBOX_GRACE_MS)
    await until_swept(store, are_due)

    assert tickets == ((made.job_id, SHARED),)
    assert (await claim(store, made.job_id, "b")).attempt == 1
    assert await traces(door, made.job_id) == ([], None, [])


async def shift_outbox(door: RedisDoor, ms: int) -> None:
    for ticket in await door.redis.zrange(door.key("outbox"), 0, -1):
        await door.redis.zincrby(door.key("outbox"), -ms, ticket)


async def traces(door: RedisDoor, job_id: str) -> tuple[list[str], str | None, list[str]]:
    """Return what is left of a direct ticket."""
    owner: str | None = await door.redis.hget(door.key("job", job_id), "sent_to")
    return await sent_to(door), owner, await door.redis.zrange(door.key("outbox"), 0, -1)


@pytest.mark.parametrize("how", ["claimed", "cancelled", "expired"])
async def test_nothing_is_left_of_a_ticket_once_its_job_waits_no_more(
    door: RedisDoor, store: JobStore, near: str, how: str
):
    made = await follow_up(store, start_deadline_s=0.001 if how == "expired" else None)
    during = await sent_to(door)

    match how:
        case "claimed":
            await claim(store, made.job_id, near)
        case "cancelled":
            await store.cancel(made.job_id)
        case _:
            await until_swept(store, lambda swept: swept.expired)

    assert during == [made.job_id]
    assert await traces(door, made.job_id) == ([], None, [])


async def test_what_is_sent_to_a_worker_is_forgotten_in_any_case(
    door: RedisDoor, store: JobStore, near: str
):
    await follow_up(store)

    life_s = await door.redis.ttl(door.key("direct", near))

    assert keys.OUTBOX_GRACE_MS / 1000 < life_s <= keys.DIRECT_S


async def test_what_a_dead_worker_was_sent_goes_to_all_at_once(
    door: RedisDoor, store: JobStore, near: str
):
    sent = [(await follow_up(store)).job_id for _ in range(2)]
    held = await claim(store, await submit(store, "good evening"), near)

    tickets = await store.hand_back(near)

    assert set(tickets) == {(job_id, SHARED) for job_id in (*sent, held.job_id)}
    assert await sent_to(door) == []
    assert [(await claim(store, job_id, "b")).attempt for job_id in sent] == [1, 1]


async def test_a_job_of_an_earlier_version_is_taken_as_before(door: RedisDoor, store: JobStore):
    made = await store.submit(question("good evening"), JobSpec())
    await door.redis.hdel(door.key("job", made.job_id), "near")

    assert (await claim(store, made.job_id)).attempt == 1
