"""Lines of a batch: what is read, what is written. No I/O."""

import json
import math
from typing import Any

import pytest

from tests.support.batches import line
from worker.contract import lines
from worker.contract.errors import UploadNotFound
from worker.contract.job import Door, JobSpec, Priority, line_job_id
from worker.contract.lines import LineError

CHAT = "/v1/chat/completions"
SPEC = JobSpec(envelope={"batch": "b", "line": 1, "custom_id": "c"})


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def chat_line(**body: Any) -> dict[str, Any]:
    asked = {"model": "m", "messages": [{"role": "user", "content": "q"}], **body}
    return {"custom_id": "c", "method": "POST", "url": CHAT, "body": asked}


@pytest.mark.parametrize(
    ("asked", "priority"),
    [
        ({}, Priority.LOW),
        ({"priority": "low"}, Priority.LOW),
        ({"priority": "normal"}, Priority.NORMAL),
        ({"priority": "high"}, Priority.NORMAL),
    ],
)
@pytest.mark.parametrize("endpoint", ["/v1/jobs", CHAT])
def test_a_line_yields_unless_it_asks_and_never_comes_first(
    endpoint: str, asked: dict[str, Any], priority: Priority
):
    made = line("c", **asked) if endpoint == "/v1/jobs" else chat_line(**asked)

    spec = lines.to_spec(lines.read(raw(made), endpoint), "batch_1", 7)

    assert (spec.priority, spec.door) == (priority, Door.BATCH)
    assert spec.envelope == {"batch": "batch_1", "line": 7, "custom_id": "c"}


def asking(url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "c", "method": "POST", "url": url, "body": body}


TOOL = {"name": "f", "parameters": {"const": math.nan}}
FORMAT = {"type": "json_schema", "name": "x", "schema": {"const": math.inf}}


@pytest.mark.parametrize(
    "made",
    [
        line("c", tools=[{"type": "function", "function": TOOL}]),
        asking("/v1/responses", input="q", tools=[{"type": "function", **TOOL}]),
        asking("/v1/responses", input="q", text={"format": FORMAT}),
    ],
)
def test_a_number_that_no_answer_could_repeat_is_refused(made: dict[str, Any]):
    with pytest.raises(LineError, match="not JSON compliant"):
        lines.read(raw(made), made["url"])


@pytest.mark.parametrize(
    ("made", "endpoint", "code", "param"),
    [
        (chat_line(n=2), CHAT, "invalid_request", None),
        (chat_line(stream=True), CHAT, "invalid_request", "body.stream"),
        (
            line("c", webhook_url="https://example.com/"),
            "/v1/jobs",
            "invalid_request",
            "body.webhook_url",
        ),
        (chat_line(reasoning_effort="high"), CHAT, "option_unsupported", "reasoning_effort"),
        (
            {
                "custom_id": "c",
                "method": "POST",
                "url": "/v1/responses",
                "body": {"input": "q", "background": True},
            },
            "/v1/responses",
            "invalid_request",
            "background",
        ),
        (chat_line(messages=[]), CHAT, "invalid_request", "body.messages"),
        (line("c") | {"url": "/v1/x"}, "/v1/jobs", "mismatched_url", "url"),
        (line(""), "/v1/jobs", "invalid_line", "custom_id"),
        (line("c" * 513), "/v1/jobs", "invalid_line", "custom_id"),
        (line("c") | {"more": 1}, "/v1/jobs", "invalid_line", "more"),
        ([1], "/v1/jobs", "invalid_line", None),
        (line("\ud800"), "/v1/jobs", "invalid_line", "custom_id"),
        (line("c", "\ud800"), "/v1/jobs", "invalid_request", "body"),
    ],
)
def test_a_bad_line_is_told_with_its_place(made: Any, endpoint: str, code: str, param: str | None):
    with pytest.raises(LineError) as error:
        lines.read(raw(made), endpoint)

    assert (error.value.code, error.value.param) == (code, param)


def test_what_is_told_of_a_bad_line_is_short_and_unicode():
    with pytest.raises(LineError) as error:
        lines.read(raw(line("c") | {"x" * 10_000: 1}), "/v1/jobs")

    told = error.value.as_dict(3)
    assert told["param"].startswith("xxx")
    assert len(told["param"]) < 1000
    surrogate = LineError("c", "\ud800", "\ud800").as_dict(1)
    assert (surrogate["message"], surrogate["param"]) == ("\\ud800", "\\ud800")


def test_a_line_that_nests_without_end_is_no_json():
    with pytest.raises(LineError) as error:
        lines.read(b"[" * 200_000, "/v1/jobs")

    assert error.value.code == "invalid_json_line"


@pytest.mark.parametrize(
    ("code", "status"), [("media_unreadable", 400), ("engine_error", 500), ("timeout", 400)]
)
def test_a_failed_job_stands_in_its_line_with_a_status(code: str, status: int):
    job = {"id": "job_1", "status": "failed", "error": {"code": code, "message": "no"}}

    made = lines.result("/v1/jobs", SPEC, job)

    assert made["response"] == {
        "status_code": status,
        "request_id": "job_1",
        "body": {"error": job["error"]},
    }


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("expired", "batch_expired"),
        ("cancelled", "batch_cancelled"),
        ("failed", "batch_failed"),
        ("", "job_cancelled"),
        ("completed", "job_cancelled"),
    ],
)
def test_a_line_that_was_not_executed_says_why(ending: str, code: str):
    job = {"id": "job_1", "status": "cancelled", "error": None}
    made = lines.result("/v1/jobs", SPEC, job)

    written = json.loads(lines.written(made, ending))

    assert (written["response"], written["error"]["code"]) == (None, code)
    assert json.loads(lines.written(lines.failed("b", 1, "c"), ending)) == written


def test_a_refused_line_keeps_its_own_reason():
    made = lines.failed("b", 1, "c", UploadNotFound("nothing"))

    written = json.loads(lines.written(made, "cancelled"))

    assert written["error"] == {"code": "upload_not_found", "message": "nothing"}


def test_a_line_is_one_job_for_ever():
    assert line_job_id("b", 1) == line_job_id("b", 1)
    assert len({line_job_id(batch, n) for batch in ("b", "c", "b1") for n in range(12)}) == 36
