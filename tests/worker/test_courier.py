"""Lanes: what is owed arrives, on the schedule, whatever a receiver answers, under one id each."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from standardwebhooks import Webhook

from tests.support import receiver as answers
from tests.support.factories import ended, running
from tests.support.receiver import Answer, Receiver, receiver
from worker import courier as module
from worker.contract import keys
from worker.contract.callbacks import SCHEDULE_S, lane_of
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.guard import Guard
from worker.contract.reader import JobReader
from worker.contract.store import JobStore
from worker.courier import Courier
from worker.outbound import Poster
from worker.webhook import Tried, deliver

LIMIT_S = 30
HOUR_MS = 3_600_000
JITTER = 1.11


class Office:
    """A courier on a real Redis, with a clock that a test may put forward."""

    def __init__(self, door: RedisDoor, total_s: float = 1.0) -> None:
        self.store = JobStore(door)
        self.debts = Debts(door)
        self.endpoints = Endpoints(door)
        self.poster = Poster(Guard.from_entries(["127.0.0.1"]), total_s=total_s, head_bytes=2048)
        self.courier = Courier(
            self.debts, JobReader(door), self.endpoints, partial(deliver, self.poster)
        )
        door.on_owed = self._attend

    def _attend(self, lanes: list[str]) -> None:
        for lane in lanes:
            self.courier.attend(lane)

    async def owe(self, url: str, count: int = 1) -> list[str]:
        """Let jobs end whose callers want to know; return their ids."""
        ids = []
        for _ in range(count):
            hold = await running(self.store, webhook_url=url)
            await self.store.finish(hold, ended("a"))
            ids.append(hold.job_id)
        return ids

    async def later(self, ms: float) -> None:
        """Put the clock forward, and do what the sweeper does."""
        self.debts.ahead_ms += int(ms)
        for lane, _ in await self.debts.sweep():
            self.courier.attend(lane)

    async def until(self, job_id: str, is_so: Callable[[dict], bool]) -> dict:
        """Return a job's first delivery once it is as wanted."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                (seen,) = await self.debts.deliveries(job_id, 9)
                if is_so(seen):
                    return seen
                await asyncio.sleep(0.01)

    async def until_tried(self, job_id: str, tries: int) -> dict:
        """Return a job's delivery once so many tries of it are written down."""
        return await self.until(job_id, lambda seen: len(seen["attempts"]) >= tries)


@asynccontextmanager
async def open_office(door: RedisDoor, total_s: float = 1.0) -> AsyncIterator[Office]:
    office = Office(door, total_s)
    running_task = asyncio.create_task(office.courier.run())
    try:
        yield office
    finally:
        await office.courier.close()
        running_task.cancel()
        await asyncio.wait({running_task})
        await office.poster.close()


@pytest.fixture
async def office(door: RedisDoor) -> AsyncIterator[Office]:
    async with open_office(door) as made:
        yield made


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def test_a_job_that_ends_is_told_at_once_and_verifiably(office: Office, web: Receiver):
    (job_id,) = await office.owe(web.url + "/hook")

    await web.until(1)

    (secret,) = await office.endpoints.default_secrets()
    event = Webhook(secret).verify(web.got[0].body, web.got[0].headers)
    seen = await office.until(job_id, lambda seen: seen["status"] == "delivered")
    assert (event["type"], event["data"]["id"]) == ("job.completed", job_id)
    assert event["data"]["output"]["text"] == "a"
    assert (event["id"], seen["id"]) == (web.got[0].id, web.got[0].id)


async def test_an_endpoint_gets_its_own_signature_and_both_while_they_overlap(
    office: Office, web: Receiver
):
    made = await office.endpoints.add(web.url + "/hook", "", ())
    rotated = await office.endpoints.rotate(made["id"], overlap=True)

    await office.owe("http://127.0.0.1:1/")
    await web.until(1)

    for secret in (made["signing_secret"], rotated["signing_secret"]):
        assert Webhook(secret).verify(web.got[0].body, web.got[0].headers)


