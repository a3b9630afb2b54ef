"""What a queued job costs in Redis, and whether anything slows down when a million of them wait.

    python -m tests.bench_scale [--sizes 1000,100000,1000000] [--json]

Fills one queue to each size with questions of 600 bytes, straight through `JobStore.submit`, and
prints for each: memory per job; submits, polls and claims per second of one client process with 16
tasks; and Redis' CPU time for one of each, for a sweep with nothing due and for one with 200
tickets to send again. `poll again µs` polls the same hundred jobs over and over, `sweep again µs`
sweeps the same 200 tickets: what any jobs cost more than these is memory that no cache of the
processor holds, not work that grows.
A million jobs are 2.5 GB, and Redis turns huge pages off for itself: each far step into them also
costs a walk of the page table, and the place in the queue is some 20 such steps (ZRANK 1 to 8 µs).
Client and Redis, with its append-only file, share the machine. Redis does not rewrite that file
meanwhile: a rewrite copies every page that is written beside it, and would fall into one figure or
another by chance. A million jobs take some minutes and about 3 GB.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.support import servers
from tests.support.factories import MODEL, question
from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.job import JobSpec, JobStatus, Lane, Outcome, Priority
from worker.contract.reader import JobReader
from worker.contract.settings import Settings
from worker.contract.store import JobStore

TASKS = 16
PROBES = 2000  # polls and claims that are timed
SWEEPS = 50
TICKETS = 200  # per round trip to the broker
DUE = 200  # what one sweep does at most
FEW = 100  # jobs that fit into the processor's caches
QUEUE = keys.chat_queue(MODEL, Priority.NORMAL)
TEXT = "四只羊在草地上。" * 25  # 600 bytes

Figures = dict[str, int]


def main() -> None:
    """Measure at each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,100000,1000000", help="jobs in the queue")
    parser.add_argument("--json", action="store_true", help="print one JSON object per size")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    with servers.redis_server() as environ:
        asyncio.run(measure(environ, sizes, as_json=args.json))


async def measure(environ: dict[str, str], sizes: Sequence[int], *, as_json: bool) -> None:
    """Fill and measure size by size; print each as soon as it is there."""
    prefix = f"bench:{secrets.token_hex(4)}:"
    settings = Settings(
        _env_file=None,
        **environ,
        FOREBAY_KEY_PREFIX=prefix,
        FOREBAY_QUEUE_MAX_JOBS=2 * max(sizes),
        FOREBAY_LEASE_S=600,
    )
    door = RedisDoor(settings, max_connections=TASKS)
    await door.command("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
    scale, rows = Scale(door), []
    for size in sizes:
        rows.append(await scale.at(size))
        if as_json:
            print(json.dumps(rows[-1]), flush=True)
    await scale.close()
    if not as_json:
        Console(width=160).print(_table(rows))


def _table(rows: list[Figures]) -> Table:
    table = Table(*rows[0], title=f"{os.cpu_count()} cores", title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:,}" for value in row.values()))
    return table


def _tickets(job_ids: Iterable[str]) -> list[tuple[str, str]]:
    return [(job_id, QUEUE) for job_id in job_ids]


class Pace(NamedTuple):
    """How fast something went, and Redis' own CPU time for each, which load beside it spares."""

    per_s: int
    redis_us: int


class Scale:
    """One queue that only grows, and what is measured of it."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door
        self._store, self._reader = JobStore(door), JobReader(door)
        self._ids: list[str] = []
        self._one_at_a_time = asyncio.Lock()

    async def at(self, size: int) -> Figures:
        """Fill up to `size` and return its figures."""
        before, held = len(self._ids), await self._memory_bytes()
        submits = await self._timed(self._submit, range(size - before))
        await self._store.published(_tickets(self._ids[-2 * TICKETS :]))
        per_job = (await self._memory_bytes() - held) / (size - before)
        polls = await self._timed(self._poll, random.choices(self._ids, k=PROBES))
        hot = random.choices(self._ids[before : before + FEW], k=PROBES)
        again = await self._timed(self._poll, hot)
        idle = await self._sweep([[]] * SWEEPS)
        busy = await self._sweep([random.sample(self._ids, DUE) for _ in range(SWEEPS)])
        same = await self._sweep([random.sample(self._ids, DUE)] * SWEEPS)
        claims = await self._claims()  # last: it takes jobs out
        return {
            "jobs": size,
            "bytes per job": round(per_job),
            "submits/s": submits.per_s,
            "polls/s": polls.per_s,
            "claims/s": claims.per_s,
            "submit µs": submits.redis_us,
            "poll µs": polls.redis_us,
            "poll again µs": again.redis_us,
            "claim µs": claims.redis_us,
            "idle sweep µs": idle.redis_us,
            f"sweep of {DUE} µs": busy.redis_us,
            "sweep again µs": same.redis_us,
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._door.close()

    async def _memory_bytes(self) -> int:
        return int((await self._door.redis.info("memory"))["used_memory"])

    async def _cpu_s(self) -> float:
        used = await self._door.redis.info("cpu")
        return float(used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"])

    async def _timed(self, act: Callable[[Any], Awaitable[None]], items: Sequence[Any]) -> Pace:
        """Do it to every item, some at once."""
        left = iter(items)

        async def work() -> None:
            for item in left:
                await act(item)

        began_s, cpu_s = time.perf_counter(), await self._cpu_s()
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(work())
        used_s, took_s = await self._cpu_s() - cpu_s, time.perf_counter() - began_s
        return Pace(round(len(items) / took_s), round(used_s / len(items) * 1e6))

    async def _submit(self, _: int) -> None:
        made = await self._store.submit(question(TEXT), JobSpec())
        self._ids.append(made.job_id)
        if len(self._ids) % TICKETS == 0:  # as the sender of tickets does
            await self._store.published(_tickets(self._ids[-2 * TICKETS :]))

    async def _poll(self, job_id: str) -> None:
        await self._reader.get(job_id)

    async def _claims(self) -> Pace:
        """Claim the oldest, as a worker would, and answer them."""
        taken = min(PROBES, len(self._ids) // 2)
        oldest, self._ids = self._ids[:taken], self._ids[taken:]
        holds = []

        async def claim(job_id: str) -> None:
            hold = await self._store.claim(job_id, Lane.CHAT, "bench", secrets.token_hex(8))
            assert hold is not None, job_id
            holds.append(hold)

        pace = await self._timed(claim, oldest)
        for hold in holds:
            await self._store.finish(hold, Outcome(JobStatus.COMPLETED))
        return pace

    async def _sweep(self, lates: Sequence[Sequence[str]]) -> Pace:
        """Sweep with these jobs' tickets to send again each time."""

        async def sweep(late: Sequence[str]) -> None:
            if late:
                tickets = [keys.ticket(*ticket) for ticket in _tickets(late)]
                await self._door.redis.zadd(self._door.key("outbox"), dict.fromkeys(tickets, 1))
            async with self._one_at_a_time:
                swept = await self._store.sweep()
            await self._store.published(swept.tickets)

        return await self._timed(sweep, lates)


if __name__ == "__main__":
    main()
