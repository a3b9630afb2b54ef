"""What a thousand readers of server-sent events cost one API process, with the echo engine.

    python -m tests.bench_readers [--readers 1000] [--deltas 1000] [--seconds 20] [--json]

Every reader follows a job of its own; all jobs together give `--deltas` per second. A delta counts
as written when Redis publishes it: a process of its own listens to all jobs and notes the moment;
as received when its bytes are read from the reader's socket. Both moments are of one clock. Readers
and listener share the machine with everything else, so read the figures beside its core count.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import uvloop

from tests.support import servers
from tests.support.chat_workers import start_chat
from tests.support.processes import LIMIT_S, Service, service, until

OPEN_AT_ONCE = 50  # connections that are being opened
LEAD_S = 5.0  # the readers' first deltas come in this time; it is not measured
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
DELTA = re.compile(rb"id: (\d+)\nevent: delta\n")
PUBLISHED = re.compile(rb":live:(job_[0-9a-f]{32})\r\n\$\d+\r\n(\d+) delta ")

Moments = dict[tuple[str, int], int]
"""(job id, event number) → ns of the monotonic clock."""


def main() -> None:
    """Run the measurement and print it; as `listen`, be its listener."""
    if sys.argv[1:2] == ["listen"]:
        uvloop.run(_listen(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--deltas", type=float, default=1000, help="per second, of all jobs")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    _allow_files(args.readers * 2 + 200)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(_deployment(folder, args.readers))
        figures = uvloop.run(_measure(running, folder, args.readers, args.deltas, args.seconds))
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<52} {value:>10}")


def _allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard), hard))


@contextmanager
def _deployment(folder: Path, slots: int) -> Iterator[Service]:
    """Run one API process and one echo worker that answers all jobs at once."""
    with servers.redis_server() as redis, servers.s3_server() as s3:
        quiet = {"FOREBAY_MODELS": "echo", "FOREBAY_LOG_LEVEL": "WARNING"}
        with service(folder, redis | s3, roles=("api",), **quiet) as running:
            worker = start_chat(running, folder, slots=slots)
            try:
                yield running
            finally:
                worker.send(signal.SIGKILL)  # its jobs have minutes to go
                worker.stop(LIMIT_S)


# --- measuring ------------------------------------------------------------------------------------


async def _measure(
    running: Service, folder: Path, readers: int, deltas: float, seconds: float
) -> dict[str, Any]:
    api = running.children["api"].pid
    rate, life_s = deltas / readers, LEAD_S + seconds + 120
    limits = httpx.Limits(max_connections=OPEN_AT_ONCE)
    async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as http:
        await _submit(http, 1, rate=100, tokens=10, wait=True)  # scripts and connections are warm
        jobs = await _submit(http, readers, rate=rate, tokens=int(life_s * rate) + 1)
        idle_kib = _memory_kib(api)
        with _listening(running, folder) as published:
            followers = await _follow(running.url, jobs)
            await _until_all_read(followers)
            connections = _connections(api, running.environ["REDIS_URL"])
            cpu_s, since, since_ns = _cpu_s(api), time.monotonic(), time.monotonic_ns()
            await asyncio.sleep(seconds)
            until_ns, lasted_s = time.monotonic_ns(), time.monotonic() - since
            cpu_s, busy_kib = _cpu_s(api) - cpu_s, _memory_kib(api)
        received = {key: at for one in followers for key, at in one.moments.items()}
        for one in followers:
            one.close()
    sent = {key: at for key, at in published.items() if since_ns <= at < until_ns - 10**9}
    late_ms = [(received[key] - at) / 1e6 for key, at in sent.items() if key in received]
    return _figures(readers, late_ms, len(sent), lasted_s, cpu_s) | {
        "memory per reader (KiB)": round((busy_kib - idle_kib) / readers, 1),
        "Redis connections of the API process": connections,
    }


def _figures(
    readers: int, late_ms: list[float], sent: int, lasted_s: float, cpu_s: float
) -> dict[str, Any]:
    cuts = quantiles(late_ms, n=1000)
    return {
        "cores": os.cpu_count(),
        "readers": readers,
        "deltas per second": round(sent / (lasted_s - 1)),
        "deltas that did not arrive": sent - len(late_ms),
        "written to received, p50 (ms)": round(cuts[499], 1),
        "written to received, p99 (ms)": round(cuts[989], 1),
        "written to received, p99.9 (ms)": round(cuts[998], 1),
        "written to received, most (ms)": round(max(late_ms), 1),
        "API process, share of a core (%)": round(100 * cpu_s / lasted_s),
    }


async def _submit(
    http: httpx.AsyncClient, number: int, *, rate: float, tokens: int, wait: bool = False
) -> list[str]:
    body = {"query": f"[[tokens={tokens} rate={rate:.6f}]]", "max_tokens": tokens}
    headers = {"Prefer": "wait=60"} if wait else {}
    gate = asyncio.Semaphore(OPEN_AT_ONCE)

    async def one() -> str:
        async with gate:
            response = await http.post("/v1/jobs", json=body, headers=headers)
            return str(response.raise_for_status().json()["id"])

    return list(await asyncio.gather(*(one() for _ in range(number))))


# --- readers: as little work as can be ------------------------------------------------------------


class Follower(asyncio.Protocol):
    """One reader. `moments` are those at which its deltas' bytes were there."""

    def __init__(self, job_id: str) -> None:
        self.moments: Moments = {}
        self._job_id = job_id
        self._rest = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Ask for the events."""
        self._transport = transport
        transport.write(f"GET /v1/jobs/{self._job_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Note which deltas have come."""
        at, data = time.monotonic_ns(), self._rest + data
        for match in DELTA.finditer(data):
            self.moments.setdefault((self._job_id, int(match[1])), at)
        self._rest = data[-64:]  # a delta's head may be cut in two; seen twice, it counts once

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


