"""The events of several jobs as one sequence."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from worker.contract.events import Event
from worker.contract.live import LiveEvents

_Basin = asyncio.Queue[tuple[int, Event | None]]  # None: that job's events are over


async def joined(
    live: LiveEvents, cursors: Sequence[tuple[str, int]]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield the events of jobs as they come, each with its job's place in `cursors`.

    A cursor is a job's id and the number after which it is read. Raises StoreUnavailable.
    """
    if len(cursors) == 1:
        async with aclosing(live.follow(*cursors[0])) as events:
            async for event in events:
                yield 0, event
        return
    # Not bounded: it holds no more than the answers, which a caller reads whole at the end.
    basin: _Basin = asyncio.Queue()
    pumps = [_start(number, live, cursor, basin) for number, cursor in enumerate(cursors)]
    running = len(pumps)
    try:
        while running:
            number, next_event = await basin.get()
            if next_event is None:
                pumps[number].result()  # raises what ended it
                running -= 1
            else:
                yield number, next_event
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)


def _start(
    number: int, live: LiveEvents, cursor: tuple[str, int], basin: _Basin
) -> asyncio.Task[None]:
    def dry(_: asyncio.Task[None]) -> None:
        basin.put_nowait((number, None))

    pump = asyncio.create_task(_pump(number, live, cursor, basin))
    pump.add_done_callback(dry)
    return pump


async def _pump(number: int, live: LiveEvents, cursor: tuple[str, int], basin: _Basin) -> None:
    async with aclosing(live.follow(*cursor)) as events:
        async for event in events:
            basin.put_nowait((number, event))