async def test_a_receiver_that_is_down_for_an_hour_is_told_once_it_is_back(office: Office):
    async with receiver() as down:
        url = down.url + "/hook"
        port = int(down.url.rpartition(":")[2])
    (job_id,) = await office.owe(url)
    await office.until_tried(job_id, 1)

    for tries, wait_s in enumerate(SCHEDULE_S[1:4], start=2):
        await office.later(wait_s * 1000 * JITTER)
        await office.until_tried(job_id, tries)
    async with receiver(port) as back:
        await office.later(SCHEDULE_S[4] * 1000 * JITTER)
        await back.until(1)
        seen = await office.until(job_id, lambda seen: seen["status"] == "delivered")

        assert [one["status_code"] for one in seen["attempts"]] == [None, None, None, None, 200]
        assert back.ids() == {seen["id"]: 1}


async def test_the_schedule_is_kept_and_ends_after_ten_tries(office: Office, web: Receiver):
    url = web.at("/hook", answers.status(500, body=b"no"))
    (job_id,) = await office.owe(url)

    for tries, wait_s in enumerate(SCHEDULE_S[1:], start=1):
        seen = await office.until_tried(job_id, tries)
        due_in_s = seen["next_attempt_at"] - time.time() - office.debts.ahead_ms / 1000
        assert wait_s * 0.9 - LIMIT_S <= due_in_s <= wait_s * 1.1
        await office.later(due_in_s * 1000 + 1000)

    seen = await office.until(job_id, lambda seen: seen["status"] == "given_up")
    await office.later(200 * HOUR_MS)
    assert len(seen["attempts"]) == len(SCHEDULE_S) == 10
    assert web.ids() == {seen["id"]: 10}
    assert {one["answer"] for one in seen["attempts"]} == {"no"}


@pytest.mark.parametrize(
    "bad",
    [
        answers.status(500),
        answers.status(404),
        answers.status(302, "Location: /elsewhere"),
        answers.hang(),
        answers.hang_up(),
        answers.endless(503, 10_000_000_000),
    ],
    ids=["500", "404", "redirect", "hangs", "hangs up", "10 GB"],
)
async def test_after_any_failure_the_same_event_comes_again(
    office: Office, web: Receiver, bad: Answer
):
    url = web.at("/hook", bad, answers.status(200))
    (job_id,) = await office.owe(url)
    await office.until_tried(job_id, 1)

    await office.later(6_000)

    seen = await office.until(job_id, lambda seen: seen["status"] == "delivered")
    assert web.ids() == {seen["id"]: 2}
    assert {got.path for got in web.got} == {"/hook"}


async def test_gone_is_told_nothing_more(office: Office, web: Receiver):
    url = web.at("/hook", answers.status(410))
    (job_id,) = await office.owe(url)

    await office.until(job_id, lambda seen: seen["status"] == "given_up")

    await office.later(100 * HOUR_MS)
    assert len(web.got) == 1


async def test_a_receiver_that_asks_for_time_gets_it(office: Office, web: Receiver):
    url = web.at("/hook", answers.status(429, "Retry-After: 3600"), answers.status(200))
    (job_id,) = await office.owe(url)

    seen = await office.until_tried(job_id, 1)

    assert 3600 - LIMIT_S <= seen["next_attempt_at"] - time.time() <= 3600
    await office.later(3_601_000)
    await web.until(2)


async def test_an_endpoint_that_is_gone_is_disabled_with_a_line_in_the_log(
    office: Office, web: Receiver, caplog: pytest.LogCaptureFixture
):
    made = await office.endpoints.add(web.at("/hook", answers.status(410)), "", ())
    caplog.set_level(logging.WARNING)

    await office.owe("http://127.0.0.1:1/")

    async with asyncio.timeout(LIMIT_S):
        while "webhook.endpoint_disabled" not in caplog.messages:  # noqa: ASYNC110 - a log's
            await asyncio.sleep(0.01)
    (record,) = [one for one in caplog.records if one.message == "webhook.endpoint_disabled"]
    assert (record.endpoint_id, record.reason) == (made["id"], "it answered 410 Gone")
    assert (await office.endpoints.get(made["id"]))["status"] == "disabled"


