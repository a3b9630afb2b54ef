"""Room in the engine: order, slots, tokens, and jobs that must be alone."""

import asyncio

import pytest

from worker.batcher import Batcher


class Guest:
    """A job that asks for room and stays until it is told to leave."""

    def __init__(self, batcher: Batcher, tokens: int = 1, **how: bool) -> None:
        self.is_inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(batcher, tokens, how))

    async def _stay(self, batcher: Batcher, tokens: int, how: dict[str, bool]) -> None:
        async with batcher.room(tokens, **how):
            self.is_inside = True
            await self._leave.wait()
        self.is_inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def inside(*guests: Guest) -> list[bool]:
    await settle()
    return [guest.is_inside for guest in guests]


async def finish(*guests: Guest) -> None:
    for guest in guests:
        await guest.leave()


async def test_slots_bound_the_jobs_and_a_leaving_one_makes_room():
    batcher = Batcher(2, 1000)
    a, b, c = (Guest(batcher) for _ in range(3))

    before = await inside(a, b, c)
    await a.leave()

    assert before == [True, True, False]
    assert await inside(b, c) == [True, True]
    await finish(b, c)
    assert len(batcher) == 0


async def test_the_budget_bounds_the_tokens_in_sum():
    batcher = Batcher(10, 100)
    a, b, c = Guest(batcher, 60), Guest(batcher, 40), Guest(batcher, 1)

    assert await inside(a, b, c) == [True, True, False]
    await a.leave()
    assert await inside(b, c) == [True, True]
    await finish(b, c)


async def test_nobody_overtakes_one_that_waits_for_much_room():
    batcher = Batcher(10, 100)
    a, large, small = Guest(batcher, 50), Guest(batcher, 80), Guest(batcher, 1)

    before = await inside(a, large, small)
    await a.leave()

    assert before == [True, False, False]
    assert await inside(large, small) == [True, True]
    await finish(large, small)


async def test_a_job_larger_than_the_budget_enters_an_empty_engine():
    batcher = Batcher(10, 100)
    small, huge, after = Guest(batcher, 1), Guest(batcher, 500), Guest(batcher, 1)

    before = await inside(small, huge, after)
    await small.leave()

    assert before == [True, False, False]
    assert await inside(huge, after) == [True, False]
    await finish(huge, after)


async def test_a_job_that_turns_out_smaller_lets_the_next_in():
    batcher = Batcher(10, 100)

    async with batcher.room(90) as room:
        next_one = Guest(batcher, 50)
        before = await inside(next_one)
        room.is_now(50)
        after = await inside(next_one)

    assert (before, after) == ([False], [True])
    await finish(next_one)


async def test_a_job_that_turns_out_larger_keeps_the_next_out():
    batcher = Batcher(10, 100)

    async with batcher.room(10) as room:
        room.is_now(80)
        next_one = Guest(batcher, 30)
        during = await inside(next_one)

    assert during == [False]
    assert await inside(next_one) == [True]
    await finish(next_one)


async def test_a_suspect_is_alone():
    batcher = Batcher(10, 100)
    a, suspect, after = Guest(batcher), Guest(batcher, alone=True), Guest(batcher)

    before = await inside(a, suspect, after)
    await a.leave()
    during = await inside(suspect, after)
    await suspect.leave()

    assert before == [True, False, False]
    assert during == [True, False]
    assert await inside(after) == [True]
    await finish(after)


async def test_one_that_goes_on_is_before_those_that_have_not_begun():
    batcher = Batcher(1, 100)
    a, waiting, goes_on = Guest(batcher), Guest(batcher), Guest(batcher, first=True)
    await settle()

    await a.leave()

    assert await inside(waiting, goes_on) == [False, True]
    await finish(goes_on, waiting)


async def test_a_waiter_that_is_cancelled_blocks_nobody():
    batcher = Batcher(1, 100)
    a, gone, last = (Guest(batcher) for _ in range(3))
    await settle()

    gone.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone.task
    await a.leave()

    assert await inside(last) == [True]
    await finish(last)
    assert len(batcher) == 0


async def test_one_cancelled_as_it_is_let_in_gives_its_room_back():
    batcher = Batcher(1, 100)
    a, unlucky, last = (Guest(batcher) for _ in range(3))
    await settle()

    a._leave.set()
    await asyncio.sleep(0)  # a is out, unlucky is let in and has not yet run
    unlucky.task.cancel()

    assert await inside(unlucky, last) == [False, True]
    await finish(last)
    assert len(batcher) == 0


async def test_a_job_that_fails_inside_gives_its_room_back():
    batcher = Batcher(1, 100)

    with pytest.raises(ZeroDivisionError):
        async with batcher.room(1):
            _ = 1 / 0

    assert len(batcher) == 0
