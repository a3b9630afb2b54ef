"""The load: callers that hand jobs in at a steady rate and read every one to its end.

They do what the README tells callers to do: try again after 503, go on reading a stream at the last
number that they saw. Every other one sends an Idempotency-Key and may therefore ask again when a
connection broke; the rest take such a job for not accepted and hand in the next.
"""

import asyncio
import base64
import contextlib
import io
import json
import random
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
from PIL import Image

from tests.faults.ledger import Entry

TOKENS = (20, 40, 60)
TOKEN_RATE = 40
MAX_OPEN = 500
PAUSE_S = 0.2
POST_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 25.0  # pings come every 10 s
POLL_WAIT_S = 10
CUT_SHARE = 0.1  # of the readers hang up once in the middle and come back
OK, ACCEPTED = 200, 202

_TROUBLE = (aiohttp.ClientError, TimeoutError, OSError)


class Load:
    """`jobs` questions at `rate` per second; the ledger is `entries`."""

    def __init__(self, url: str, *, jobs: int, rate: float, seed: int) -> None:
        self._url = url
        self._jobs = jobs
        self._rate = rate
        self._random = random.Random(seed)
        self._open = asyncio.Semaphore(MAX_OPEN)
        self.entries: list[Entry] = []

    @property
    def planned_s(self) -> float:
        """Seconds in which everything is handed in, undisturbed."""
        return self._jobs / self._rate

    async def run(self) -> None:
        """Hand everything in and read it to the end."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(self._url, connector=connector) as http,
            asyncio.TaskGroup() as callers,
        ):
            began = time.monotonic()
            for number in range(self._jobs):
                await asyncio.sleep(max(0.0, began + number / self._rate - time.monotonic()))
                await self._open.acquire()
                entry = self._entry(number)
                self.entries.append(entry)
                callers.create_task(self._caller(http, entry))

    def _entry(self, number: int) -> Entry:
        tokens = self._random.choice(TOKENS)
        return Entry(
            number=number,
            query=f"[[tokens={tokens} rate={TOKEN_RATE}]]",
            answer=" ".join(f"tok{n}" for n in range(1, tokens + 1)),
            key=secrets.token_hex(8) if number % 2 else "",
            is_streamed=number % 3 != 0,
            has_picture=number % 5 == 0,
        )

    async def _caller(self, http: aiohttp.ClientSession, entry: Entry) -> None:
        try:
            while entry.job_id is None:
                if not await self._submit(http, entry):
                    return
            while entry.outcome is None:
                read = self._stream if entry.is_streamed else self._poll
                try:
                    await read(http, entry)
                except _TROUBLE:
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._open.release()

    async def _submit(self, http: aiohttp.ClientSession, entry: Entry) -> bool:
        """Hand it in once; False when it cannot be tried again without a key."""
        headers = {"Idempotency-Key": entry.key} if entry.key else {}
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT_S)
        began = time.monotonic()
        try:
            async with http.post(
                "/v1/jobs", json=_body(entry), headers=headers, timeout=timeout
            ) as said:
                if said.status in {OK, ACCEPTED}:
                    entry.accepted((await said.json())["id"])
                    return True
                entry.refused(time.monotonic() - began)
                if said.status != 429 and said.status < 500:
                    entry.troubles.append(f"refused with {said.status}: {await said.text()}")
                    return False
                if said.status in {429, 503} and "Retry-After" not in said.headers:
                    entry.troubles.append(f"{said.status} without Retry-After")
        except aiohttp.ClientConnectorError:
            entry.breaks += 1  # nothing was sent
        except _TROUBLE:
            entry.breaks += 1
            if not entry.key:
                return False
        await asyncio.sleep(PAUSE_S)
        return True

    async def _stream(self, http: aiohttp.ClientSession, entry: Entry) -> None:
        headers = {"Last-Event-ID": str(entry.last_seen)} if entry.last_seen else {}
        hang_up_at = entry.last_seen + 5 if self._random.random() < CUT_SHARE else None
        timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT_S)
        url = f"/v1/jobs/{entry.job_id}/events"
        async with http.get(url, headers=headers, timeout=timeout) as said:
            if said.status != OK:
                entry.refusals += 1
                await asyncio.sleep(PAUSE_S)
                return
            async with contextlib.aclosing(_events(said.content)) as events:
                async for kind, data in events:
                    if kind == "error":
                        break
                    entry.saw(data["sequence_number"], data.get("text", ""))
                    if kind not in {"status", "delta"}:
                        entry.ended(kind, (data["output"] or {}).get("text", ""))
                        return
                    if entry.last_seen == hang_up_at:
                        break
        entry.cuts += 1

    async def _poll(self, http: aiohttp.ClientSession, entry: Entry) -> None:
        timeout = aiohttp.ClientTimeout(total=POLL_WAIT_S + 10)
        url = f"/v1/jobs/{entry.job_id}?wait={POLL_WAIT_S}"
        async with http.get(url, timeout=timeout) as said:
            if said.status != OK:
                entry.refusals += 1
                await asyncio.sleep(PAUSE_S)
                return
            job = await said.json()
            if job["status"] not in {"queued", "in_progress"}:
                entry.ended(job["status"], (job["output"] or {}).get("text", ""))


async def _events(
    lines: aiohttp.StreamReader,
) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """Yield (kind, data) of server-sent events."""
    kind = ""
    async for raw in lines:
        line = raw.decode()
        if line.startswith("event: "):
            kind = line[7:].rstrip()
        elif line.startswith("data: ") and line.endswith("\n"):
            yield kind, json.loads(line[6:])


def _body(entry: Entry) -> dict[str, Any]:
    text = {"type": "text", "text": entry.query}
    parts = [{"type": "image_url", "image_url": {"url": _picture(entry.number)}}, text]
    content: Any = parts if entry.has_picture else entry.query
    return {
        "messages": [{"role": "user", "content": content}],
        "metadata": {"number": str(entry.number)},
    }


def _picture(number: int) -> str:
    """Return a small picture that no other job has, so that each is prepared anew."""
    out = io.BytesIO()
    colour = (number % 256, number // 256 % 256, 128)
    Image.new("RGB", (32, 32), colour).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
