"""Heartbeats, model cards, and the named locks that processes share."""

import asyncio
from typing import Any

from tests.support.factories import submit
from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.registry import Notes, Registry
from worker.contract.store import JobStore

CARD = {"model": "echo", "slots": 4}


def info(owner: str) -> dict[str, Any]:
    return {"owner": owner, "role": "chat", "state": "ready"}


async def test_a_process_that_announced_itself_is_alive_until_it_signs_off(door: RedisDoor):
    registry = Registry(door)
    await registry.announce("a", info("a"), CARD)
    await registry.announce("b", info("b"), None)
    both = await registry.workers()

    await registry.sign_off("a")

    assert [worker["owner"] for worker in both] == ["a", "b"]
    assert [worker["owner"] for worker in await registry.workers()] == ["b"]
    assert (await registry.models())["echo"].items() >= CARD.items()


async def test_a_model_was_made_when_it_was_first_announced(door: RedisDoor):
    registry = Registry(door)
    now_s, _ = await door.command("TIME")
    await registry.announce("a", info("a"), CARD)
    await door.command("HSET", door.key("models_at"), "echo", now_s - 60)

    await registry.announce("b", info("b"), CARD)

    assert (await registry.models())["echo"]["created"] == now_s - 60


async def test_a_silent_process_is_forgotten(door: RedisDoor):
    registry = Registry(door)
    await registry.announce("a", info("a"), None)
    life_s = await door.redis.ttl(door.key("worker", "a"))

    await door.redis.pexpire(door.key("worker", "a"), 1)
    async with asyncio.timeout(5):
        while await registry.workers():  # noqa: ASYNC110 - Redis's clock is waited for
            await asyncio.sleep(0.005)

    assert 0 < life_s <= keys.HEARTBEAT_S


async def test_a_dead_process_that_was_handed_back_is_forgotten_at_once(
    door: RedisDoor, store: JobStore
):
    registry = Registry(door)
    await registry.announce("a", info("a"), None)

    await store.hand_back("a")

    assert await registry.workers() == []


async def test_depths_count_what_waits(door: RedisDoor, store: JobStore):
    assert await Registry(door).depths() == {}

    await submit(store)
    await submit(store, pictures=1)
    await submit(store, pictures=1)

    assert await Registry(door).depths() == {"chat.echo.normal": 1, "media": 2}


async def test_a_lock_is_one_holders_until_it_is_over(door: RedisDoor):
    notes = Notes(door)

    assert await notes.acquire("x", "a", 30)
    assert await notes.acquire("x", "a", 30)
    assert not await notes.acquire("x", "b", 30)
    assert not await notes.renew("x", "b", 30)
    await notes.release("x", "b")
    assert await notes.renew("x", "a", 30)
    await notes.release("x", "a")
    assert await notes.acquire("x", "b", 0.02)
    async with asyncio.timeout(5):
        while not await notes.acquire("x", "a", 30):  # noqa: ASYNC110 - Redis's clock
            await asyncio.sleep(0.005)
    assert not await notes.renew("x", "b", 30)


async def test_a_note_is_kept_for_its_time(door: RedisDoor):
    notes = Notes(door)

    await notes.put("x", "四只", 30)
    await notes.put("y", "short", 0.01)

    assert await notes.get("x") == "四只"
    assert await notes.get("never") is None
    async with asyncio.timeout(5):
        while await notes.get("y"):  # noqa: ASYNC110 - Redis's clock is waited for
            await asyncio.sleep(0.005)