async def test_receivers_that_hang_do_not_delay_the_others(
    door: RedisDoor, web: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SLOTS", 8)
    monkeypatch.setattr(module, "SILENT_SLOTS", 2)
    async with open_office(door, total_s=0.3) as office, receiver() as dead:
        hanging = dead.at("/hook", answers.hang())
        await office.owe(hanging, 30)
        await dead.until(6)  # it is known for what it is

        jobs = await office.owe(web.url + "/hook", 30)
        for job_id in jobs:
            await office.until(job_id, lambda seen: seen["status"] == "delivered")

        assert len(web.got) == 30
        assert len(dead.got) < 30


async def test_a_lane_never_has_more_in_flight_than_its_limit(
    office: Office, door: RedisDoor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_LIMIT", 6)
    inside, most = 0, 0

    async def slow(*_: object) -> Tried:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.005)
        inside -= 1
        return Tried("delivered", 200, "", time.time(), 0.0)

    office.courier._deliver = slow
    door.on_owed = None  # until all are due
    jobs = await office.owe("http://127.0.0.1:1/", 60)
    office.courier.attend("http://127.0.0.1:1")
    for job_id in jobs:
        await office.until(job_id, lambda seen: seen["status"] == "delivered")

    assert most == 6


async def test_a_receiver_that_stays_silent_is_soon_tried_one_at_a_time(
    office: Office, door: RedisDoor
):
    inside, seen = 0, list[int]()

    async def silent(*_: object) -> Tried:
        nonlocal inside
        inside += 1
        seen.append(inside)
        await asyncio.sleep(0.005)
        inside -= 1
        return Tried("failed", None, "", time.time(), 0.0)

    office.courier._deliver = silent
    door.on_owed = None  # until all are due
    jobs = await office.owe("http://127.0.0.1:1/", 20)
    office.courier.attend("http://127.0.0.1:1")
    for job_id in jobs:
        await office.until_tried(job_id, 1)

    assert max(seen) == module.FIRST_LIMIT
    assert set(seen[10:20]) == {1}


async def test_a_lane_in_which_nothing_happens_is_left_and_taken_up_again(
    office: Office, web: Receiver, door: RedisDoor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_LINGER_S", 0.05)
    await office.owe(web.url)
    await web.until(1)
    async with asyncio.timeout(LIMIT_S):
        while office.courier._lanes:  # noqa: ASYNC110 - its own tasks
            await asyncio.sleep(0.01)
    watched = await door.redis.exists(door.key("hook_watch", lane_of(web.url)))

    await office.owe(web.url)

    await web.until(2)
    assert watched == 0


async def test_a_try_that_is_cut_off_is_made_again_under_the_same_id(
    door: RedisDoor, web: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_GRACE_S", 0.05)
    url = web.at("/hook", answers.hang(), answers.status(200))
    async with open_office(door, total_s=30) as first:
        (job_id,) = await first.owe(url)
        await web.until(1)

    await door.redis.delete(door.key("hook_watch", lane_of(url)))  # or wait for two seconds
    async with open_office(door) as second:
        await second.later(keys.HOOK_LEASE_MS + 1000)
        seen = await second.until(job_id, lambda seen: seen["status"] == "delivered")

    assert web.ids() == {seen["id"]: 2}


async def test_what_was_delivered_before_the_close_is_written_down(door: RedisDoor, web: Receiver):
    gate = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answers.status(200)(writer)

    url = web.at("/hook", answer)
    async with open_office(door, total_s=5) as office:
        (job_id,) = await office.owe(url)
        await web.until(1)
        asyncio.get_running_loop().call_later(0.05, gate.set)

    (seen,) = await Debts(door).deliveries(job_id, 9)
    assert seen["status"] == "delivered"


async def test_a_store_that_is_away_for_a_moment_costs_no_event(
    office: Office, web: Receiver, monkeypatch: pytest.MonkeyPatch
):
    from worker.contract.errors import StoreUnavailable  # noqa: PLC0415 - the only use

    whole: Callable[..., Awaitable[object]] = office.debts.settle
    calls = 0

    async def settle(batch: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailable("away")
        return await whole(batch)

    monkeypatch.setattr(office.debts, "settle", settle)
    (job_id,) = await office.owe(web.url)

    seen = await office.until(job_id, lambda seen: seen["status"] == "delivered")

    assert web.ids() == {seen["id"]: 1}
