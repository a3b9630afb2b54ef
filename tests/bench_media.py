"""What the media stage costs: CPU time a picture, of every process that has a part in it.

    python -m tests.bench_media [--jobs 1000] [--pixels 448] [--json]

Hands in jobs with a JPEG of their own each, as data URLs, then starts one media process on the full
queue and counts from its first tenth to its last job. Prints milliseconds of CPU a picture of the
API, Redis and the object store while jobs are handed in, then of the media process, Redis and the
object store while they are prepared. All share the machine: CPU time can be compared between two
runs, rates only on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.processes import service
from worker import commands, embedded
from worker.bench.load import picture_url
from worker.children import Child

CLIENTS = 16  # connections that hand in at once
RUN_S = 300.0
LOOK_S = 0.02
MODEL = "bench"


def main() -> None:
    """Run the measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=448, help="a picture's side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), args.jobs, args.pixels)
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<50} {value:>10}")


def measure(folder: Path, jobs: int, pixels: int) -> dict[str, Any]:
    """Return all figures by name."""
    redis, s3 = embedded.start_redis(folder), embedded.start_s3(folder)
    pids = {"Redis": redis.child.pid, "object store": s3.child.pid}
    try:
        stores = {**redis.environ, **s3.environ}
        with service(
            folder, stores, roles=["api"], FOREBAY_MODELS=MODEL, FOREBAY_LOG_LEVEL="WARNING"
        ) as ours:
            pids["API"] = ours.children["api"].pid
            return asyncio.run(_measured(ours.url, ours.environ, pids, jobs, pixels))
    finally:
        redis.stop()
        s3.stop()


async def _measured(
    url: str, environ: Mapping[str, str], pids: dict[str, int], jobs: int, pixels: int
) -> dict[str, Any]:
    bodies = [_body(pixels, number) for number in range(jobs)]
    async with aiohttp.ClientSession(url) as session:
        cost = _costs(pids, "handed in")
        await _hand_in(session, bodies)
        figures = {"cores": os.cpu_count(), **cost(jobs)}
        with _media(environ) as child:
            await _until_waiting(session, jobs // 10)
            began, left = time.perf_counter(), jobs - await _waiting(session)
            cost = _costs({"media": child.pid} | pids, "prepared")
            await _until_waiting(session, jobs)
            rate = left / (time.perf_counter() - began)
            figures |= cost(left)
    return figures | {"pictures per second, one media process": round(rate)}


def _body(pixels: int, number: int) -> dict[str, Any]:
    return {"query": "?", "images": [picture_url(pixels, number)], "model": MODEL}


async def _hand_in(session: aiohttp.ClientSession, bodies: list[dict[str, Any]]) -> None:
    left = iter(bodies)

    async def client() -> None:
        for body in left:
            async with session.post("/v1/jobs", json=body) as answer:
                if answer.status != 202:
                    raise RuntimeError(await answer.text())

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _until_waiting(session: aiohttp.ClientSession, jobs: int) -> None:
    """Return once so many jobs wait for an engine: nobody takes them there."""
    async with asyncio.timeout(RUN_S):
        while await _waiting(session) < jobs:  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(LOOK_S)


async def _waiting(session: aiohttp.ClientSession) -> int:
    async with session.get("/health/ready") as answer:
        queued: dict[str, int] = (await answer.json())["queued"]
    return queued.get(f"chat.{MODEL}.normal", 0)


def _costs(pids: Mapping[str, int], what: str) -> Callable[[int], dict[str, float]]:
    """Begin to count; return a function that says what each process took a picture, in ms."""
    began = {name: _cpu_s(pid) for name, pid in pids.items()}

    def cost(pictures: int) -> dict[str, float]:
        return {
            f"{name} CPU per picture {what} (ms)": round(
                (_cpu_s(pid) - began[name]) / pictures * 1000, 2
            )
            for name, pid in pids.items()
        }

    return cost


@contextmanager
def _media(environ: Mapping[str, str]) -> Iterator[Child]:
    child = Child(commands.media(None, environ, secrets.token_hex(8)))
    try:
        yield child
    finally:
        child.stop(30)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
