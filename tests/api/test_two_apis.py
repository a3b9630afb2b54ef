"""Two processes of the API behind one queue: what begins at one goes on at the other."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.support.processes import Service, second_api
from tests.support.sse import frames, text_of

TEXT = " ".join(f"tok{n}" for n in range(1, 41))


def body(**more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "[[tokens=40 rate=40]]"}]
    return {"model": "echo", "messages": asked, "stream": True} | more


@pytest.fixture(scope="module")
def other_url(running: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with second_api(running, tmp_path_factory.mktemp("second")) as url:
        yield url


@pytest.fixture
async def other(other_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=other_url, timeout=30) as client:
        yield client


async def test_a_stream_that_breaks_at_one_goes_on_at_the_other(
    running: Service, other: httpx.AsyncClient
):
    async with AsyncOpenAI(api_key="EMPTY", base_url=f"{running.url}/v1") as client:
        stream = await client.chat.completions.create(
            **body(extra_body={"on_disconnect": "continue"})
        )
        job_id = stream.response.headers["x-forebay-job-id"]
        printed = ""
        while printed.count("tok") < 5:
            printed += (await anext(stream)).choices[0].delta.content or ""
        await stream.close()

    async with asyncio.timeout(20):
        events = [frame async for frame in frames(other, job_id)]

    assert events[-1].event == "completed"
    assert text_of(events) == events[-1].data["output"]["text"] == TEXT
    assert TEXT.startswith(printed)


async def test_a_key_gives_the_same_stream_at_the_other(
    http: httpx.AsyncClient, other: httpx.AsyncClient
):
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    post = {"url": "/v1/chat/completions", "json": body(), "headers": headers}

    async with http.stream("POST", **post) as first, aclosing(first.aiter_lines()) as lines:
        told = [await anext(lines) for _ in range(8)]
    again = await other.post(**post)

    lines_again = again.text.splitlines()
    assert again.headers["x-forebay-job-id"] == first.headers["x-forebay-job-id"]
    assert lines_again[: len(told)] == told
    assert lines_again[-2] == "data: [DONE]"
    assert _content(lines_again) == TEXT


def _content(lines: list[str]) -> str:
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
