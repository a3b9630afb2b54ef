"""`forebay bench` against our own server, and against one that only speaks OpenAI's chat."""

import asyncio
import base64
import io
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.support.processes import Service
from tests.support.web import Answer, Web, web_server
from worker.bench.load import Load, Sample, another, body, picture_url, report
from worker.bench.run import bench, run
from worker.cli import cli

TEN = "[[tokens=10 rate=200]]"


@pytest.fixture
def load(running: Service) -> Load:
    return Load(running.url, api="jobs", jobs=6, pixels=112, max_tokens=10, prompt=TEN)


@pytest.mark.parametrize("stream", [True, False])
async def test_jobs_with_pictures_are_counted_with_their_tokens_and_times(load: Load, stream: bool):
    result = await asyncio.to_thread(bench, replace(load, stream=stream))

    assert (result.jobs, result.failed, result.errors) == (6, 0, {})
    assert result.tokens_per_s == pytest.approx(10 * result.jobs_per_s, rel=0.02)
    assert result.queue_p50_s is not None
    assert result.total_p50_s is not None
    if stream:
        assert result.pieces_min
        assert result.ttft_p50_s is not None
        assert 0 < result.ttft_p50_s <= result.total_p50_s


async def test_a_steady_load_keeps_so_many_under_way(load: Load):
    steady = replace(load, jobs=0, seconds=2, inside=3, pixels=0, model="echo")

    samples = await run(steady)
    overlaps = [
        sum(one.sent_at <= other.sent_at < (one.ended_at or 0) for one in samples)
        for other in samples
    ]

    assert len(samples) >= 6
    assert max(overlaps) == 3


async def test_a_rate_is_kept_on_the_clock(load: Load):
    steady = replace(load, jobs=0, seconds=1, rate=12, pixels=0, model="echo")

    samples = await run(steady)

    assert len(samples) == 12
    assert [sample.error for sample in samples] == [None] * 12


async def test_several_processes_share_the_load(load: Load):
    result = await asyncio.to_thread(bench, replace(load, jobs=5, pixels=0), 2)

    assert (result.jobs, result.failed) == (5, 0)


async def test_a_job_that_fails_is_counted_by_its_code(load: Load):
    failing = replace(load, jobs=2, pixels=0, prompt="[[fail]]")

    result = await asyncio.to_thread(bench, failing)

    assert (result.jobs, result.failed) == (0, 2)
    assert result.errors == {"engine_error": 2}


async def test_the_command_prints_json_and_says_by_its_status_that_all_went_well(running: Service):
    arguments = ["bench", running.url, "--api", "jobs", "--jobs", "2", "--text", "--max-tokens"]

    ended = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "3", "--json"])
    told = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "3"])

    assert json.loads(ended.stdout)["jobs"] == 2
    assert "jobs/s" in told.stdout


async def test_any_openai_server_is_asked_for_chat_plain_and_streaming():
    async with web_server() as web:
        _speak_openai(web)
        load = Load(web.url, jobs=3, pixels=112, max_tokens=4)

        streamed = await asyncio.to_thread(bench, load)
        plain = await asyncio.to_thread(bench, replace(load, stream=False, model="other"))

    assert (streamed.jobs, streamed.pieces_min, streamed.errors) == (3, 2, {})
    assert streamed.ttft_p50_s is not None
    assert (plain.jobs, plain.failed) == (0, 3)  # it only streams: no JSON came
    assert web.requests == {"/v1/models": 1, "/v1/chat/completions": 6}


async def test_a_delta_without_text_is_no_piece_on_either_api():
    async with web_server() as web:
        _speak_jobs(web)
        _speak_openai(web)
        asked = Load(web.url, jobs=2, pixels=0)
        jobs = await asyncio.to_thread(bench, replace(asked, api="jobs"))
        chat = await asyncio.to_thread(bench, asked)

    assert (jobs.failed, chat.failed) == (0, 0)
    assert jobs.pieces_p50 == chat.pieces_p50 == 2


async def test_a_server_that_refuses_is_counted_by_its_status():
    async with web_server() as web:
        result = await asyncio.to_thread(bench, Load(web.url, jobs=2, pixels=0, model="none"))

    assert result.errors == {"404": 2}


def test_every_request_has_its_own_picture_and_the_same_one_each_time():
    load = Load("http://x", pixels=112)

    first, again, other = (json.dumps(body(load, number)) for number in (1, 1, 2))

    assert first == again != other
    assert picture_url(112, 1).startswith("data:image/jpeg;base64,")


def test_a_drawn_picture_comes_again_as_another_file_of_the_same_pixels():
    drawn = picture_url(112, 1)

    files = [base64.b64decode(url.partition(",")[2]) for url in (drawn, *_others(drawn))]

    assert len(set(files)) == 3
    assert len({Image.open(io.BytesIO(file)).tobytes() for file in files}) == 1


def _others(url: str) -> list[str]:
    return [another(url, number) for number in (7, 10**13)]


def test_rates_of_a_steady_load_count_what_ended_in_the_window():
    samples = [Sample(0.0, 0.5, float(end), 2, 10) for end in range(1, 11)]

    result = report(samples, (2.0, 7.0))

    assert result.jobs_per_s == 6 / 5
    assert result.tokens_per_s == 60 / 5
    assert result.jobs == 10


def _answer(kind: str, text: str) -> Answer:
    async def write(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
        writer.write((head + text).encode())

    return write


def _speak_jobs(web: Web) -> None:
    said = [("delta", {"text": text, "tokens": 1}) for text in ("", "four ", "sheep")]
    ended = ("completed", {"status": "completed", "usage": {"completion_tokens": 3}})
    events = "".join(
        f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in (*said, ended)
    )
    web.at("/v1/jobs", _answer("application/json", '{"id": "job_1", "status": "queued"}'))
    web.at("/v1/jobs/job_1/events", _answer("text/event-stream", events))


def _speak_openai(web: Web) -> None:
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "four "}}]},
        {"choices": [{"delta": {"content": "sheep"}}]},
        {"choices": [], "usage": {"completion_tokens": 4}},
    ]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]

    web.at("/v1/models", _answer("application/json", '{"data": [{"id": "any"}]}'))
    web.at("/v1/chat/completions", _answer("text/event-stream", "".join(lines)))
