"""What a worker process says of itself, and in which order it may."""

import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from tests.conftest import MakeSettings
from tests.support.factories import running
from tests.support.processes import until_async
from worker.contract import broker
from worker.contract.door import RedisDoor
from worker.contract.errors import EngineDied
from worker.contract.registry import Registry
from worker.contract.store import JobStore
from worker.engine import EngineSpec
from worker.runtime.base import Failure, Identity
from worker.runtime.chat import ChatRuntime
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


class Slots:
    """What the echo engine takes its time to count: a model that loads."""

    def __bool__(self) -> bool:
        time.sleep(0.5)
        return False


@pytest.fixture
async def chat(make_settings: MakeSettings) -> AsyncIterator[ChatRuntime]:
    settings = make_settings()
    made = ChatRuntime(
        settings,
        broker.make_app(settings),
        Identity("me", "chat", 4),
        spec=EngineSpec("echo", "echo", slots=Slots()),  # type: ignore[arg-type]
        served_name="echo",
        why_cancelled=lambda: None,
    )
    await made.start()
    yield made
    await made.close()


async def test_a_job_that_comes_while_the_engine_starts_again_goes_back_and_is_not_to_blame(
    chat: ChatRuntime, store: JobStore
):
    attempt = chat._begin(await running(store, owner="me"))
    first = chat._engine.pid
    os.kill(first or 0, signal.SIGKILL)
    await until_async(lambda: chat._engine.pid not in {first, None})

    with pytest.raises(EngineDied) as caught:
        await attempt.work()

    assert not caught.value.was_inside
