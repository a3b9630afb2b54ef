"""One job from its ticket to its end: the echo engine, a real Redis, and every kind of end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import MakeSettings
from tests.support.factories import PICTURE, claim, question, submit
from worker.batcher import Batcher
from worker.chat import ChatAttempt, estimate_tokens
from worker.contract.door import RedisDoor
from worker.contract.errors import EngineDied, MediaUnreadable, StoreUnavailable
from worker.contract.job import Hold, JobSpec, Lane, PreparedMedia, Priority, Stage
from worker.contract.keys import queue_of
from worker.contract.live import Orders
from worker.contract.reader import JobReader
from worker.contract.s3 import ObjectStore
from worker.contract.store import JobStore
from worker.engine.base import Delta, Prompt
from worker.engine.echo import EchoEngine
from worker.holds import Holds, Stop
from worker.preparing import PrepareAttempt
from worker.runner import Runner, Verdict
from worker.stream import DeltaStream

LIMIT_S = 10
LEASE_S = 0.8
CARD = {"model": "demo", "engine": "echo", "options": ["logprobs", "top_logprobs", "tools"]}
ENDLESS = "[[tokens=100000 rate=100]]"


class ScriptedEngine(EchoEngine):
    """The echo engine, and bad luck that only a process of its own could have."""

    died = 0
    absent = 0
    inside = 0

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        if self.absent:
            self.absent -= 1
            raise EngineDied("killed before", was_inside=False)
        self.inside += 1
        try:
            async for delta in super().generate(prompt):
                yield delta
                if self.died:
                    self.died -= 1
                    raise EngineDied("killed")
                if "[[bug]]" in str(prompt.turns):
                    raise ZeroDivisionError("a fault of ours")
        finally:
            self.inside -= 1

    async def answer(self, prompt: Prompt, take: Callable[[Delta], None]) -> None:
        async with aclosing(self.generate(prompt)) as deltas:
            async for delta in deltas:
                take(delta)


@dataclass
class House:
    """One chat worker's parts in this process."""

    store: JobStore
    reader: JobReader
    holds: Holds
    engine: ScriptedEngine
    door: RedisDoor
    runner: Runner
    why: list[Stop | None]
    sent_again: list[str]

    async def run(self, job_id: str) -> Verdict:
        async with asyncio.timeout(LIMIT_S):
            return await self.runner.run(job_id)

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self.reader.get(job_id)

    async def until(self, job_id: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            while not is_so(job := await self.job(job_id)):  # noqa: ASYNC110 - other tasks write
                await asyncio.sleep(0.01)
        return job

    async def until_streaming(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["progress"]["tokens"] > 2)


@pytest.fixture
async def house(make_settings: MakeSettings) -> AsyncIterator[House]:
    settings = make_settings(FOREBAY_LEASE_S=LEASE_S)
    door = RedisDoor(settings)
    store, orders, engine = JobStore(door), Orders(door, "me"), ScriptedEngine()
    objects = ObjectStore(settings)
    holds = Holds(store, orders, LEASE_S)
    stream, batcher = DeltaStream(store, holds.lose), Batcher(8, 10**6)
    why: list[Stop | None] = [None]
    sent_again: list[str] = []
    await engine.start()

    def begin(hold: Hold) -> ChatAttempt:
        return ChatAttempt(
            hold, answer=engine.answer, batcher=batcher, stream=stream, objects=objects,
            card=CARD, cost=estimate_tokens, max_tokens=256, max_picture_bytes=10**6,
        )  # fmt: skip

    runner = Runner(
        store, holds, begin, lane=Lane.CHAT, owner="me", give_up_s=LEASE_S,
        why_cancelled=lambda: why[0], send=lambda hold: sent_again.append(hold.job_id),
    )  # fmt: skip
    tasks = [asyncio.create_task(holds.run()), asyncio.create_task(stream.run())]
    yield House(store, JobReader(door), holds, engine, door, runner, why, sent_again)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await engine.close()
    await orders.close()
    await objects.close()
    await door.close()


async def test_a_ticket_becomes_an_answer(house: House):
    job_id = await submit(house.store, "图片中有四只羊")

    verdict = await house.run(job_id)

    job = await house.job(job_id)
    assert verdict is Verdict.COMPLETED
    assert (job["status"], job["output"]["text"]) == ("completed", "图片中有四只羊")
    assert job["usage"]["completion_tokens"] == job["progress"]["tokens"] == 7
    assert len(house.holds) == 0


async def test_an_option_that_nobody_could_refuse_at_submission_is_refused_by_the_worker(
    house: House,
):
    lost, kept = [
        (await house.store.submit(question("hi", options=options), JobSpec())).job_id
        for options in ({"logprobs": True, "top_k": 3}, {"logprobs": True, "max_tokens": 9})
    ]

    verdicts = [await house.run(job_id) for job_id in (lost, kept)]

    error = (await house.job(lost))["error"]
    assert verdicts == [Verdict.FAILED, Verdict.COMPLETED]
    assert (error["code"], error["message"]) == (
        "option_unsupported",
        "the echo engine of demo cannot honour top_k",
    )


async def test_a_second_delivery_of_a_finished_job_changes_nothing(house: House):
    job_id = await submit(house.store, "hi")
    await house.run(job_id)
    before = await house.job(job_id)

    verdict = await house.run(job_id)

    assert verdict is Verdict.NOT_OURS
    assert await house.job(job_id) == before


async def test_two_deliveries_at_once_are_one_attempt(house: House):
    job_id = await submit(house.store, "[[tokens=20 rate=200]]")

    verdicts = await asyncio.gather(*(house.run(job_id) for _ in range(4)))

    assert sorted(verdicts) == ["completed", "not_ours", "not_ours", "not_ours"]
    assert (await house.job(job_id))["attempt"] == 1


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        ("[[fail]]", "engine_error", ""),
        ("[[tokens=3]][[oom]]", "out_of_memory", "tok1 tok2 tok3"),
        ("x [[bug]]", "internal", "x"),
    ],
)
async def test_a_failure_keeps_its_code_and_what_was_said(
    house: House, query: str, code: str, text: str
):
    job_id = await submit(house.store, query)

    verdict = await house.run(job_id)

    job = await house.job(job_id)
    assert verdict is Verdict.FAILED
    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert job["output"]["text"].strip() == text
    assert "ZeroDivision" not in str(job)


