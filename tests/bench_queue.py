"""What the queue itself costs: the echo engine at zero token time, real processes, one machine.

    python -m tests.bench_queue [--jobs 2000] [--json]

Prints, in this order: from POST to first delta on an idle system; submits per second of one API
process that has one core; jobs per second of one chat worker that finds a full queue, and the CPU
time that a job costs in it. Client, Redis and all processes share the machine, so read the figures
beside its core count.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp

from tests.support import servers

ROOT = Path(__file__).parents[1]
CLIENTS = 16  # connections that submit at once
START_S, RUN_S = 60.0, 120.0
BODY = {"query": "[[tokens=5 rate=0]]", "model": "bench"}


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000, help="jobs per throughput figure")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with ExitStack() as stack:
        environ = dict(os.environ, FOREBAY_MODELS="bench", FOREBAY_LOG_LEVEL="WARNING")
        environ |= stack.enter_context(servers.redis_server())
        environ |= stack.enter_context(servers.s3_server())
        figures = asyncio.run(measure(environ, args.jobs))
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<58} {value:>10}")


async def measure(environ: dict[str, str], jobs: int) -> dict[str, Any]:
    """Return all figures by name."""
    figures: dict[str, Any] = {"cores": os.cpu_count()}
    with _api(environ) as (api, url):
        async with _session(url) as session:
            await _until_live(session)
            with _worker(environ):
                await _until_ready(session)
                figures |= await _idle_latency(session)
            figures |= await _submits(session, api, jobs)
            figures |= await _drain(session, environ, jobs)
    return figures


async def _idle_latency(session: aiohttp.ClientSession, rounds: int = 200) -> dict[str, Any]:
    await _first_delta_s(session)  # connections and scripts are warm from here on
    took_ms = [1000 * await _first_delta_s(session) for _ in range(rounds)]
    return {
        "POST to first delta, idle, p50 (ms)": round(median(took_ms), 1),
        "POST to first delta, idle, p99 (ms)": round(quantiles(took_ms, n=100)[98], 1),
    }


async def _first_delta_s(session: aiohttp.ClientSession) -> float:
    began = time.perf_counter()
    async with session.post("/v1/jobs", json=BODY) as response:
        job = await response.json()
    async with session.get(job["links"]["events"]) as stream:
        async for line in stream.content:
            if line == b"event: delta\n":
                return time.perf_counter() - began
    raise RuntimeError("the job ended without a delta")


async def _submits(
    session: aiohttp.ClientSession, api: subprocess.Popen[bytes], jobs: int
) -> dict[str, Any]:
    os.sched_setaffinity(api.pid, {0})
    cpu_s, began = _cpu_s(api.pid), time.perf_counter()
    await _submit(session, jobs)
    took_s = time.perf_counter() - began
    os.sched_setaffinity(api.pid, range(os.cpu_count() or 1))
    return {
        "submits per second, one API process on one core": round(jobs / took_s),
        "API CPU per submit (ms)": round((_cpu_s(api.pid) - cpu_s) / jobs * 1000, 2),
    }


async def _submit(session: aiohttp.ClientSession, jobs: int) -> None:
    left = iter(range(jobs))

    async def client() -> None:
        for _ in left:
            async with session.post("/v1/jobs", json=BODY) as response:
                if response.status != 202:
                    raise RuntimeError(await response.text())

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _drain(
    session: aiohttp.ClientSession, environ: dict[str, str], jobs: int
) -> dict[str, Any]:
    """Let one worker empty the queue; count from its first finished job to its last."""
    with _worker(environ) as worker:
        waiting = await _until(session, lambda left: left < jobs)
        cpu_s, began = _cpu_s(worker.pid), time.perf_counter()
        await _until(session, lambda left: left == 0)
        took_s, cpu_s = time.perf_counter() - began, _cpu_s(worker.pid) - cpu_s
    return {
        "jobs per second, one chat worker, full queue": round(waiting / took_s),
        "chat worker CPU per job (ms)": round(cpu_s / waiting * 1000, 2),
    }


async def _until(session: aiohttp.ClientSession, is_enough: Any) -> int:
    async with asyncio.timeout(RUN_S):
        while True:
            async with session.get("/health/ready") as response:
                left = (await response.json())["queued"].get("chat.bench.normal", 0)
            if is_enough(left):
                return int(left)
            await asyncio.sleep(0.02)


async def _until_live(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                async with session.get("/health/live"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)


async def _until_ready(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(START_S):
        while True:
            async with session.get("/health/ready") as response:
                if (await response.json())["workers"]["chat"].get("ready"):
                    return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@contextmanager
def _api(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "worker.cli", "api", "--port", str(port)]
    with _process(command, environ) as process:
        yield process, f"http://127.0.0.1:{port}"


@contextmanager
def _worker(environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = ["-m", "worker.tasks", "chat", "--engine", "echo", "--model", "bench"]
    with _process(command, environ) as process:
        yield process


@contextmanager
def _process(arguments: list[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environ, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
