"""Bad input: the right status, a stable code, the place, a sentence that helps."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import MAX_BODY_BYTES
from tests.support.media_files import bomb_png, picture
from tests.support.web import body, hang, redirect, status, web_server

PIXEL = "https://example.com/a.png"


def swift(**more: Any) -> dict[str, Any]:
    return {"query": "q"} | more


def openai(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, part]}]}


REFUSED = {
    "more placeholders than pictures": (
        {"query": "<image><image>q", "images": [PIXEL]},
        (400, "invalid_request", "images", "2 <image> placeholders but 1 images"),
    ),
    "tags beside a list": (
        {"query": f"<img>{PIXEL}</img>q", "images": [PIXEL]},
        (400, "invalid_request", "images", "not both"),
    ),
    "a data URL with broken base64": (
        {"query": "<image>q", "images": ["data:image/png;base64,%%%"]},
        (400, "media_unreadable", "images[0]", "base64 is broken"),
    ),
    "a data URL in an OpenAI part": (
        openai({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}),
        (400, "media_unreadable", "messages[0].content[1]", "base64 is broken"),
    ),
    "a data URL without base64": (
        {"query": "<image>q", "images": ["data:image/png,abc"]},
        (415, "media_unsupported", "images[0]", "data:<type>;base64"),
    ),
    "zero bytes": (
        {"query": "<image>q", "images": ["data:image/png;base64,"]},
        (400, "media_unreadable", "images[0]", "no bytes"),
    ),
    "an unknown model": (
        swift(model="gpt-9"),
        (404, "model_not_found", "model", "served here: echo"),
    ),
    "an unknown field": (
        swift(max_token=1),
        (400, "invalid_request", "max_token", "unknown field 'max_token'"),
    ),
    "an unknown field of a part": (
        openai({"type": "image_url", "image_url": {"url": PIXEL, "size": 1}}),
        (400, "invalid_request", "messages[0].content[1].image_url.size", "unknown field"),
    ),
    "an unknown kind of part": (
        openai({"type": "audio_url", "audio_url": PIXEL}),
        (400, "invalid_request", "messages[0].content[1]", "image_url"),
    ),
    "max_tokens 0": (
        swift(max_tokens=0),
        (400, "invalid_request", "max_tokens", "greater than or equal to 1"),
    ),
    "a temperature of 3": (
        swift(temperature=3),
        (400, "invalid_request", "temperature", "less than or equal to 2"),
    ),
    "a seed that is a word": (
        swift(seed="x"),
        (400, "invalid_request", "seed", "valid integer"),
    ),
    "an option of the video out of range": (
        swift(video={"frames": 0}),
        (400, "invalid_request", "video.frames", "greater than or equal to 1"),
    ),
    "both forms": (
        swift(messages=[{"role": "user", "content": "q"}]),
        (400, "invalid_request", None, "either messages"),
    ),
    "neither form": ({}, (400, "invalid_request", None, "either messages")),
    "no question": ({"query": ""}, (400, "invalid_request", "query", "no question")),
    "a megabyte of text": (
        {"query": "x" * 1_000_000},
        (413, "text_too_large", "messages", "1000000 bytes of text; the limit is 262144"),
    ),
    "an upload that is not there": (
        {"query": "<image>q", "images": ["file_" + "0" * 32]},
        (404, "upload_not_found", "images[0]", "nothing was uploaded"),
    ),
    "a path on the server": (
        {"query": "<image>q", "images": ["/etc/passwd"]},
        (400, "media_unreadable", "images[0]", "not opened"),
    ),
    "a lone surrogate": (
        b'{"query": "\\ud800"}',
        (400, "invalid_request", None, "surrogate"),
    ),
    "a lone surrogate deep inside": (
        b'{"query": "q", "metadata": {"k": "\\udfff"}}',
        (400, "invalid_request", None, "surrogate"),
    ),
    "infinity": (
        b'{"query": "q", "timeout_s": Infinity}',
        (400, "invalid_request", "timeout_s", "finite"),
    ),
    "a body that is not JSON": (b"{query", (400, "invalid_request", None, "JSON")),
    "a body that is a list": (b"[]", (400, "invalid_request", None, "")),
    "a body that is not UTF-8": (b'{"query": "\xff"}', (400, "invalid_request", None, "")),
    "no body": (b"", (400, "invalid_request", None, "")),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_body_is_refused_before_anything_is_queued(http: httpx.AsyncClient, case: str):
    sent, (expected_status, code, param, reason) = REFUSED[case]
    content = sent if isinstance(sent, bytes) else json.dumps(sent)

    response = await http.post(
        "/v1/jobs", content=content, headers={"Content-Type": "application/json"}
    )

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (expected_status, code, param)
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "expected", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/job_never", 404, "job_not_found"),
        ("POST", "/v1/jobs/job_never/cancel", 404, "job_not_found"),
        ("POST", "/v1/jobs/job_never/retry", 404, "job_not_found"),
        ("DELETE", "/v1/jobs/job_never", 404, "job_not_found"),
        ("GET", "/v1/jobs/job_never?wait=61", 400, "invalid_request"),
        ("GET", "/v1/jobs/job_never?wait=nan", 400, "invalid_request"),
        ("GET", "/v1/jobs/job_never?wait=5", 404, "job_not_found"),
        ("GET", "/v1/jobs?limit=0", 400, "invalid_request"),
        ("GET", "/v1/jobs?status=done", 400, "invalid_request"),
        ("GET", "/v1/jobs?after=job_never", 404, "job_not_found"),
    ],
)
async def test_every_door_answers_errors_in_the_one_envelope(
    http: httpx.AsyncClient, method: str, path: str, expected: int, code: str
):
    response = await http.request(method, path)

    assert response.status_code == expected, response.text
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["message"]


async def test_a_body_that_declares_too_much_is_refused(http: httpx.AsyncClient):
    response = await http.post("/v1/jobs", content=b"x" * (MAX_BODY_BYTES + 1))

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "body_too_large")
    assert str(MAX_BODY_BYTES) in error["message"]


async def test_a_body_that_declares_nothing_is_cut_at_the_limit(http: httpx.AsyncClient):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 100_000 + 1):
            yield b" " * 100_000

    response = await http.post(
        "/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"}
    )

    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("field", "data", "code"),
    [
        ("images", picture(640, 480, "JPEG")[:5000], "media_unreadable"),
        ("images", b"just some text", "media_unsupported"),
        ("images", bomb_png(), "media_too_large"),
        ("videos", b"just some text that calls itself .mp4", "media_unsupported"),
    ],
    ids=["truncated JPEG", "text", "bomb", "text as video"],
)
async def test_bad_bytes_fail_their_job_and_no_other(
    http: httpx.AsyncClient, field: str, data: bytes, code: str
):
    place = {"images": "<image>", "videos": "<video>"}[field]
    sent = {"query": f"{place}q", field: [data_url(data)]}

    job = (await http.post("/v1/jobs", json=sent, headers={"Prefer": "wait=30"})).json()
    next_one = await http.post("/v1/jobs", json={"query": "ok"}, headers={"Prefer": "wait=30"})

    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert (job["error"]["param"], job["attempt"]) == (f"{field}[0]", 0)
    assert next_one.json()["status"] == "completed"


async def test_a_picture_with_a_false_name_is_taken_for_what_it_is(http: httpx.AsyncClient):
    sent = {"query": "<image>q", "images": [data_url(picture(form="JPEG"))]}

    job = (await http.post("/v1/jobs", json=sent, headers={"Prefer": "wait=30"})).json()

    assert job["status"] == "completed"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("404", "media_fetch_failed"),
        ("endless redirects", "media_fetch_failed"),
        ("hangs", "media_fetch_failed"),
        ("announces more than comes", "media_fetch_failed"),
        ("announces a terabyte", "media_too_large"),
    ],
)
async def test_a_url_that_gives_nothing_fails_its_job_with_the_place(
    http: httpx.AsyncClient, kind: str, code: str
):
    async with web_server() as web:
        answers = {
            "404": status(404),
            "endless redirects": redirect(f"{web.url}/bad"),
            "hangs": hang(),
            "announces more than comes": body(picture(), length=len(picture()) + 9),
            "announces a terabyte": body(picture(), length=10**12),
        }
        url = web.at("/bad", answers[kind])
        sent = {"query": "<image><image>q", "images": [data_url(picture()), url]}

        job = (await http.post("/v1/jobs", json=sent, headers={"Prefer": "wait=30"})).json()

    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert job["error"]["param"] == "images[1]"
