"""Handing a job in over a line that breaks: one job, and a refusal only where there is none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import MakeSettings
from tests.faults.proxy import Fate, Proxy, through
from tests.support.factories import claim, question
from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.job import JobSpec
from worker.contract.reader import JobReader
from worker.contract.store import JobStore, Submitted


class Flaky:
    """A store whose next calls meet the fates that are set; then all pass again."""

    def __init__(self, store: JobStore, fates: list[Fate]) -> None:
        self.store = store
        self._fates = fates

    async def submit(self, *fates: Fate, not_before_ms: int = 0, key: str = "") -> Submitted:
        self._fates.extend(fates)
        spec = JobSpec(not_before_ms=not_before_ms)
        return await self.store.submit(question(), spec, idempotency=key, body_hash=key)


@pytest.fixture
async def flaky(make_settings: MakeSettings) -> AsyncIterator[Flaky]:
    async with _flaky(make_settings) as made:
        yield made


@asynccontextmanager
async def _flaky(make_settings: MakeSettings) -> AsyncIterator[Flaky]:
    fates: list[Fate] = []
    direct = make_settings().redis_url
    proxy = Proxy(urlsplit(direct).port or 0, lambda: fates.pop(0) if fates else Fate.PASS)
    door = RedisDoor(make_settings(REDIS_URL=through(direct, await proxy.start())))
    await JobStore(door).submit(question("a first job"), JobSpec())  # connected, script loaded
    yield Flaky(JobStore(door), fates)
    await door.close()
    await proxy.stop()


async def all_jobs(reader: JobReader) -> list[str]:
    jobs, _ = await reader.list_jobs(status=None, model=None, after=None, limit=10)
    return [job["id"] for job in jobs]


@pytest.mark.parametrize("fate", [Fate.CUT, Fate.LOSE])
async def test_a_call_that_breaks_is_made_again_and_makes_one_job(
    flaky: Flaky, reader: JobReader, fate: Fate
):
    made = await flaky.submit(fate)

    assert made.queue is not None
    assert made.job is not None
    assert (made.job["status"], made.job["queue_position"]) == ("queued", 1)
    assert made.job == await reader.get(made.job_id)
    assert (await all_jobs(reader)).count(made.job_id) == 1
    assert len(await all_jobs(reader)) == 2


async def test_a_key_whose_first_answer_was_lost_is_no_replay(flaky: Flaky, reader: JobReader):
    made = await flaky.submit(Fate.LOSE, key="k")
    again = await flaky.submit(key="k")

    assert made.queue is not None
    assert (again.job_id, again.queue) == (made.job_id, None)
    assert len(await all_jobs(reader)) == 2


async def test_a_delayed_job_whose_answer_was_lost_still_waits(flaky: Flaky, reader: JobReader):
    made = await flaky.submit(Fate.LOSE, not_before_ms=2_000_000_000_000)

    assert made.queue is None
    assert (await reader.get(made.job_id))["status"] == "queued"


class LosingDoor(RedisDoor):
    """Loses the first answer to a submission; the job is claimed before it is asked again."""

    is_lost = False

    async def call(self, name: str, *args: Any, insist: bool = False) -> Any:
        answer = await super().call(name, *args, insist=insist)
        if name == "submit" and not self.is_lost:
            self.is_lost = True
            await claim(JobStore(self), args[0])
            raise StoreUnavailable("the answer was lost")
        return answer


async def test_a_job_that_began_before_it_was_asked_for_again_goes_on(
    make_settings: MakeSettings, reader: JobReader
):
    door = LosingDoor(make_settings())

    made = await JobStore(door).submit(question(), JobSpec())

    job = await reader.get(made.job_id)
    assert made.queue is None
    assert (job["status"], job["attempt"]) == ("in_progress", 1)
    await door.close()


async def test_a_line_that_stays_broken_is_told(flaky: Flaky, reader: JobReader):
    with pytest.raises(StoreUnavailable):
        await flaky.submit(Fate.CUT, Fate.CUT)

    assert len(await all_jobs(reader)) == 1


async def test_a_job_that_was_made_although_nobody_was_told_is_the_one_that_its_key_gives(
    flaky: Flaky, reader: JobReader
):
    with pytest.raises(StoreUnavailable):
        await flaky.submit(Fate.LOSE, Fate.LOSE, key="k")

    again = await flaky.submit(key="k")

    assert again.queue is None  # it has had its ticket, or gets one from the sweeper
    assert (await reader.get(again.job_id))["status"] == "queued"
    assert len(await all_jobs(reader)) == 2
