"""What is said of workers that were given up."""

import asyncio

import pytest

from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry
from worker.notices import Notices


async def said(registry: Registry) -> list[tuple[str, str, str, str | None]]:
    return [(w["state"], w["gpus"], w["reason"], w["model"]) for w in await registry.workers()]


async def test_a_failed_worker_is_spoken_of_again_and_again_until_that_is_withdrawn(
    door: RedisDoor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keys, "ANNOUNCE_S", 0.01)
    registry = Registry(door)
    made = Notices(registry, "chat", "echo")
    failed = [("failed", "0,1", "no memory", "echo")]

    await made.post("a", "0,1", "no memory")
    at_once = await said(registry)
    await registry.sign_off("a")  # as if its time were over
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(5):
        while await said(registry) != failed:  # noqa: ASYNC110 - another task is waited for
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.wait({running})
    await made.withdraw()

    assert at_once == failed
    assert await said(registry) == []
