"""The door to Redis: its connections, its failures, and what cancelling a call does."""

import asyncio

import pytest

from tests.conftest import MakeSettings
from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.server import RunningServer


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_call_is_cancelled_whenever_that_comes(door: RedisDoor, turns: int):
    await door.ping()
    call = asyncio.create_task(door.events("job_x"))
    for _ in range(turns):
        await asyncio.sleep(0)
    assert not call.done(), "so many turns of the loop are more than a call takes"

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await door.ping()


async def test_a_deadline_around_calls_is_kept(door: RedisDoor):
    async def call_for_ever() -> None:
        while True:
            await door.ping()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await call_for_ever()


async def test_a_script_that_redis_has_forgotten_is_sent_again(
    make_settings: MakeSettings, own_redis: RunningServer
):
    door = RedisDoor(make_settings(REDIS_URL=own_redis.url))
    await door.call("stalled", 0)
    await door.redis.script_flush()

    assert await door.call("stalled", 0) == []
    await door.close()


async def test_a_redis_that_is_away_is_named(make_settings: MakeSettings, own_redis: RunningServer):
    door = RedisDoor(make_settings(REDIS_URL=own_redis.url))
    own_redis.stop()

    with pytest.raises(StoreUnavailable, match=r"redis://127.0.0.1:\d+/0 does not answer"):
        await door.ping()
    await door.close()


async def test_closing_leaves_no_connection(make_settings: MakeSettings, door: RedisDoor):
    other = RedisDoor(make_settings())
    subscription = other.subscription()
    await subscription.subscribe("x")
    await asyncio.gather(*(other.ping() for _ in range(5)))
    names = {c["id"] for c in await door.redis.client_list()}

    await subscription.aclose()
    await other.close()

    left = {c["id"] for c in await door.redis.client_list()}
    assert len(names - left) >= 2
