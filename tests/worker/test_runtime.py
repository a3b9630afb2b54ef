"""What a worker process says of itself, and in which order it may."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import MakeSettings
from worker.contract import broker
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry
from worker.runtime.base import Failure, Identity
from worker.runtime.cpu import SweepRuntime


@pytest.fixture
async def runtime(make_settings: MakeSettings) -> AsyncIterator[SweepRuntime]:
    settings = make_settings()
    made = SweepRuntime(settings, broker.make_app(settings), Identity("me", "sweep", 0))
    await made.start()
    yield made
    await made.close()


async def said(door: RedisDoor) -> list[tuple[str, str]]:
    return [(worker["state"], worker["reason"]) for worker in await Registry(door).workers()]


async def test_an_engine_that_is_back_does_not_make_a_draining_worker_ready(
    runtime: SweepRuntime, door: RedisDoor
):
    await runtime.say("loading", "the engine died")
    before = await said(door)

    await runtime.say("draining")
    for state in ("loading", "ready"):
        await runtime.say(state, "the engine died")

    assert before == [("loading", "the engine died")]
    assert await said(door) == [("draining", "")]


async def test_a_worker_that_failed_says_so_to_its_end(runtime: SweepRuntime, door: RedisDoor):
    await runtime.fail(Failure("no GPU", is_everywhere=False))

    await runtime.say("draining")

    assert await said(door) == [("failed", "no GPU")]