async def test_a_job_over_its_time_fails_with_what_it_has(house: House):
    job_id = await submit(house.store, ENDLESS, timeout_s=0.2)

    await house.run(job_id)

    job = await house.job(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "timeout")
    assert job["output"]["text"].startswith("tok1 tok2 ")
    assert house.engine.inside == 0


async def test_a_callers_cancel_takes_the_job_out_of_the_engine(house: House):
    job_id = await submit(house.store, ENDLESS)
    running = asyncio.create_task(house.run(job_id))
    await house.until_streaming(job_id)

    await house.store.cancel(job_id)

    verdict = await running
    events = await house.door.events(job_id)
    job = await house.job(job_id)
    assert verdict is Verdict.CANCELLED
    assert (job["status"], house.engine.inside) == ("cancelled", 0)
    assert job["output"]["text"] == "".join(event.text for event in events) != ""


async def test_a_drain_gives_the_job_back_and_the_next_attempt_goes_on(house: House):
    job_id = await submit(house.store, "[[tokens=60 rate=150]]")
    first = asyncio.create_task(house.run(job_id))
    await house.until_streaming(job_id)

    first.cancel()
    verdict = await first
    waiting = await house.job(job_id)
    second = await house.run(job_id)

    job, events = await house.job(job_id), await house.door.events(job_id)
    assert (verdict, waiting["status"]) == (Verdict.GIVEN_BACK, "queued")
    assert waiting["output"]["text"].startswith("tok1 tok2 ")
    assert (second, job["attempt"]) == (Verdict.COMPLETED, 2)
    assert job["output"]["text"] == " ".join(f"tok{n}" for n in range(1, 61))
    assert "".join(event.text for event in events) == job["output"]["text"]


