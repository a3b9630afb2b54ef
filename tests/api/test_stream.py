"""Server-sent events: the same bytes for every reader, from any cursor, without gap or repeat."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from starlette.background import BackgroundTask
from starlette.types import Message

from api.sse import EventStream
from tests.support.sse import Frame, frames, text_of

CHINESE = "图片中一共有四只羊，它们在草地上。\n第二行“引号”\\ 😀 end"


async def submit(http: httpx.AsyncClient, query: str, **more: Any) -> str:
    response = await http.post("/v1/jobs", json={"query": query} | more)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def read(http: httpx.AsyncClient, job_id: str, after: str | None = None) -> list[Frame]:
    async with asyncio.timeout(20):
        return [frame async for frame in frames(http, job_id, after=after)]


async def test_a_stream_tells_a_jobs_whole_life(http: httpx.AsyncClient):
    job_id = await submit(http, "one two three")

    events = await read(http, job_id)

    job = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert [int(frame.id) for frame in events] == list(range(1, len(events) + 1))
    assert [frame.data["sequence_number"] for frame in events] == [int(f.id) for f in events]
    assert (events[0].event, events[0].data["status"]) == ("status", "queued")
    stages = [frame.data["stage"] for frame in events if frame.event == "status"]
    assert stages == ["waiting_engine", "waiting_engine", "generating"]
    assert events[-1].event == "completed"
    assert {k: v for k, v in events[-1].data.items() if k != "sequence_number"} == job


async def test_chinese_deltas_join_to_the_text_byte_for_byte(http: httpx.AsyncClient):
    job_id = await submit(http, f"{CHINESE}[[rate=300]]")

    events = await read(http, job_id)

    deltas = [frame for frame in events if frame.event == "delta"]
    final = events[-1].data["output"]["text"]
    assert len(deltas) > 3
    assert text_of(events).encode() == final.encode() == CHINESE.encode()
    assert sum(frame.data["tokens"] for frame in deltas) == final_tokens(events)
    assert "羊".encode() in b"".join(frame.raw for frame in deltas)


def final_tokens(events: list[Frame]) -> int:
    return int(events[-1].data["usage"]["completion_tokens"])


async def test_a_reader_cut_at_every_event_and_resumed_has_no_gap_and_no_repeat(
    http: httpx.AsyncClient,
):
    job_id = await submit(http, "[[tokens=30 rate=60]]")
    pieced: list[Frame] = []

    async with asyncio.timeout(20):
        while not pieced or pieced[-1].event in {"status", "delta"}:
            after = pieced[-1].id if pieced else None
            async with aclosing(frames(http, job_id, after=after)) as stream:
                pieced.append(await anext(stream))

    whole = await read(http, job_id)
    assert [frame.raw for frame in pieced] == [frame.raw for frame in whole]


async def test_an_ended_job_is_replayed_from_every_cursor(http: httpx.AsyncClient):
    job_id = await submit(http, "[[tokens=20 rate=200]]")
    whole = await read(http, job_id)

    for cut, frame in enumerate(whole):
        rest = await read(http, job_id, after=frame.id)
        assert [f.raw for f in rest] == [f.raw for f in whole[cut + 1 :]]


async def test_three_readers_at_once_see_the_same_bytes(http: httpx.AsyncClient):
    job_id = await submit(http, f"{CHINESE} [[rate=100]]")

    readers = await asyncio.gather(*(read(http, job_id) for _ in range(3)))
    replay = await read(http, job_id)

    assert {b"\n\n".join(f.raw for f in events) for events in readers} == {
        b"\n\n".join(f.raw for f in replay)
    }


async def test_a_cursor_in_the_address_does_the_same(http: httpx.AsyncClient):
    job_id = await submit(http, "a b")
    whole = await read(http, job_id)

    url = f"/v1/jobs/{job_id}/events"
    by_query = await http.get(url, params={"starting_after": 2})
    both = await http.get(url, params={"starting_after": 0}, headers={"Last-Event-ID": "2"})

    expected = b"".join(frame.raw + b"\n\n" for frame in whole[2:])
    assert by_query.content == both.content == expected


async def test_nothing_is_repeated_after_the_end(http: httpx.AsyncClient):
    job_id = await submit(http, "a b")
    whole = await read(http, job_id)

    assert await read(http, job_id, after=whole[-1].id) == []


async def test_a_cancelled_job_ends_its_stream(http: httpx.AsyncClient):
    job_id = await submit(http, "[[tokens=100000 rate=50]]", max_tokens=100000)
    events: list[Frame] = []

    async with asyncio.timeout(20):
        async for frame in frames(http, job_id):
            events.append(frame)
            if sum(f.event == "delta" for f in events) == 2:
                await http.post(f"/v1/jobs/{job_id}/cancel")

    assert events[-1].event == "cancelled"
    assert text_of(events) == events[-1].data["output"]["text"] != ""


async def test_a_failed_job_ends_its_stream_with_its_error(http: httpx.AsyncClient):
    job_id = await submit(http, "[[tokens=3]] [[fail]]")

    events = await read(http, job_id)

    assert (events[-1].event, events[-1].data["error"]["code"]) == ("failed", "engine_error")
    assert text_of(events) == events[-1].data["output"]["text"] == "tok1 tok2 tok3"


async def test_a_retried_job_streams_on_with_greater_numbers(http: httpx.AsyncClient):
    job_id = await submit(http, "[[tokens=3]] [[fail]]")
    first = await read(http, job_id)
    await http.post(f"/v1/jobs/{job_id}/retry")

    second = await read(http, job_id, after=first[-1].id)

    assert [int(frame.id) for frame in second] == list(
        range(int(first[-1].id) + 1, int(first[-1].id) + 1 + len(second))
    )
    assert second[0].data["status"] == "queued"
    assert text_of(second) == "tok1 tok2 tok3"


@pytest.mark.parametrize("bad", ["-1", "x", "1.5", "²"])
async def test_a_cursor_that_is_no_number_is_refused(http: httpx.AsyncClient, bad: str):
    job_id = await submit(http, "a")

    response = await http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": bad.encode()})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Last-Event-ID"


class Line:
    """The server's side of one request: what was sent, and whether the client is still there."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_whole = False
        self.hung_up = asyncio.Event()
        self._more = asyncio.Condition()

    async def receive(self) -> Message:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.is_whole = not message["more_body"]
            async with self._more:
                self.sent.append(message["body"])
                self._more.notify_all()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10), self._more:
            await self._more.wait_for(lambda: len(self.sent) >= count)


