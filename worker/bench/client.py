"""The bench's own HTTP client: cheap, so that it measures the server. No guard: it asks one URL."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

from worker.bench.load import Load, Sample

_WAIT_S = 60
_OK = 400  # below
_ENDS = {"completed", "failed", "cancelled", "expired"}
_LAST = {kind.encode() for kind in _ENDS}


class Client:
    """Sends one load's requests over kept connections. An async context manager."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._url = load.url.rstrip("/").removesuffix("/v1")

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._load.key}"} if self._load.key else {}
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._load.timeout_s),
            headers=headers,
            json_serialize=json.dumps,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def models(self) -> list[str]:
        """Return the names of the models that the server serves."""
        async with self._http.get(f"{self._url}/v1/models") as answer:
            answer.raise_for_status()
            return [model["id"] for model in (await answer.json())["data"]]

    async def ask(self, body: dict[str, Any]) -> Sample:
        """Send one request and follow it to its end. A failure is a sample with an error."""
        sample = Sample(time.monotonic())
        ask = self._ask_job if self._load.api == "jobs" else self._ask_chat
        try:
            await ask(body, sample)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
            sample.error = sample.error or type(error).__name__
        if sample.error is None:
            sample.ended_at = time.monotonic()
        return sample

    async def _ask_chat(self, body: dict[str, Any], sample: Sample) -> None:
        if not self._load.stream:
            async with self._http.post(f"{self._url}/v1/chat/completions", json=body) as answer:
                _take_usage(await _read(answer, sample), sample)
            return
        more = {"stream": True, "stream_options": {"include_usage": True}}
        url = f"{self._url}/v1/chat/completions"
        async with self._http.post(url, json=body | more) as answer:
            if answer.status >= _OK:
                sample.error = str(answer.status)
                return
            async for _, data in _events(answer):
                if data != b"[DONE]":
                    _take_chunk(json.loads(data), sample)

    async def _ask_job(self, body: dict[str, Any], sample: Sample) -> None:
        async with self._http.post(f"{self._url}/v1/jobs", json=body) as answer:
            job = await _read(answer, sample)
        if sample.error is not None:
            return
        job = await (self._streamed if self._load.stream else self._awaited)(job, sample)
        if job.get("status") != "completed":
            sample.error = str((job.get("error") or {}).get("code") or job.get("status"))
            return
        _take_usage(job, sample)
        sample.queue_s = (job.get("timings") or {}).get("queue_s")

    async def _streamed(self, job: dict[str, Any], sample: Sample) -> dict[str, Any]:
        last = b""
        async with self._http.get(f"{self._url}/v1/jobs/{job['id']}/events") as answer:
            answer.raise_for_status()
            # To the end, although the last event has all: else the connection is not kept.
            async for kind, data in _events(answer):
                if kind == b"delta":
                    _take_delta(json.loads(data), sample)
                elif kind in _LAST:
                    last = data
        if not last:
            raise ValueError("the stream ended before its job")
        return dict(json.loads(last))

    async def _awaited(self, job: dict[str, Any], sample: Sample) -> dict[str, Any]:
        while job.get("status") not in _ENDS and sample.error is None:
            url = f"{self._url}/v1/jobs/{job['id']}?wait={_WAIT_S}"
            async with self._http.get(url) as answer:
                job = await _read(answer, sample)
        return job


async def _read(answer: aiohttp.ClientResponse, sample: Sample) -> dict[str, Any]:
    data = await answer.read()
    if answer.status >= _OK:
        sample.error = str(answer.status)
        return {}
    return dict(json.loads(data))


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, bytes]]:
    """Yield each event's kind, b'' where it has none, and its data."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for frame in whole:
            head, has_data, data = frame.partition(b"data: ")
            if has_data:
                yield head.partition(b"event: ")[2].rstrip(), data


def _take_chunk(chunk: dict[str, Any], sample: Sample) -> None:
    if "error" in chunk:
        sample.error = str(chunk["error"].get("code") or "error")
        return
    choices = chunk.get("choices") or ()
    delta = choices[0].get("delta") or {} if choices else {}
    if delta.get("content") or delta.get("reasoning_content"):
        _take_piece(sample)
    _take_usage(chunk, sample)


def _take_delta(delta: dict[str, Any], sample: Sample) -> None:
    """Count text, as of a chunk: a delta may hold tokens that make no whole character yet."""
    if delta["text"] or delta.get("reasoning"):
        _take_piece(sample)


def _take_piece(sample: Sample) -> None:
    sample.first_at = sample.first_at or time.monotonic()
    sample.pieces += 1


def _take_usage(answer: dict[str, Any], sample: Sample) -> None:
    usage = answer.get("usage") or {}
    sample.tokens = int(usage.get("completion_tokens") or sample.tokens)