async def _follow(url: str, jobs: list[str]) -> list[Follower]:
    host, port = url.removeprefix("http://").split(":")
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(OPEN_AT_ONCE)

    async def one(job_id: str) -> Follower:
        async with gate:
            _, made = await loop.create_connection(lambda: Follower(job_id), host, int(port))
            return made

    return list(await asyncio.gather(*(one(job_id) for job_id in jobs)))


async def _until_all_read(followers: list[Follower]) -> None:
    async with asyncio.timeout(120):
        while not all(one.moments for one in followers):  # noqa: ASYNC110 - they come by callback
            await asyncio.sleep(0.1)
    await asyncio.sleep(LEAD_S)


# --- the listener: when Redis publishes -----------------------------------------------------------


@contextmanager
def _listening(running: Service, folder: Path) -> Iterator[Moments]:
    """Have the listener run; what it heard is there when the block has ended."""
    url, prefix = running.environ["REDIS_URL"], running.environ["FOREBAY_KEY_PREFIX"]
    command = [sys.executable, "-m", "tests.bench_readers", "listen", url, prefix, str(folder)]
    listener, heard = subprocess.Popen(command), Moments()
    try:
        until((folder / "listening").exists)
        yield heard
    finally:
        listener.terminate()
        listener.wait(LIMIT_S)
    for line in (folder / "published").read_text().splitlines():
        job_id, number, at = line.split()
        heard[job_id, int(number)] = int(at)


async def _listen(url: str, prefix: str, folder: str) -> None:
    """Note every published delta until SIGTERM, then write them down."""
    password, where = url.removeprefix("redis://").rsplit("@", 1) if "@" in url else ("", url)
    host, port = where.removeprefix("redis://").split("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    if password:
        writer.write(_command("AUTH", password.removeprefix(":")))
    writer.write(_command("PSUBSCRIBE", f"{prefix}live:*"))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await reader.read(1000)
    Path(folder, "listening").touch()  # noqa: ASYNC240 - nothing is measured yet
    moments: Moments = {}
    noting = asyncio.create_task(_note(reader, moments))
    await stop.wait()
    noting.cancel()
    rows = (f"{job_id} {number} {at}" for (job_id, number), at in moments.items())
    Path(folder, "published").write_text("\n".join(rows))  # noqa: ASYNC240 - nor any more


def _command(*words: str) -> bytes:
    parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{parts}".encode()


async def _note(reader: asyncio.StreamReader, moments: Moments) -> None:
    rest = b""
    while data := await reader.read(65_536):
        at, data = time.monotonic_ns(), rest + data
        for match in PUBLISHED.finditer(data):
            moments.setdefault((match[1].decode(), int(match[2])), at)
        rest = data[-200:]


# --- the API process from outside -----------------------------------------------------------------


def _memory_kib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _connections(pid: int, redis_url: str) -> int:
    """Count a process's TCP connections to Redis."""
    port = int(redis_url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    sockets = {str(e.readlink()) for e in Path(f"/proc/{pid}/fd").iterdir() if e.is_symlink()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(row[2].split(":")[1], 16) == port and f"socket:[{row[9]}]" in sockets for row in rows
    )


if __name__ == "__main__":
    main()
