"""Leases and orders: renewed, obeyed, and given up when nothing can be proven."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import MakeSettings
from tests.support.factories import claim, running
from worker.contract.door import RedisDoor
from worker.contract.job import Hold
from worker.contract.live import Orders
from worker.contract.store import JobStore
from worker.holds import Held, Holds, Stop
from worker.server import RunningServer

LEASE_S = 0.6
LIMIT_S = 5


class Work:
    """A task that holds a job until it is interrupted."""

    def __init__(self, holds: Holds, hold: Hold, *, is_ending: bool = False) -> None:
        self.held: Held | None = None
        self.let_go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(holds, hold, is_ending=is_ending))

    async def _hold(self, holds: Holds, hold: Hold, *, is_ending: bool) -> Stop | None:
        with holds.keep(hold) as held:
            self.held, held.is_ending = held, is_ending
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                held.task.uncancel()
            return held.stop

    async def stop(self) -> Stop | None:
        async with asyncio.timeout(LIMIT_S):
            return await self.task


@pytest.fixture
async def door(make_settings: MakeSettings) -> AsyncIterator[RedisDoor]:
    made = RedisDoor(make_settings(FOREBAY_LEASE_S=LEASE_S))
    yield made
    await made.close()


@asynccontextmanager
async def kept(door: RedisDoor, owner: str = "worker-1") -> AsyncIterator[Holds]:
    """Yield holds whose leases are renewed."""
    orders = Orders(door, owner)
    holds = Holds(JobStore(door), orders, LEASE_S)
    task = asyncio.create_task(holds.run())
    try:
        yield holds
    finally:
        task.cancel()
        await asyncio.wait({task})
        await orders.close()


async def test_a_held_job_is_kept_for_longer_than_its_lease(store: JobStore, door: RedisDoor):
    async with kept(door) as holds:
        hold = await running(store)
        left = await running(store)
        work = Work(holds, hold)

        async with asyncio.timeout(LIMIT_S):
            while not (swept := await store.sweep()).taken_back:  # noqa: ASYNC110 - Redis's clock
                await asyncio.sleep(0.02)
        work.let_go.set()

        assert [job_id for job_id, _ in swept.tickets] == [left.job_id]
        assert await work.stop() is None
        assert len(holds) == 0


async def test_an_order_to_cancel_reaches_the_work_at_once(store: JobStore, door: RedisDoor):
    async with kept(door) as holds:
        hold = await running(store)
        work = Work(holds, hold)
        channel = door.key("ctl", "worker-1")
        async with asyncio.timeout(LIMIT_S):
            while (await door.redis.pubsub_numsub(channel))[0][1] != 1:  # noqa: ASYNC110 - Redis's
                await asyncio.sleep(0.01)

        await store.cancel(hold.job_id)

        assert await work.stop() is Stop.CANCELLED


async def test_an_order_that_was_lost_comes_with_the_next_renewal(store: JobStore, door: RedisDoor):
    async with kept(door, owner="another-channel") as holds:
        hold = await running(store)
        work = Work(holds, hold)

        await store.cancel(hold.job_id)

        assert await work.stop() is Stop.CANCELLED


async def test_a_job_that_somebody_else_has_is_dropped(store: JobStore, door: RedisDoor):
    async with kept(door) as holds:
        hold = await running(store)
        work = Work(holds, hold)

        await store.release(hold)
        await claim(store, hold.job_id, "worker-2")

        assert await work.stop() is Stop.LOST


async def test_a_younger_hold_on_the_same_job_is_not_taken_for_the_lost_one(
    store: JobStore, door: RedisDoor
):
    async with kept(door) as holds:
        first = await running(store)
        old = Work(holds, first)
        await store.release(first)
        second = await claim(store, first.job_id)
        young = Work(holds, second)
        await asyncio.sleep(0)
        old.let_go.set()
        await old.stop()

        renewed_at = holds._proven_at
        async with asyncio.timeout(LIMIT_S):
            while holds._proven_at == renewed_at:  # noqa: ASYNC110 - the renewal's own task
                await asyncio.sleep(0.01)

        assert len(holds) == 1
        young.let_go.set()
        assert await young.stop() is None


async def test_work_that_only_records_its_end_is_not_interrupted(store: JobStore, door: RedisDoor):
    async with kept(door) as holds:
        hold = await running(store)
        work = Work(holds, hold, is_ending=True)
        await asyncio.sleep(0)

        holds.lose([hold.job_id])

        assert not work.task.cancelling()
        work.let_go.set()
        assert await work.stop() is None


async def test_lost_is_stronger_than_cancelled(store: JobStore, door: RedisDoor):
    async with kept(door) as holds:
        hold = await running(store)
        work = Work(holds, hold)
        await asyncio.sleep(0)
        assert work.held is not None

        work.held.interrupt(Stop.CANCELLED)
        work.held.interrupt(Stop.LOST)
        work.held.interrupt(Stop.CANCELLED)

        assert await work.stop() is Stop.LOST


async def test_without_redis_for_a_lease_everything_is_dropped(
    make_settings: MakeSettings, own_redis: RunningServer
):
    door = RedisDoor(make_settings(REDIS_URL=own_redis.url, FOREBAY_LEASE_S=LEASE_S))
    async with kept(door) as holds:
        work = Work(holds, await running(JobStore(door)))
        began = asyncio.get_running_loop().time()

        own_redis.stop()
        why = await work.stop()

        assert why is Stop.LOST
        assert asyncio.get_running_loop().time() - began > LEASE_S / 2
    await door.close()
