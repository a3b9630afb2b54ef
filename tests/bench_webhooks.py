"""Callbacks under load, and while everything is killed.

    python -m tests.bench_webhooks [--rate 1000] [--seconds 20] [--json]
    python -m tests.bench_webhooks --kill [--jobs 2000] [--json]

The first lets jobs end at a rate, each owing an event to one of ten receivers, of which one never
answers, with one `forebay worker webhooks`; it prints the delay of the other nine, from the step
that ended a job to the arrival of its callback. The second hands jobs in with a callback each while
API, media worker, both chat workers with their supervisors, and Redis are killed once; it prints
how many events arrived and under how many ids, and ends with 1 where one is missing or has two.
Receivers, load and all processes share the machine: read the figures beside its core count.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp

from tests.faults import family
from tests.faults.deployment import CHAT, Deployment, deployment, stores
from tests.support import receiver as answers
from tests.support import servers
from tests.support.factories import ended, question
from tests.support.receiver import Got, Receiver, receiver
from worker import commands
from worker.children import Child
from worker.contract import broker
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.job import Hold, JobSpec, Lane
from worker.contract.settings import Settings
from worker.contract.store import JobStore

RECEIVERS = 10
TASKS = 16
TICK_S = 0.01
SETTLE_S = 120.0
POST_S = 20.0
TOKENS, TOKEN_RATE = 20, 40
SUBMITS_PER_S = 60.0
OK, ACCEPTED = 200, 202


def main() -> int:
    """Run one of the two and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_webhooks")
    parser.add_argument("--rate", type=int, default=1000, help="events per second")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--kill", action="store_true", help="kill every role once instead")
    parser.add_argument("--jobs", type=int, default=2000, help="with --kill")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forebay-hooks-") as folder:
        if args.kill:
            figures = asyncio.run(_killed(Path(folder), args.jobs))
        else:
            figures = _rated(Path(folder), args.rate, args.seconds)
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<62} {value:>10}")
    return int(bool(figures.get("missing") or figures.get("jobs told under two ids")))


# --- a rate of events -----------------------------------------------------------------------------