async def serve(stream: EventStream, line: Line) -> None:
    async with asyncio.timeout(10):
        await stream({"type": "http"}, line.receive, line.send)


async def test_a_line_without_news_is_kept_open_by_comments():
    news, line = asyncio.Event(), Line()

    async def frames_later() -> AsyncGenerator[bytes, None]:
        await news.wait()
        yield b"data: 1\n\n"

    serving = asyncio.create_task(serve(EventStream(frames_later(), ping_s=0.001), line))
    await line.has(2)
    news.set()
    await serving

    told = [frame for frame in line.sent if frame != b": ping\n\n"]
    assert line.sent[:2] == [b": ping\n\n"] * 2
    assert told == [b"data: 1\n\n", b""]
    assert line.is_whole


async def test_a_client_that_hangs_up_ends_its_frames_and_what_comes_after_still_runs():
    ended: list[str] = []
    line = Line()

    async def frames_for_ever() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            ended.append("frames")

    after = BackgroundTask(ended.append, "background")
    serving = asyncio.create_task(serve(EventStream(frames_for_ever(), background=after), line))
    await line.has(1)
    line.hung_up.set()
    await serving

    assert ended == ["frames", "background"]
    assert not line.is_whole


async def test_a_stream_of_no_job_is_an_ordinary_404(http: httpx.AsyncClient):
    response = await http.get("/v1/jobs/job_never/events")

    assert response.status_code == 404
    assert json.loads(response.content)["error"]["code"] == "job_not_found"
