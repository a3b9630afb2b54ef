"""Deltas on their way to a real Redis: joined, in order, once, and none after the end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from tests.support.factories import ended, running
from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.events import Event
from worker.contract.job import Hold
from worker.contract.store import JobStore, Piece
from worker.engine.base import Delta, TokenLogprob, ToolCall
from worker.stream import DeltaStream
from worker.telling import call_objects, logprob_object

LIMIT_S = 5


class FlakyStore(JobStore):
    """The real store behind a bad line: calls can be held, or fail before or after Redis."""

    def __init__(self, door: RedisDoor) -> None:
        super().__init__(door)
        self.calls: list[list[Piece]] = []
        self.fail_before = 0
        self.fail_after = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, pieces: Sequence[Piece]) -> list[str]:
        self.calls.append(list(pieces))
        await self.gate.wait()
        if self.fail_before:
            self.fail_before -= 1
            raise StoreUnavailable("cut before")
        refused = await super().append(pieces)
        if self.fail_after:
            self.fail_after -= 1
            raise StoreUnavailable("cut after")
        return refused


@pytest.fixture
def flaky(door: RedisDoor) -> FlakyStore:
    return FlakyStore(door)


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
async def stream(flaky: FlakyStore, refused: list[str]) -> AsyncIterator[DeltaStream]:
    made = DeltaStream(flaky, refused.extend)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.wait({task})


def delta(text: str) -> Delta:
    return Delta(text, tuple(map(ord, text)))


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not is_so():  # noqa: ASYNC110 - the stream's own task is waited for
            await asyncio.sleep(0.002)


async def events_of(door: RedisDoor, hold: Hold, count: int) -> list[Event]:
    """Return the events after the claim, once there are so many."""
    async with asyncio.timeout(LIMIT_S):
        while len(events := await door.events(hold.job_id, after=2)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return events


async def test_the_first_piece_leaves_at_once_and_later_ones_are_joined(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor
):
    hold = await running(flaky)
    line = stream.begin(hold)
    line.add(delta("四"))
    await until(lambda: len(flaky.calls) == 1)
    for text in "只羊在":
        line.add(delta(text))

    events = await events_of(door, hold, 3)

    assert [event.text for event in events] == ["", "四", "只羊在"]
    assert [piece.number for call in flaky.calls for piece in call] == [1, 2, 3]
    assert len(flaky.calls) == 2


async def test_the_first_text_does_not_wait_for_the_news_that_generation_began(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.stream.FLUSH_S", 3600.0)
    hold = await running(flaky)
    line = stream.begin(hold)

    line.add(delta("四"))

    assert [event.text for event in await events_of(door, hold, 2)] == ["", "四"]


async def test_the_news_that_generation_began_waits_for_no_text(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor
):
    holds = [await running(flaky) for _ in range(5)]
    for hold in holds:
        stream.begin(hold)

    news = [(await events_of(door, hold, 1))[-1].data for hold in holds]

    assert all('"generating"' in data for data in news)
    assert len(flaky.calls) == 1


async def test_one_flush_carries_every_jobs_text(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor
):
    holds = [await running(flaky) for _ in range(5)]
    for n, hold in enumerate(holds):
        stream.begin(hold).add(delta(f"answer {n}"))

    texts = [(await events_of(door, hold, 2))[-1].text for hold in holds]

    assert texts == [f"answer {n}" for n in range(5)]
    assert len(flaky.calls) == 1


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
async def test_a_flush_that_fails_is_repeated_exactly_and_written_once(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor, when: str
):
    hold = await running(flaky)
    setattr(flaky, when, 2)
    line = stream.begin(hold)
    line.add(delta("a"))
    await until(lambda: len(flaky.calls) == 1)
    line.add(delta("b"))

    await until(lambda: len(flaky.calls) == 4)
    events = await events_of(door, hold, 3)

    assert flaky.calls[0] == flaky.calls[1] == flaky.calls[2]
    assert [event.text for event in events] == ["", "a", "b"]


async def test_the_end_waits_for_a_flush_on_its_way_and_takes_the_rest_along(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor
):
    hold = await running(flaky)
    flaky.gate.clear()
    line = stream.begin(hold)
    line.add(delta("a"))
    await until(lambda: len(flaky.calls) == 1)
    line.add(delta("b"))

    ending = asyncio.create_task(stream.end(line))
    await asyncio.wait({ending}, timeout=0.05)
    is_waiting = not ending.done()
    flaky.gate.set()
    rest = await ending
    await flaky.finish(hold, ended("ab"), rest)

    assert is_waiting
    assert [(piece.number, piece.text) for piece in rest] == [(3, "b")]
    events = await door.events(hold.job_id, after=2)
    assert [event.text for event in events] == ["", "a", "b", ""]
    assert events[-1].kind == "completed"


async def test_nothing_arrives_after_the_end(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor
):
    hold, other = await running(flaky), await running(flaky)
    line = stream.begin(hold)
    line.add(delta("a"))
    rest = await stream.end(line)
    await flaky.finish(hold, ended("a"), rest)
    stream.begin(other).add(delta("x"))
    await events_of(door, other, 2)

    assert (await door.events(hold.job_id))[-1].kind == "completed"
    assert all(piece.job_id == other.job_id for call in flaky.calls for piece in call)
    assert await stream.end(line) == []


async def test_lost_jobs_are_told(
    stream: DeltaStream, flaky: FlakyStore, refused: list[str], door: RedisDoor
):
    lost, kept = await running(flaky), await running(flaky)
    await flaky.release(lost)
    for hold in (lost, kept):
        stream.begin(hold).add(delta("x"))

    await events_of(door, kept, 2)
    await until(lambda: bool(refused))

    assert set(refused) == {lost.job_id}


async def test_reasoning_calls_and_logprobs_go_along_and_calls_are_numbered_over_attempts(
    stream: DeltaStream, flaky: FlakyStore, door: RedisDoor
):
    call, entry = ToolCall("add", "{}"), TokenLogprob(b"a", -1.0)
    before = call_objects("job", 0, [call])
    first = await running(flaky)
    hold = replace(first, emitted_tool_calls=before)
    line = stream.begin(hold)
    await events_of(door, hold, 1)
    line.add(Delta("", (1,), reasoning="hm", logprobs=(entry,)))
    line.add(Delta("a", (2,), tool_calls=(call, call), logprobs=(entry,)))
    line.add(Delta("b", (3,), reasoning="m", tool_calls=(call,), logprobs=(entry,)))

    (rest,) = await stream.end(line)

    assert (rest.text, rest.reasoning, rest.token_ids) == ("ab", "hmm", (1, 2, 3))
    assert rest.tool_calls == call_objects(hold.job_id, 1, [call] * 3)
    assert rest.logprobs == (logprob_object(entry),) * 3
