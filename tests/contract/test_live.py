"""Followers of a job's events: no gap, no repeat, whatever happens to the publication."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio.client import PubSub

from tests.conftest import MakeSettings
from tests.support.factories import LOST, claim, completed, ended, running, said, submit
from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.events import Event
from worker.contract.job import Hold
from worker.contract.live import LiveEvents, Orders
from worker.contract.store import JobStore
from worker.server import RunningServer

LIMIT_S = 10


@pytest.fixture
async def live(door: RedisDoor) -> AsyncIterator[LiveEvents]:
    made = LiveEvents(door)
    yield made
    await made.close()


class Follower:
    """Collects what a follower is given, and lets a test wait for the n-th event."""

    def __init__(self, live: LiveEvents, job_id: str, after: int = 0) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Condition()
        self.task = asyncio.create_task(self._follow(live, job_id, after))

    async def _follow(self, live: LiveEvents, job_id: str, after: int) -> None:
        async for event in live.follow(job_id, after):
            async with self._more:
                self.events.append(event)
                self._more.notify_all()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(LIMIT_S), self._more:
            await self._more.wait_for(lambda: len(self.events) >= count)

    async def all(self) -> list[Event]:
        async with asyncio.timeout(LIMIT_S):
            await self.task
        return self.events


async def write(store: JobStore, hold: Hold, *numbers: int) -> None:
    for number in numbers:
        await store.append([said(hold, number, f"{number} ")])


async def test_a_follower_from_the_start_sees_what_was_and_what_comes(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    await write(store, hold, 1, 2)
    follower = Follower(live, hold.job_id)
    await follower.has(3)

    await write(store, hold, 3, 4)
    await store.finish(hold, ended("1 2 3 4 "))

    assert await follower.all() == await door.events(hold.job_id)


async def test_a_follower_from_a_cursor_sees_only_what_comes_after(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    await write(store, hold, 1, 2, 3)
    follower = Follower(live, hold.job_id, after=4)
    await follower.has(1)

    await store.finish(hold, ended("1 2 3 "))

    assert await follower.all() == await door.events(hold.job_id, after=4)


async def test_an_ended_job_is_replayed_and_ends_at_once(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    job_id = await completed(store)
    whole = await door.events(job_id)

    cursors = range(whole[-1].seq + 2)  # the last event's, and one that never was, included
    replays = [await Follower(live, job_id, after=n).all() for n in cursors]

    assert replays == [[e for e in whole if e.seq > n] for n in cursors]


async def test_followers_at_once_see_the_same(store: JobStore, live: LiveEvents):
    hold = await running(store)
    followers = [Follower(live, hold.job_id) for _ in range(3)]
    for follower in followers:
        await follower.has(1)

    await write(store, hold, *range(1, 20))
    await store.finish(hold, ended("x"))

    first, *others = [await follower.all() for follower in followers]
    assert len(first) == 21
    assert others == [first, first]


async def test_one_subscription_serves_all_and_ends_with_the_last(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    channel = door.key("live", hold.job_id)
    followers = [Follower(live, hold.job_id) for _ in range(3)]
    async with asyncio.timeout(LIMIT_S):
        while (await door.redis.pubsub_numsub(channel))[0][1] != 1:  # noqa: ASYNC110 - Redis's
            await asyncio.sleep(0.01)

    await store.finish(hold, ended("x"))
    for follower in followers:
        await follower.all()

    assert (await door.redis.pubsub_numsub(channel))[0][1] == 0
    assert live._mailboxes == {}


async def test_a_follower_that_comes_as_the_last_one_leaves_misses_nothing(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    channel = door.key("live", hold.job_id)
    leaving = Follower(live, hold.job_id)
    await leaving.has(1)
    await asyncio.wait_for(live._confirmed[channel].wait(), LIMIT_S)

    (left,) = live._mailboxes[channel]

    async with live._changing:  # both wish to change the subscription at the same moment
        leaving.task.cancel()
        coming = Follower(live, hold.job_id)
        async with asyncio.timeout(LIMIT_S):
            while left in live._mailboxes[channel] or not live._mailboxes[channel]:  # noqa: ASYNC110
                await asyncio.sleep(0)
    await asyncio.wait({leaving.task}, timeout=LIMIT_S)
    await coming.has(1)
    await write(store, hold, 1)
    await asyncio.wait_for(coming.has(2), 2)
    await store.finish(hold, ended("1 "))

    assert await asyncio.wait_for(coming.all(), 2) == await door.events(hold.job_id)


async def test_a_gap_in_what_is_published_is_filled_from_the_stream(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    follower = Follower(live, hold.job_id)
    await follower.has(1)
    await asyncio.wait_for(live._confirmed[door.key("live", hold.job_id)].wait(), LIMIT_S)

    # An event that is stored and never published, as when a subscription breaks for a moment.
    await door.redis.hincrby(door.key("job", hold.job_id), "seq", 1)
    silent = {"k": "delta", "d": '{"text":"silent ","tokens":1}'}
    await door.redis.xadd(door.key("ev", hold.job_id), silent, id="3-0")
    await write(store, hold, 1)
    await store.finish(hold, ended("silent 1 "))

    events = await follower.all()
    assert [event.seq for event in events] == [2, 3, 4, 5]
    assert [event.text for event in events[1:3]] == ["silent ", "1 "]


async def test_an_old_publication_is_not_told_twice(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    follower = Follower(live, hold.job_id)
    await follower.has(1)
    await write(store, hold, 1)
    await follower.has(2)

    await door.redis.publish(door.key("live", hold.job_id), '3 delta {"text":"1 ","tokens":2}')
    await store.finish(hold, ended("1 "))

    assert [event.seq for event in await follower.all()] == [2, 3, 4]


async def test_a_follower_goes_on_when_its_subscription_is_killed(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    follower = Follower(live, hold.job_id)
    await follower.has(1)
    await asyncio.wait_for(live._confirmed[door.key("live", hold.job_id)].wait(), LIMIT_S)

    host, port = live._pubsub.connection._writer.get_extra_info("sockname")
    await door.redis.execute_command("CLIENT", "KILL", "ADDR", f"{host}:{port}")
    await write(store, hold, 1, 2)
    await follower.has(3)
    await write(store, hold, 3)
    await store.finish(hold, ended("1 2 3 "))

    assert await follower.all() == await door.events(hold.job_id)


async def test_a_reader_that_lags_far_behind_loses_nothing(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    slow = live.follow(hold.job_id)
    seen = [await anext(slow)]
    fast = Follower(live, hold.job_id)
    await fast.has(1)

    pieces = [said(hold, n, "x") for n in range(1, 800)]
    await store.append(pieces)
    await store.finish(hold, ended("x" * 799))
    await fast.all()
    async with asyncio.timeout(LIMIT_S):
        seen += [event async for event in slow]

    assert seen == fast.events == await door.events(hold.job_id)


async def test_following_without_a_redis_says_so(
    make_settings: MakeSettings, own_redis: RunningServer
):
    door = RedisDoor(make_settings(REDIS_URL=own_redis.url))
    live, store = LiveEvents(door), JobStore(door)
    hold = await running(store)
    own_redis.stop()

    with pytest.raises(StoreUnavailable, match="does not answer"):
        await Follower(live, hold.job_id).all()

    await live.close()
    await door.close()


async def test_a_worker_hears_which_of_its_jobs_to_drop(store: JobStore, door: RedisDoor):
    orders = Orders(door, "worker-1")
    ids = orders.cancelled_ids()
    hearing = asyncio.ensure_future(anext(ids))
    mine, other = await running(store), await running(store, owner="worker-2")
    channel = door.key("ctl", "worker-1")
    async with asyncio.timeout(LIMIT_S):
        while (await door.redis.pubsub_numsub(channel))[0][1] != 1:  # noqa: ASYNC110 - Redis's
            await asyncio.sleep(0.01)

    await store.cancel(other.job_id)
    await store.cancel(mine.job_id)

    assert await asyncio.wait_for(hearing, LIMIT_S) == mine.job_id
    await ids.aclose()
    await orders.close()


async def test_a_follower_sees_all_attempts_as_one_sequence(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    first = await running(store)
    follower = Follower(live, first.job_id)
    await write(store, first, 1)
    await store.release(first, LOST)
    second = await claim(store, first.job_id, "worker-2")

    await write(store, second, 1)
    await store.finish(second, ended("1 1 "))

    events = await follower.all()
    assert events == await door.events(first.job_id)
    assert "".join(event.text for event in events) == "1 1 "


class RacingDoor(RedisDoor):
    """A door behind whose first look at a stream the whole job happens."""

    meanwhile: JobStore | None = None

    async def events(self, job_id: str, after: int = 0) -> list[Event]:
        found = await super().events(job_id, after)
        if self.meanwhile is not None:
            store, self.meanwhile = self.meanwhile, None
            hold = await claim(store, job_id)
            await write(store, hold, 1, 2)
            await store.finish(hold, ended("1 2 "))
        return found


async def test_a_job_that_runs_and_ends_while_a_follower_attaches_is_told_whole(
    store: JobStore, make_settings: MakeSettings
):
    door = RacingDoor(make_settings())
    live = LiveEvents(door)
    job_id = await submit(store)
    door.meanwhile = store

    events = await Follower(live, job_id, after=1).all()

    assert [event.text for event in events if event.kind == "delta"] == ["1 ", "2 "]
    assert events[-1].is_last
    await live.close()
    await door.close()


CLOSED = "unable to perform operation on <TCPTransport closed=True>; the handler is closed"


@pytest.mark.parametrize("error", [RuntimeError(CLOSED), AttributeError("read_response")])
async def test_a_follower_goes_on_whatever_the_next_line_raises(
    store: JobStore,
    door: RedisDoor,
    live: LiveEvents,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
):
    hold = await running(store)
    follower = Follower(live, hold.job_id)
    await follower.has(1)
    await asyncio.wait_for(live._confirmed[door.key("live", hold.job_id)].wait(), LIMIT_S)
    connect, failing = PubSub.connect, [error]

    async def cut(self: PubSub) -> None:
        if failing:
            raise failing.pop()
        await connect(self)

    monkeypatch.setattr(PubSub, "connect", cut)
    host, port = live._pubsub.connection._writer.get_extra_info("sockname")

    await door.redis.execute_command("CLIENT", "KILL", "ADDR", f"{host}:{port}")
    await write(store, hold, 1, 2)
    await store.finish(hold, ended("1 2 "))

    assert await follower.all() == await door.events(hold.job_id)


async def test_a_subscription_that_breaks_while_nobody_follows_serves_the_next_one(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    first = await running(store)
    earlier = Follower(live, first.job_id)
    await earlier.has(1)
    await asyncio.wait_for(live._confirmed[door.key("live", first.job_id)].wait(), LIMIT_S)
    await store.finish(first, ended("x"))
    await earlier.all()
    host, port = live._pubsub.connection._writer.get_extra_info("sockname")
    await door.redis.execute_command("CLIENT", "KILL", "ADDR", f"{host}:{port}")
    hold = await running(store)

    follower = Follower(live, hold.job_id)
    await follower.has(1)
    await write(store, hold, 1)
    await store.finish(hold, ended("1 "))

    assert await follower.all() == await door.events(hold.job_id)


async def test_what_came_together_is_handed_on_together(
    store: JobStore, door: RedisDoor, live: LiveEvents
):
    hold = await running(store)
    await write(store, hold, 1, 2)
    await store.finish(hold, ended("1 2 "))

    together = [list(events) async for events in live.follow_together(hold.job_id)]

    assert together == [await door.events(hold.job_id)]