async def test_reasoning_calls_and_logprobs_go_on_over_attempts(house: House):
    tools = [{"type": "function", "function": {"name": "add"}}]
    asked = {"tools": tools, "logprobs": True, "top_logprobs": 1}
    text = "[[think=hm]]one[[tool=add {}]][[tool=add {}]]"
    alone = await house.store.submit(question(text, options=asked), JobSpec())
    cut = await house.store.submit(question(text, options=asked), JobSpec())
    await house.run(alone.job_id)
    house.engine.died = 2

    verdicts = [await house.run(cut.job_id) for _ in range(3)]

    whole = (await house.job(alone.job_id))["output"]
    output, events = (await house.job(cut.job_id))["output"], await house.door.events(cut.job_id)
    assert verdicts == [Verdict.GIVEN_BACK, Verdict.GIVEN_BACK, Verdict.COMPLETED]
    assert output["reasoning"] == whole["reasoning"] == "hm"
    assert output["text"] == whole["text"] == "one"
    assert output["logprobs"] == whole["logprobs"]
    assert output["tool_calls"] == [call for event in events for call in event.said.tool_calls]
    assert len({call["id"] for call in output["tool_calls"] + whole["tool_calls"]}) == 4


async def test_terminating_the_task_from_outside_can_mean_cancel(house: House):
    job_id = await submit(house.store, ENDLESS)
    house.why[0] = Stop.CANCELLED
    running = asyncio.create_task(house.run(job_id))
    await house.until_streaming(job_id)

    running.cancel()

    assert await running is Verdict.CANCELLED
    assert (await house.job(job_id))["status"] == "cancelled"


async def test_a_lost_job_is_dropped_and_nothing_more_is_written(house: House):
    job_id = await submit(house.store, ENDLESS)
    running = asyncio.create_task(house.run(job_id))
    await house.until_streaming(job_id)

    await house.store.hand_back("me")
    other = await claim(house.store, job_id, "other")

    assert await running is Verdict.NOT_OURS
    job, events = await house.job(job_id), await house.door.events(job_id)
    assert (job["status"], job["attempt"]) == ("in_progress", 2)
    assert "".join(event.text for event in events) == other.emitted_text
    assert house.engine.inside == 0


async def test_a_dead_engine_counts_against_the_job_and_it_goes_on(house: House):
    job_id = await submit(house.store, "one two three")
    house.engine.died = 1

    first = await house.run(job_id)
    second = await house.run(job_id)

    job = await house.job(job_id)
    assert (first, second) == (Verdict.GIVEN_BACK, Verdict.COMPLETED)
    assert (job["output"]["text"], job["attempt"]) == ("one two three", 2)
    assert house.sent_again == [job_id]


async def test_an_engine_that_died_before_a_job_came_to_it_does_not_count_against_the_job(
    house: House,
):
    job_id = await submit(house.store, "one two three")
    house.engine.absent = 1

    first = await house.run(job_id)

    record = await house.door.redis.hgetall(house.door.key("job", job_id))
    assert (first, record["status"], record["crashes"]) == (Verdict.GIVEN_BACK, "queued", "0")


async def test_a_job_that_kills_every_engine_ends(house: House):
    job_id = await submit(house.store, "a b c d e f")
    house.engine.died = 3

    verdicts = [await house.run(job_id) for _ in range(4)]

    job = await house.job(job_id)
    assert verdicts[-1] is Verdict.NOT_OURS
    assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")


async def test_many_jobs_are_answered_at_once(house: House):
    ids = [await submit(house.store, f"[[tokens={n} rate=500]]") for n in range(1, 21)]

    verdicts = await asyncio.gather(*(house.run(job_id) for job_id in ids))

    jobs = [await house.job(job_id) for job_id in ids]
    assert set(verdicts) == {Verdict.COMPLETED}
    assert [job["usage"]["completion_tokens"] for job in jobs] == list(range(1, 21))


