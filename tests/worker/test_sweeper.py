"""The sweeper: what is due is done, by one of many, and not in the wake of a stall."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import MakeSettings
from tests.support.factories import MODEL, ended, running, submit
from worker import sweeper as module
from worker.contract import keys
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.job import Priority
from worker.contract.registry import Notes
from worker.contract.store import JobStore, Swept
from worker.sweeper import Sweeper

QUEUE = keys.chat_queue(MODEL, Priority.NORMAL)
LIMIT_S = 10
STALL_LEASE_S = 1.0


class Recorder:
    """Tickets that a sweeper sent, and how deep it finds the broker's queue."""

    def __init__(self, depth: int = 0) -> None:
        self.sent: list[tuple[str, str]] = []
        self.depth = depth
        self.woken: list[str] = []

    def wake(self, lane: str, _overdue_s: float) -> None:
        self.woken.append(lane)

    def send(self, job_id: str, queue: str) -> None:
        self.sent.append((job_id, queue))


class CountingStore(JobStore):
    """The real store; counts the sweeps."""

    sweeps = 0

    async def sweep(self, *, silent_too: bool = True) -> Swept:
        self.sweeps += 1
        return await super().sweep(silent_too=silent_too)


def make(
    store: JobStore, door: RedisDoor, recorder: Recorder, owner: str = "a", lease_s: float = 0.6
) -> Sweeper:
    return Sweeper(
        store,
        Notes(door),
        Debts(door),
        owner=owner,
        lease_s=lease_s,
        send=recorder.send,
        depth=lambda _queue: recorder.depth,
        wake=recorder.wake,
    )


@asynccontextmanager
async def running_sweepers(*sweepers: Sweeper) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(sweeper.run()) for sweeper in sweepers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep every 20 ms, and take a queue for stalled after 50 ms."""
    monkeypatch.setattr(module, "_PERIOD_S", 0.02)
    monkeypatch.setattr(module, "_STALLED_S", 0.05)


async def test_a_sweep_sends_the_tickets_of_lost_jobs(make_settings: MakeSettings):
    door = RedisDoor(make_settings(FOREBAY_LEASE_S=0.6))
    store, recorder = JobStore(door), Recorder()
    hold = await running(store)
    sweeper = make(store, door, recorder)

    async with asyncio.timeout(LIMIT_S):
        while not recorder.sent:
            await sweeper.sweep()
            await asyncio.sleep(0.02)

    assert recorder.sent == [(hold.job_id, QUEUE)]
    await door.close()


async def test_a_sweep_wakes_lanes_whose_tickets_are_lost(store: JobStore, door: RedisDoor):
    hold = await running(store, webhook_url="https://receiver.example/hook")
    await store.finish(hold, ended("a"))
    await door.redis.delete(door.key("hook_watch", "https://receiver.example:443"))
    recorder = Recorder()

    for _ in range(3):
        await make(store, door, recorder).sweep()

    assert recorder.woken == ["https://receiver.example:443"]


@pytest.mark.usefixtures("quick")
async def test_of_two_sweepers_one_is_active(door: RedisDoor):
    first, second = CountingStore(door), CountingStore(door)
    one = make(first, door, Recorder(), "one")
    two = make(second, door, Recorder(), "two")

    async with running_sweepers(one, two), asyncio.timeout(LIMIT_S):
        while first.sweeps + second.sweeps < 5:  # noqa: ASYNC110 - their own tasks
            await asyncio.sleep(0.01)

    assert 0 in {first.sweeps, second.sweeps}


@pytest.mark.usefixtures("quick")
async def test_the_other_takes_over_when_the_lock_is_free(
    door: RedisDoor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_LOCK_S", 0.2)
    first, second = CountingStore(door), CountingStore(door)
    async with running_sweepers(make(first, door, Recorder(), "one")), asyncio.timeout(LIMIT_S):
        while not first.sweeps:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    async with running_sweepers(make(second, door, Recorder(), "two")), asyncio.timeout(LIMIT_S):
        while not second.sweeps:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    assert second.sweeps


class StalledNotes(Notes):
    """The real notes behind a Redis that stalls once, for longer than half a lease."""

    ended_at = 0.0

    async def acquire(self, key: str, token: str, ttl_s: float) -> bool:
        if not self.ended_at:
            await asyncio.sleep(0.6 * STALL_LEASE_S)
            self.ended_at = asyncio.get_running_loop().time()
        return await super().acquire(key, token, ttl_s)


@pytest.mark.usefixtures("quick")
async def test_after_a_stall_tickets_go_out_and_silent_workers_have_a_lease_to_renew(
    store: JobStore, door: RedisDoor
):
    recorder, notes = Recorder(depth=1), StalledNotes(door)
    silent, waiting = await running(store), await submit(store)
    await door.redis.zadd(door.key("leases"), {silent.job_id: 1})
    await door.redis.zadd(door.key("outbox"), {keys.ticket(waiting, QUEUE): 1})
    sweeper = make(store, door, recorder, lease_s=STALL_LEASE_S)
    sweeper._notes = notes

    async with running_sweepers(sweeper), asyncio.timeout(LIMIT_S):
        while (silent.job_id, QUEUE) not in recorder.sent:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    assert asyncio.get_running_loop().time() - notes.ended_at >= STALL_LEASE_S
    assert recorder.sent[0] == (waiting, QUEUE)


async def test_a_lease_shorter_than_the_pause_between_sweeps_is_no_stall(
    store: JobStore, door: RedisDoor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_PERIOD_S", 0.2)
    recorder, silent = Recorder(depth=1), await running(store)
    await door.redis.zadd(door.key("leases"), {silent.job_id: 1})

    async with (
        running_sweepers(make(store, door, recorder, lease_s=0.3)),
        asyncio.timeout(LIMIT_S),
    ):
        while not recorder.sent:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    assert recorder.sent[0] == (silent.job_id, QUEUE)


@pytest.mark.usefixtures("quick")
async def test_jobs_without_tickets_are_found_by_an_empty_broker_queue(
    store: JobStore, door: RedisDoor
):
    job_id = await submit(store)
    await store.published([(job_id, QUEUE)])
    recorder = Recorder(depth=0)

    async with running_sweepers(make(store, door, recorder)), asyncio.timeout(LIMIT_S):
        while not recorder.sent:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    assert recorder.sent[0] == (job_id, QUEUE)


@pytest.mark.usefixtures("quick")
async def test_jobs_whose_tickets_wait_get_no_second_one(door: RedisDoor):
    store, recorder = CountingStore(door), Recorder(depth=1)
    await store.published([(await submit(store), QUEUE)])

    async with running_sweepers(make(store, door, recorder)), asyncio.timeout(LIMIT_S):
        while store.sweeps < 8:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    assert recorder.sent == []


@pytest.mark.usefixtures("quick")
async def test_a_fault_in_one_sweep_does_not_end_all_sweeping(store: JobStore, door: RedisDoor):
    calls = 0

    def broken(_queue: str) -> int:
        nonlocal calls
        calls += 1
        raise OSError("no broker")

    await store.published([(await submit(store), QUEUE)])
    sweeper = make(store, door, Recorder())
    sweeper._depth = broken

    async with running_sweepers(sweeper), asyncio.timeout(LIMIT_S):
        while calls < 3:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0.01)

    assert calls >= 3
