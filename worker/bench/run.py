"""Runs a load: in this process, or divided among several so that the client is not what is slow."""

import asyncio
import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import uvloop

from worker.bench.client import Client
from worker.bench.load import Load, Report, Sample, another, body, picture_url, report

START_S = 3.0
"""How long processes have to get ready before they start together."""
_SHARE, _RUN, _RUNS = 100_000, 10_000_000, 1000
"""Requests' numbers: those of two processes, and of two runs, are so far apart."""
_DRAWN = 64
WARM_UP = 0.15
"""The share of a steady run that no rate counts: the server fills up."""

Advance = Callable[[Sample], None]
"""Hears every sample as it ends."""


def bench(load: Load, processes: int = 1, advance: Advance = lambda _: None) -> Report:
    """Run a load and sum it up. With several processes, each takes its share of it.

    Every run has pictures of its own: a server that remembers those of another run would be timed
    for its memory.

    Raises:
        ValueError: the server does not answer or serves no model, or the load is none.
    """
    load = uvloop.run(_completed(load))
    first = secrets.randbelow(_RUNS) * _RUN
    if processes == 1:
        samples = uvloop.run(run(load, first=first, advance=advance))
    else:
        samples = _divided(load, first, processes)
        for sample in samples:
            advance(sample)
    return report(samples, _window(load, samples))


async def run(
    load: Load, *, first: int = 0, start_at: float = 0.0, advance: Advance = lambda _: None
) -> list[Sample]:
    """Send the load's requests, numbered from `first`, from the monotonic moment `start_at` on."""
    async with Client(load) as client:
        if load.jobs:
            return await _at_once(load, client, first, start_at, advance)
        return await _steadily(load, client, first, start_at, advance)


async def _completed(load: Load) -> Load:
    """Return the load with the server's first model where it names none, and checked."""
    if bool(load.jobs) == bool(load.seconds) or (load.seconds and not (load.rate or load.inside)):
        raise ValueError("give a number of jobs, or seconds and a rate or how many are inside")
    if load.model:
        return load
    async with Client(load) as client:
        models = await client.models()
    if not models:
        raise ValueError(f"{load.url} serves no model")
    return replace(load, model=models[0])


async def _at_once(
    load: Load, client: Client, first: int, start_at: float, advance: Advance
) -> list[Sample]:
    bodies = [body(load, first + number) for number in range(load.jobs)]  # drawn before the clock
    await asyncio.sleep(max(0.0, start_at - time.monotonic()))
    return list(await asyncio.gather(*(_one(client, one, advance) for one in bodies)))


async def _steadily(
    load: Load, client: Client, first: int, start_at: float, advance: Advance
) -> list[Sample]:
    """Keep `inside` requests under way, or let `rate` a second come, for `seconds`."""
    fresh = _fresh(load, first)
    await asyncio.sleep(max(0.0, start_at - time.monotonic()))
    end = time.monotonic() + load.seconds
    samples: list[Sample] = []

    async def send_on() -> None:
        while time.monotonic() < end:
            samples.append(await _one(client, next(fresh), advance))

    if load.inside:
        await asyncio.gather(*(send_on() for _ in range(load.inside)))
        return samples
    return await _at_rate(load, client, fresh, end, advance)


async def _at_rate(
    load: Load, client: Client, fresh: Iterator[dict[str, Any]], end: float, advance: Advance
) -> list[Sample]:
    """Send on the clock, whatever the server does: a slow one gets a queue, not less load."""
    begin, sent = time.monotonic(), []
    for number in count():
        moment = begin + number / load.rate
        if moment >= end:
            break
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        sent.append(asyncio.create_task(_one(client, next(fresh), advance)))
    return list(await asyncio.gather(*sent))


def _fresh(load: Load, first: int) -> Iterator[dict[str, Any]]:
    """Yield request after request, each with a picture that no server has seen.

    Drawing while the clock runs would cost the client what it times: a few are drawn before, and
    come again as other files.
    """
    drawn = [picture_url(load.pixels, first + n) for n in range(_DRAWN)] if load.pixels else []

    def requests() -> Iterator[dict[str, Any]]:
        for number in count(first):
            yield body(load, number, another(drawn[number % _DRAWN], number) if drawn else "")

    return requests()


async def _one(client: Client, request: dict[str, Any], advance: Advance) -> Sample:
    sample = await client.ask(request)
    advance(sample)
    return sample


def _divided(load: Load, first: int, processes: int) -> list[Sample]:
    shares = [_share(load, number, processes) for number in range(processes)]
    start_at = time.monotonic() + START_S + load.jobs * 0.02 / processes  # the clock is the host's
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        running = [
            pool.submit(_in_process, share, first + number * _SHARE, start_at)
            for number, share in enumerate(shares)
        ]
        return [sample for one in running for sample in one.result()]


def _share(load: Load, number: int, processes: int) -> Load:
    def part(whole: int) -> int:
        return whole // processes + (number < whole % processes)

    return replace(load, jobs=part(load.jobs), inside=part(load.inside), rate=load.rate / processes)


def _in_process(load: Load, first: int, start_at: float) -> list[Sample]:
    if not (load.jobs or load.inside or load.rate):
        return []
    return uvloop.run(run(load, first=first, start_at=start_at))


def _window(load: Load, samples: list[Sample]) -> tuple[float, float] | None:
    if not load.seconds or not samples:
        return None
    begin = min(sample.sent_at for sample in samples)
    return begin + WARM_UP * load.seconds, begin + load.seconds
