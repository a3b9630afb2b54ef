"""What one job costs the API process in CPU time, and the bench client that asks it.

    python -m tests.bench_api [--submits 400] [--seconds 12] [--pixels 448] [--json]

Three loads, one after the other, on one API process with real stores beside it: submits of text
and of pictures for a model that nobody serves, so that nothing else happens; then text jobs that
are streamed to their end, 32 at a time from an echo worker that gives 36 pieces in 1.2 s. CPU time
is little disturbed by what else the machine does; how many pieces arrive apart is, so look at it.
"""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
import uvloop

from tests.support import servers
from tests.support.chat_workers import start_chat
from tests.support.processes import LIMIT_S, Service, service
from worker.bench.load import Load, Sample, body
from worker.bench.run import run

AT_ONCE = 32
PIECES, PER_S = 36, 30
WARM_UP = 40  # submits: scripts are loaded, connections open
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

Figures = dict[str, float]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submits", type=int, default=400, help="of each kind")
    parser.add_argument("--seconds", type=float, default=12, help="of streaming")
    parser.add_argument("--pixels", type=int, default=448, help="side of a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(_api(folder))
        figures = uvloop.run(_submits(running, args.submits, args.pixels))
        figures |= _streams(running, folder, args.seconds)
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<44} {value:>8.2f}")


@contextmanager
def _api(folder: Path) -> Iterator[Service]:
    with servers.redis_server() as redis, servers.s3_server() as s3:
        quiet = {"FOREBAY_MODELS": "echo,nobody", "FOREBAY_LOG_LEVEL": "WARNING"}
        with service(folder, redis | s3, roles=("api",), **quiet) as running:
            yield running


async def _submits(running: Service, number: int, pixels: int) -> Figures:
    text, picture = Load(running.url, pixels=0), Load(running.url, pixels=pixels)
    await _submit(running, text, WARM_UP, first=0)
    await _submit(running, picture, WARM_UP, first=0)
    return {
        "API, ms per text submit": await _submit(running, text, number, first=WARM_UP),
        "API, ms per picture submit": await _submit(running, picture, number, first=WARM_UP),
    }


async def _submit(running: Service, load: Load, number: int, *, first: int) -> float:
    """Hand jobs in, some at once; return the API's CPU time of each in ms."""
    bodies = [json.dumps(body(load, first + one) | {"model": "nobody"}) for one in range(number)]
    left = iter(bodies)

    async def work(http: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "application/json"}
        for text in left:
            async with http.post("/v1/jobs", data=text, headers=headers) as answer:
                assert answer.status == 202, await answer.text()

    async with aiohttp.ClientSession(running.url) as http, asyncio.TaskGroup() as group:
        before = _cpu_s(running)
        tasks = [group.create_task(work(http)) for _ in range(AT_ONCE)]
        await asyncio.wait(tasks)
        return (_cpu_s(running) - before) / number * 1000


def _streams(running: Service, folder: Path, seconds: float) -> Figures:
    prompt = f"[[tokens={PIECES} rate={PER_S}]]"
    load = Load(
        running.url,
        api="jobs",
        model="echo",
        pixels=0,
        prompt=prompt,
        seconds=seconds,
        inside=AT_ONCE,
        max_tokens=PIECES,
    )
    worker = start_chat(running, folder, slots=2 * AT_ONCE)
    try:
        before, own = _cpu_s(running), time.process_time()
        samples = uvloop.run(run(load))
        used_ms = (_cpu_s(running) - before) * 1000
        own_ms = (time.process_time() - own) * 1000
    finally:
        worker.send(signal.SIGTERM)
        worker.stop(LIMIT_S)
    return _per_job(samples, used_ms, own_ms)


def _per_job(samples: list[Sample], used_ms: float, own_ms: float) -> Figures:
    failed = [sample.error for sample in samples if sample.error]
    assert samples, "nothing was answered"
    assert not failed, failed
    return {
        "jobs streamed": len(samples),
        "pieces per stream": sum(sample.pieces for sample in samples) / len(samples),
        "API, ms per text job with its stream": used_ms / len(samples),
        "bench client, ms per job": own_ms / len(samples),
    }


def _cpu_s(running: Service) -> float:
    pid = running.children["api"].pid
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


if __name__ == "__main__":
    main()