def _rated(folder: Path, rate: int, seconds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        environ = stack.enter_context(servers.redis_server())
        environ = environ | stack.enter_context(servers.s3_server())
        # The sweeper must leave jobs alone whose end is still to come.
        environ |= {
            "FOREBAY_KEY_PREFIX": f"bench:{secrets.token_hex(4)}:",
            "FOREBAY_LEASE_S": "3600",
        }
        return asyncio.run(_delays(folder, environ, rate, seconds))


async def _delays(folder: Path, environ: dict[str, str], rate: int, seconds: int) -> dict[str, Any]:
    door = RedisDoor(Settings(_env_file=None, **environ))  # type: ignore[arg-type]  # aliases
    tickets = broker.Tickets(broker.make_app(door.settings), JobStore(door).published)
    door.on_owed = tickets.wake
    worker = _worker(folder, environ)
    try:
        async with _receivers() as webs:
            holds = await _running(JobStore(door), webs, rate * seconds)
            await _warm(door, webs)
            cpu_s, began = _cpu_s(worker.pid), time.monotonic()
            took_s = await _finish(JobStore(door), holds, rate)
            await _until(lambda: sum(len(web.seen) for web in webs[1:]) >= _share(holds))
            busy = (_cpu_s(worker.pid) - cpu_s) / (time.monotonic() - began)
            return _figures(webs, len(holds), took_s, busy)
    finally:
        await asyncio.to_thread(worker.stop, 15)
        await tickets.close()
        await door.close()


class Clocked(Receiver):
    """Notes when each event arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, Got]] = []


@asynccontextmanager
async def _receivers() -> AsyncIterator[list[Clocked]]:
    """Run ten receivers; the first never answers."""
    async with AsyncExitStack() as stack:
        webs = []
        for number in range(RECEIVERS):
            web = await stack.enter_async_context(receiver(made=Clocked()))
            assert isinstance(web, Clocked)
            _note_arrivals(web, hangs=number == 0)
            webs.append(web)
        yield webs


def _note_arrivals(web: Clocked, *, hangs: bool) -> None:
    last = answers.hang() if hangs else answers.status(200)

    async def answer(writer: asyncio.StreamWriter) -> None:
        web.seen.append((time.time(), web.got[-1]))
        await last(writer)

    web.at("/hook", answer)


def _worker(folder: Path, environ: dict[str, str]) -> Child:
    ours = {"FOREBAY_WEBHOOK_ALLOW_HOSTS": "127.0.0.1", "FOREBAY_LOG_LEVEL": "WARNING"}
    command = commands.webhooks({**os.environ, **environ, **ours}, secrets.token_hex(8))
    return Child(replace(command, log=folder / "webhooks.log", cwd=folder))


async def _running(store: JobStore, webs: Sequence[Clocked], count: int) -> list[Hold]:
    """Return jobs that have only their end before them."""
    numbers, holds = iter(range(count)), list[Hold]()

    async def client() -> None:
        for number in numbers:
            url = f"{webs[number % len(webs)].url}/hook"
            made = await store.submit(question(), JobSpec(webhook_url=url))
            hold = await store.claim(made.job_id, Lane.CHAT, "bench", secrets.token_hex(8))
            assert hold is not None
            holds.append(hold)

    await asyncio.gather(*(client() for _ in range(TASKS)))
    return holds


async def _warm(door: RedisDoor, webs: Sequence[Clocked]) -> None:
    """Return once the worker is there and has a connection to everybody."""
    for web in webs[1:]:
        await Debts(door).test(f"{web.url}/hook", "job.completed")  # type: ignore[arg-type]  # by value
    await _until(lambda: all(web.seen for web in webs[1:]))
    for web in webs:
        web.seen.clear()


async def _finish(store: JobStore, holds: Sequence[Hold], rate: int) -> float:
    """End jobs at a rate; return the seconds that it really took."""
    began, todo, work = time.monotonic(), list(holds), set[asyncio.Task[bool]]()
    while todo:
        due = int((time.monotonic() - began) * rate) - (len(holds) - len(todo))
        for _ in range(min(due, len(todo))):
            work.add(asyncio.create_task(store.finish(todo.pop(), ended("四只"))))
        await asyncio.sleep(TICK_S)
    assert all(await asyncio.gather(*work))
    return time.monotonic() - began


def _share(holds: Sequence[Hold]) -> int:
    """Return how many events go to those that answer."""
    return len(holds) - (len(holds) + RECEIVERS - 1) // RECEIVERS


def _figures(webs: Sequence[Clocked], events: int, took_s: float, busy: float) -> dict[str, Any]:
    ids = Counter(got.id for web in webs[1:] for _, got in web.seen)
    delays_ms = [1000 * _delay_s(*one) for web in webs[1:] for one in web.seen]
    cuts = quantiles(delays_ms, n=100)
    return {
        "cores": os.cpu_count(),
        "events": events,
        "jobs ended per second": round(events / took_s),
        "missing": _missing(events, ids),
        "delivered twice": sum(count > 1 for count in ids.values()),
        "delay of the nine that answer, p50 (ms)": round(median(delays_ms)),
        "delay of the nine that answer, p99 (ms)": round(cuts[98]),
        "delay of the nine that answer, longest (ms)": round(max(delays_ms)),
        "tries at the one that never answers": len(webs[0].seen),
        "cores used by the worker": round(busy, 2),
    }


def _missing(events: int, ids: Counter[str]) -> int:
    return events - (events + RECEIVERS - 1) // RECEIVERS - len(ids)


def _delay_s(arrived_s: float, got: Got) -> float:
    return arrived_s - datetime.fromisoformat(got.json["timestamp"]).timestamp()


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _until(is_so: Any) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not is_so():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.05)


# --- everything killed ----------------------------------------------------------------------------


async def _killed(folder: Path, jobs: int) -> dict[str, Any]:
    allow = {"FOREBAY_WEBHOOK_ALLOW_HOSTS": "127.0.0.1", "FOREBAY_DRAIN_S": "3"}
    async with (
        receiver() as web,
        stores(folder, redis_pause_s=2.0) as servers_,
        deployment(folder, servers_, {}, **allow) as place,
    ):
        striking = asyncio.create_task(_strike(place, jobs / SUBMITS_PER_S))
        accepted = await _submit(place.url, web.url + "/hook", jobs)
        struck = await striking
        began = time.monotonic()
        told = await _told(web, accepted)
    return {
        "cores": os.cpu_count(),
        "jobs": len(accepted),
        "killed": struck,
        "missing": len(accepted) - len(told),
        "jobs told under two ids": sum(len(ids) > 1 for ids in told.values()),
        "repeats under the same id": len(web.got) - len(web.ids()),
        "seconds from the last job to the last event": round(time.monotonic() - began),
    }


async def _strike(place: Deployment, over_s: float) -> str:
    """Kill each part once, all its processes; what supervises them here starts them again."""
    names = ("api", "media", *CHAT, "redis")
    for name in names:
        await asyncio.sleep(over_s / (len(names) + 1))
        family.send(place.parts[name].pids(), signal.SIGKILL)
    return ",".join(names)


async def _submit(url: str, webhook_url: str, jobs: int) -> set[str]:
    """Hand jobs in as the README says: the same key until one is accepted."""
    accepted: set[str] = set()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as http, asyncio.TaskGroup() as all_:
        began = time.monotonic()
        for number in range(jobs):
            await asyncio.sleep(max(0.0, began + number / SUBMITS_PER_S - time.monotonic()))
            all_.create_task(_one(http, webhook_url, accepted))
    return accepted


async def _one(http: aiohttp.ClientSession, webhook_url: str, accepted: set[str]) -> None:
    body = {"query": f"[[tokens={TOKENS} rate={TOKEN_RATE}]]", "webhook_url": webhook_url}
    key, timeout = {"Idempotency-Key": secrets.token_hex(8)}, aiohttp.ClientTimeout(total=POST_S)
    while True:
        try:
            async with http.post("/v1/jobs", json=body, headers=key, timeout=timeout) as said:
                if said.status in {OK, ACCEPTED}:
                    accepted.add((await said.json())["id"])
                    return
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        await asyncio.sleep(0.2)


async def _told(web: Receiver, accepted: set[str]) -> dict[str, set[str]]:
    """Return the ids under which each job was told of, once all are or after a while."""
    told: dict[str, set[str]] = defaultdict(set)

    def is_over() -> bool:
        for got in web.got:
            if got.json["data"]["id"] in accepted:
                told[got.json["data"]["id"]].add(got.id)
        return len(told) == len(accepted)

    try:
        await _until(is_over)
    except TimeoutError:
        return told
    return told


if __name__ == "__main__":
    sys.exit(main())
