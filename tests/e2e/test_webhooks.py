"""Callbacks across processes: a worker of its own role, and one that dies at the worst moment."""

import asyncio
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import MakeSettings
from tests.support import receiver as answers
from tests.support.factories import ended, running
from tests.support.processes import LIMIT_S
from tests.support.receiver import receiver
from worker import commands
from worker.children import Child
from worker.contract import broker, keys
from worker.contract.callbacks import lane_of
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.guard import Guard
from worker.contract.reader import JobReader
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.courier import Courier
from worker.outbound import Poster
from worker.webhook import deliver

START_S = 40.0


@contextmanager
def webhook_worker(environ: dict[str, str], folder: Path) -> Iterator[Child]:
    """Run a worker for callbacks alone."""
    command = commands.webhooks(environ, secrets.token_hex(8))
    child = Child(replace(command, log=folder / "webhooks.log", cwd=folder))
    try:
        yield child
    finally:
        child.stop(LIMIT_S)


def _environ(settings: Settings, s3_environ: dict[str, str]) -> dict[str, str]:
    return s3_environ | {
        "REDIS_URL": settings.redis_url,
        "FOREBAY_KEY_PREFIX": settings.key_prefix,
        "FOREBAY_WEBHOOK_ALLOW_HOSTS": "127.0.0.1",
    }


async def _owe(door: RedisDoor, url: str) -> str:
    """Let a job end as any process of ours does: with a ticket for whoever delivers."""
    tickets = broker.Tickets(broker.make_app(door.settings), JobStore(door).published)
    door.on_owed = tickets.wake
    hold = await running(JobStore(door), webhook_url=url)
    await JobStore(door).finish(hold, ended("a"))
    await tickets.close()
    return hold.job_id


async def test_a_worker_for_callbacks_alone_delivers_them(
    make_settings: MakeSettings, door: RedisDoor, s3_environ: dict[str, str], tmp_path: Path
):
    environ = _environ(make_settings(), s3_environ)
    async with receiver() as web:
        with webhook_worker(environ, tmp_path):
            await _owe(door, web.url + "/hook")
            await web.until(1, START_S)

        assert web.got[0].json["type"] == "job.completed"


async def test_a_worker_killed_between_the_answer_and_its_record_repeats_the_same_id(
    make_settings: MakeSettings, door: RedisDoor, s3_environ: dict[str, str], tmp_path: Path
):
    environ = _environ(make_settings(), s3_environ)
    async with receiver() as web:
        url = web.at("/hook", answers.hang(), answers.status(200))
        with webhook_worker(environ, tmp_path) as child:
            job_id = await _owe(door, url)
            await web.until(1, START_S)
            child.send(signal.SIGKILL)
            await asyncio.to_thread(child.wait, LIMIT_S)

        await _deliver_later(door, lane_of(url))
        await web.until(2)

        (seen,) = await Debts(door).deliveries(job_id, 9)
        assert web.ids() == {seen["id"]: 2}
        assert seen["status"] == "delivered"


async def _deliver_later(door: RedisDoor, lane: str) -> None:
    """Deliver a lane as another worker does once the dead one's lease is over."""
    debts = Debts(door)
    debts.ahead_ms = keys.HOOK_LEASE_MS + 1000
    poster = Poster(Guard.from_entries(["127.0.0.1"]), total_s=5, head_bytes=64)
    courier = Courier(debts, JobReader(door), Endpoints(door), partial(deliver, poster))
    working = asyncio.create_task(courier.run())
    courier.attend(lane)
    async with asyncio.timeout(LIMIT_S):
        while await door.redis.zcard(door.key("hooks_owed")):  # noqa: ASYNC110 - Redis is waited for
            await asyncio.sleep(0.01)
    await courier.close()
    working.cancel()
    await asyncio.wait({working})
    await poster.close()


@pytest.fixture(autouse=True)
def _readable_failure(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Show what the worker said beside a test that failed."""
    yield
    log = tmp_path / "webhooks.log"
    if log.exists():
        request.node.add_report_section("teardown", "webhooks log", log.read_text()[-3000:])
