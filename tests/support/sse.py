"""Reading server-sent events as a client does."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Frame:
    """One event: `raw` are its bytes as they came."""

    id: str
    event: str
    data: Any
    raw: bytes


async def frames(
    http: httpx.AsyncClient, job_id: str, *, after: str | None = None
) -> AsyncIterator[Frame]:
    """Yield a job's events; `after` is sent as Last-Event-ID."""
    headers = {} if after is None else {"Last-Event-ID": after}
    async with aclosing(raw_frames(http, f"/v1/jobs/{job_id}/events", headers=headers)) as read:
        async for frame in read:
            yield frame


async def raw_frames(
    http: httpx.AsyncClient, url: str, **request: Any
) -> AsyncGenerator[Frame, None]:
    """Yield the events at an address, as they came."""
    async with http.stream("GET", url, **request) as response:
        assert response.status_code == httpx.codes.OK, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        rest = b""
        async for chunk in response.aiter_raw():
            *whole, rest = (rest + chunk).split(b"\n\n")
            for raw in whole:
                if not raw.startswith(b":"):
                    yield _frame(raw)


def _frame(raw: bytes) -> Frame:
    lines = dict(line.split(": ", 1) for line in raw.decode().split("\n"))
    return Frame(lines["id"], lines["event"], json.loads(lines["data"]), raw)


def text_of(read: list[Frame]) -> str:
    """Return the text of all deltas."""
    return "".join(frame.data["text"] for frame in read if frame.event == "delta")
