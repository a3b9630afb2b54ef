"""A batch of lines with pictures on the echo engine, while every role may be killed once.

    python -m tests.bench_batch [--lines 5000] [--kill] [--plain] [--seed 1]

Prints lines per second and what the processes took, and checks the results: every line once, in one
of the two files, with its own answer, and every line one finished job. Exit status 1 where not.
Client, stores and all processes share the machine, so read the figures beside its core count.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.faults.deployment import CHAT, ENGINE, WORKER, Deployment, deployment, stores
from tests.faults.strikes import Scene, kill
from worker.contract.door import RedisDoor
from worker.contract.job import line_job_id
from worker.contract.metrics import read_totals

STRIKES = {
    "api": kill(("api",), ""),
    "chat worker": kill(CHAT, WORKER),
    "media worker": kill(("media",), WORKER),
    "engine": kill(CHAT, ENGINE),
    "redis": kill(("redis",), ""),
}
HELD = "held"  # the line that lasts until everybody was struck
END_S = 900.0
APART_S = 1.5  # between two strikes
_PAUSE_S = 0.1
_OVER = {"completed", "failed", "expired", "cancelled"}
_TROUBLE = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
_SHOWN = 32


@dataclass(slots=True)
class Outcome:
    """What became of a batch; `troubles` has one line per broken promise."""

    lines: int
    wall_s: float = 0.0
    batch: dict[str, Any] = field(default_factory=dict)
    struck: list[str] = field(default_factory=list)
    finished_jobs: int = 0
    media_peak_mib: int = 0
    troubles: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, Any]]:
        """Return the figures by name."""
        return [
            ("cores", os.cpu_count()),
            ("lines", self.lines),
            ("killed", ", ".join(self.struck) or "nobody"),
            ("status", self.batch.get("status")),
            ("from POST to the end (s)", round(self.wall_s, 1)),
            ("lines per second", round(self.lines / self.wall_s, 1)),
            ("jobs that finished", self.finished_jobs),
            ("most memory of a media worker (MiB)", self.media_peak_mib),
            ("broken promises", len(self.troubles)),
        ]


async def run(
    folder: Path, *, lines: int, strikes: dict[str, Any], seed: int = 1, pictures: bool = True
) -> Outcome:
    """Run one batch on a small installation of its own; strike whom `strikes` names, evenly."""
    outcome = Outcome(lines)
    data = await asyncio.to_thread(_requests, lines, pictures, is_held=bool(strikes))
    async with (
        stores(folder, redis_pause_s=1.0) as servers,
        deployment(folder, servers, {}, FOREBAY_DRAIN_S="3") as place,
        aiohttp.ClientSession(place.url) as http,
    ):
        batch_id = await _begin(http, data)
        began = time.monotonic()
        await _watch(http, batch_id, Scene(place, random.Random(seed)), strikes, outcome)
        outcome.wall_s = time.monotonic() - began
        await _examine(http, place, outcome)
    return outcome


def _requests(count: int, pictures: bool, *, is_held: bool) -> bytes:
    """Return the file; where it `is_held`, its first line ends only when somebody cancels it."""
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    held = [_asked(HELD, {"query": "later", "not_before": later})] if is_held else []
    lines = [*held, *(_line(n, pictures) for n in range(count))]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _line(number: int, pictures: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"query": f"<image>answer {number}" if pictures else f"answer {number}"}
    if pictures:
        body["images"] = [_picture(number)]
    return _asked(f"line-{number}", body)


def _asked(name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": "/v1/jobs", "body": body}


def _picture(number: int) -> str:
    """Return a small JPEG that no other line has, so that each is prepared anew."""
    out = io.BytesIO()
    seed = hashlib.sha256(str(number).encode()).digest()
    Image.frombytes("L", (4, 8), seed).resize((64, 48)).convert("RGB").save(out, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


async def _begin(http: aiohttp.ClientSession, data: bytes) -> str:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", data, filename="requests.jsonl")
    async with http.post("/v1/files", data=form) as said:
        file = await said.json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/jobs", "completion_window": "1h"}
    async with http.post("/v1/batches", json=asked) as said:
        return str((await said.json())["id"])


async def _watch(
    http: aiohttp.ClientSession,
    batch_id: str,
    scene: Scene,
    strikes: dict[str, Any],
    outcome: Outcome,
) -> None:
    """Read the batch until it is over, striking at even steps of its progress."""
    waiting = list(strikes.items())
    scene.chance.shuffle(waiting)
    step = outcome.lines / (len(waiting) + 1)
    last, next_at = 0, 0.0
    async with asyncio.timeout(END_S):
        while outcome.batch.get("status") not in _OVER:
            await asyncio.sleep(_PAUSE_S)
            batch = await _ask(http, "GET", f"/v1/batches/{batch_id}")
            if batch is None:
                continue
            outcome.batch = batch
            counts = outcome.batch["request_counts"]
            done = counts["completed"] + counts["failed"]
            if done < last:
                outcome.troubles.append(f"counted {done} after {last}")
            last = done
            _measure(scene.place, outcome)
            is_due = done >= step * (len(outcome.struck) + 1) and time.monotonic() > next_at
            if waiting and is_due:
                name, strike = waiting.pop(0)
                outcome.struck.append(name)
                await strike(scene)
                next_at = time.monotonic() + APART_S
            elif strikes and not waiting and done == outcome.lines:
                await _ask(http, "POST", f"/v1/jobs/{line_job_id(batch_id, 1)}/cancel")


async def _ask(http: aiohttp.ClientSession, method: str, path: str) -> dict[str, Any] | None:
    """Return what the API says, None where it is away."""
    try:
        async with http.request(method, path) as said:
            return await said.json() if said.status == 200 else None
    except _TROUBLE:
        return None


def _measure(place: Deployment, outcome: Outcome) -> None:
    for pid in place.parts["media"].pids(WORKER):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        peak = next((row for row in status.splitlines() if row.startswith("VmHWM")), "x 0")
        outcome.media_peak_mib = max(outcome.media_peak_mib, int(peak.split()[1]) // 1024)


async def _examine(http: aiohttp.ClientSession, place: Deployment, outcome: Outcome) -> None:
    """Compare the results with what was asked, and with the number of jobs that finished."""
    batch, seen = outcome.batch, {}
    for name in ("output_file_id", "error_file_id"):
        for row in await _results(http, batch[name]):
            if row["custom_id"] in seen:
                outcome.troubles.append(f"{row['custom_id']}: twice")
            seen[row["custom_id"]] = row
    outcome.troubles += _wrong(seen, outcome.lines)
    counts = batch["request_counts"]
    outcome.finished_jobs = await _finished(place)
    if (counts["completed"], outcome.finished_jobs) != (outcome.lines, counts["total"]):
        outcome.troubles.append(f"counts {counts}, {outcome.finished_jobs} jobs finished")


def _wrong(seen: dict[str, dict[str, Any]], lines: int) -> list[str]:
    """Return what is wrong with result lines by custom_id."""
    troubles = []
    held = seen.pop(HELD, {"error": {"code": "job_cancelled"}})
    if (held["error"] or {}).get("code") != "job_cancelled":
        troubles.append(f"{HELD}: {held}")
    for number in range(lines):
        row = seen.pop(f"line-{number}", None)
        if row is None:
            troubles.append(f"line-{number}: no result")
        elif not row["response"] or row["response"]["status_code"] != 200:
            troubles.append(f"line-{number}: {row['response'] or row['error']!s:.200}")
        elif row["response"]["body"]["output"]["text"] != f"answer {number}":
            troubles.append(f"line-{number}: another line's answer")
    return troubles + [f"{name}: not asked" for name in seen]


async def _results(http: aiohttp.ClientSession, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    async with http.get(f"/v1/files/{file_id}/content") as said:
        return [json.loads(row) for row in (await said.text()).splitlines()]


async def _finished(place: Deployment) -> int:
    door = RedisDoor(place.settings)
    try:
        return sum((await read_totals(door)).finished.values())
    finally:
        await door.close()


def main() -> int:
    """Run it once and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_batch")
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--kill", action="store_true", help="kill -9 every role once")
    parser.add_argument("--plain", action="store_true", help="lines without pictures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as scratch:
        outcome = asyncio.run(
            run(
                args.folder or Path(scratch),
                lines=args.lines,
                strikes=STRIKES if args.kill else {},
                seed=args.seed,
                pictures=not args.plain,
            )
        )
    for name, value in outcome.rows():
        print(f"{name:<40} {value!s:>20}")
    for trouble in outcome.troubles[:_SHOWN]:
        print("   ", trouble)
    return 1 if outcome.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
