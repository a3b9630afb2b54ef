"""Batches for tests: lines as callers write them, results as they read them."""

import json
import time
from collections.abc import Iterable
from typing import Any

import openai
from openai.types import Batch

from tests.support.processes import until

OVER = {"completed", "failed", "expired", "cancelled"}


def line(name: str, query: str = "hello", **body: Any) -> dict[str, Any]:
    """Return a line that asks `/v1/jobs`."""
    asked = {"query": query, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/jobs", "body": asked}


def jsonl(lines: Iterable[Any]) -> bytes:
    """Return lines as a file holds them."""
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in lines)


def begin(
    client: openai.OpenAI,
    data: bytes,
    *,
    endpoint: str = "/v1/jobs",
    window: str = "24h",
    **more: Any,
) -> Batch:
    """Upload a file of lines and begin a batch of it."""
    file = client.files.create(file=("requests.jsonl", data), purpose="batch")
    asked: Any = {"endpoint": endpoint, "completion_window": window, **more}
    return client.batches.create(input_file_id=file.id, **asked)


def ended(client: openai.OpenAI, batch: Batch, limit_s: float = 40.0) -> Batch:
    """Return a batch once it is over; its counts must never have gone down meanwhile."""
    seen = [batch]

    def is_over() -> bool:
        seen.append(client.batches.retrieve(batch.id))
        for name in ("total", "completed", "failed"):
            before, now = (getattr(b.request_counts, name) for b in seen[-2:])
            assert now >= before, name
        time.sleep(0.03)
        return seen[-1].status in OVER

    until(is_over, limit_s)
    return seen[-1]


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """Return a results file's lines by custom_id, each of which must stand there once."""
    if file_id is None:
        return {}
    lines = [json.loads(row) for row in client.files.content(file_id).text.splitlines()]
    found = {row["custom_id"]: row for row in lines}
    assert len(found) == len(lines)
    return found
