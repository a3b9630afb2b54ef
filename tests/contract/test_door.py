"""The door to Redis: its connections, its failures, and what cancelling a call does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import MakeSettings
from tests.faults.proxy import Fate, Proxy, through
from worker.contract import door as door_module
from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.server import RunningServer


async def cancel_after(turns: int, calling: Coroutine[Any, Any, Any]) -> None:
    """Cancel a call after so many turns of the loop; it must end as a cancelled one."""
    call = asyncio.create_task(calling)
    for _ in range(turns):
        await asyncio.sleep(0)
    assert not call.done(), "so many turns of the loop are more than a call takes"

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_call_is_cancelled_whenever_that_comes(door: RedisDoor, turns: int):
    await door.ping()

    await cancel_after(turns, door.events("job_x"))

    await door.ping()


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_whose_script_redis_has_forgotten_is_cancelled_as_well(
    make_settings: MakeSettings, own_redis: RunningServer, turns: int
):
    door = RedisDoor(make_settings(REDIS_URL=own_redis.url))
    await door.ping()

    await cancel_after(turns, door.call("stalled", 0))

    await door.close()


async def test_a_cancel_that_comes_as_redis_fails_is_no_failure_of_redis(door: RedisDoor):
    asked = asyncio.Event()

    async def fails_when_cancelled() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asked.set()
            await asyncio.Event().wait()
        raise ConnectionResetError

    call = asyncio.create_task(door.guard(fails_when_cancelled()))
    await asked.wait()

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call


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


@asynccontextmanager
async def a_network(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, **bounds: int
) -> AsyncIterator[tuple[RedisDoor, Proxy]]:
    """Yield a door that waits for half a second, and the network to its Redis."""
    monkeypatch.setattr(door_module, "_ANSWER_S", 0.5)
    direct = make_settings().redis_url
    network = Proxy(urlsplit(direct).port or 0, lambda: Fate.PASS)
    door = RedisDoor(make_settings(REDIS_URL=through(direct, await network.start())), **bounds)
    try:
        yield door, network
    finally:
        network.speak()
        await door.close()
        await network.stop()


@asynccontextmanager
async def a_silent_redis(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RedisDoor, Proxy, "asyncio.Task[None]"]]:
    """Yield a door that has waited in vain, the network, and the one call that still asks."""
    async with a_network(make_settings, monkeypatch) as (door, network):
        await door.call("stalled", 0)  # connected, and the script known
        network.hush()
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            await door.ping()
        probe = asyncio.create_task(door.ping())
        await asyncio.sleep(0)
        yield door, network, probe


async def test_a_transport_that_was_closed_meanwhile_is_a_redis_that_does_not_answer(
    door: RedisDoor,
):
    async def fails(text: str) -> None:
        raise RuntimeError(text)

    with pytest.raises(StoreUnavailable, match="does not answer"):
        await door.guard(fails("unable to …; the handler is closed"))  # as uvloop says it
    with pytest.raises(RuntimeError, match="ours"):
        await door.guard(fails("a fault of ours"))


async def test_while_redis_is_silent_one_call_asks_and_the_others_fail_at_once(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
):
    async with a_silent_redis(make_settings, monkeypatch) as (door, network, probe):
        with pytest.raises(StoreUnavailable, match="stopped answering") as refused:
            await door.ping()
        network.speak()
        await probe

        assert not refused.value.was_asked
        await door.ping()


async def test_who_waits_for_a_connection_as_redis_falls_silent_is_refused_without_asking(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
):
    async with a_network(make_settings, monkeypatch, max_connections=2) as (door, network):
        await asyncio.gather(door.ping(), door.ping())
        network.hush()

        said = await asyncio.gather(*(door.ping() for _ in range(20)), return_exceptions=True)

        network.speak()
        await door.ping()

    assert all(isinstance(one, StoreUnavailable) for one in said)
    assert sum(one.was_asked for one in said if isinstance(one, StoreUnavailable)) == 2


async def test_who_insists_asks_a_silent_redis_as_well(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
):
    async with a_silent_redis(make_settings, monkeypatch) as (door, network, probe):
        insisting = asyncio.create_task(door.call("stalled", 0, insist=True))
        await asyncio.sleep(0)
        network.speak()

        assert await insisting == []
        await probe


async def test_an_asker_that_is_cancelled_leaves_its_place_to_the_next(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
):
    async with a_silent_redis(make_settings, monkeypatch) as (door, network, probe):
        probe.cancel()
        await asyncio.wait({probe})

        network.speak()

        await door.ping()


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