# --- the media lane -------------------------------------------------------------------------------


@dataclass
class MediaHouse:
    """One media worker's parts.

    `outcomes` are what preparing gives, one per attempt; for an event it waits before it gives it.
    """

    house: House
    outcomes: list[Any]
    sent: list[tuple[str, str]]
    runner: Runner


@pytest.fixture
def media(house: House) -> MediaHouse:
    outcomes: list[Any] = []
    sent: list[tuple[str, str]] = []

    async def prepare(hold: Hold, progress: Any) -> tuple[PreparedMedia, ...]:
        await progress(Stage.PREPARING, 1)
        match outcomes.pop(0):
            case BaseException() as outcome:
                raise outcome
            case asyncio.Event() as gate:
                await gate.wait()
        return (PICTURE,) * len(hold.request.media)

    def begin(hold: Hold) -> PrepareAttempt:
        def send(job_id: str, queue: str) -> None:
            sent.append((job_id, queue))

        return PrepareAttempt(hold, store=house.store, prepare=prepare, send=send)

    runner = Runner(
        house.store, house.holds, begin, lane=Lane.MEDIA, owner="me", give_up_s=LEASE_S,
        why_cancelled=lambda: None, send=lambda hold: sent.append((hold.job_id, queue_of(hold))),
    )  # fmt: skip
    return MediaHouse(house, outcomes, sent, runner)


async def test_prepared_media_hand_the_job_on(media: MediaHouse):
    media.outcomes.append(PICTURE)
    job_id = await submit(media.house.store, pictures=2)

    verdict = await media.runner.run(job_id)

    job = await media.house.job(job_id)
    assert verdict is Verdict.HANDED_ON
    assert media.sent == [(job_id, "chat.echo.normal")]
    assert (job["status"], job["stage"], len(job["media"])) == ("queued", "waiting_engine", 2)


async def test_the_progress_of_long_work_can_be_seen(media: MediaHouse):
    media.outcomes.append(gate := asyncio.Event())
    job_id = await submit(media.house.store, pictures=2)

    run = asyncio.create_task(media.runner.run(job_id))
    job = await media.house.until(job_id, lambda job: job["stage"] == "preparing")
    gate.set()

    assert job["progress"]["media_done"] == 1
    assert await run is Verdict.HANDED_ON
    assert (await media.house.job(job_id))["progress"]["media_done"] == 2


async def test_bad_media_end_the_job_and_name_the_part(media: MediaHouse):
    media.outcomes.append(MediaUnreadable("damaged", param="images[0]"))
    job_id = await submit(media.house.store, pictures=1)

    verdict = await media.runner.run(job_id)

    job = await media.house.job(job_id)
    assert verdict is Verdict.FAILED
    assert (job["error"]["code"], job["error"]["param"]) == ("media_unreadable", "images[0]")
    assert (job["generation_info"], media.sent) == (None, [])


async def test_a_store_that_is_away_is_no_ones_fault(media: MediaHouse):
    media.outcomes += [StoreUnavailable("S3 does not answer"), PICTURE]
    job_id = await submit(media.house.store, pictures=1)

    first = await media.runner.run(job_id)
    second = await media.runner.run(job_id)

    record = await media.house.door.redis.hgetall(media.house.door.key("job", job_id))
    assert (first, second) == (Verdict.GIVEN_BACK, Verdict.HANDED_ON)
    assert media.sent == [(job_id, "media"), (job_id, "chat.echo.normal")]
    assert record["crashes"] == "0"


async def test_a_job_goes_to_the_queue_of_its_own_class(media: MediaHouse):
    media.outcomes.append(PICTURE)
    job_id = await submit(media.house.store, pictures=1, priority=Priority.HIGH)

    await media.runner.run(job_id)

    assert media.sent == [(job_id, "chat.echo.high")]
