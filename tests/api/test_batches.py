"""Batches through the `openai` client, on the running service."""

import base64
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from tests.support.batches import begin, ended, jsonl, line, results
from tests.support.media_files import picture
from tests.support.processes import Service, until

KNOWN = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status",
    "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at",
    "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
    "request_counts", "usage", "metadata",
}  # fmt: skip


@pytest.fixture
def client(running: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_every_line_is_answered_once(client: openai.OpenAI):
    lines = [line(f"ask-{n}", f"word{n}") for n in range(40)]

    begun = begin(client, jsonl(lines), metadata={"who": "me"})
    batch = ended(client, begun)

    assert (batch.status, batch.metadata, batch.model) == ("completed", {"who": "me"}, "echo")
    assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert batch.error_file_id is None
    found = results(client, batch.output_file_id)
    assert {name: row["response"]["body"]["output"]["text"] for name, row in found.items()} == {
        f"ask-{n}": f"word{n}" for n in range(40)
    }
    row = found["ask-0"]
    assert row.keys() == {"id", "custom_id", "response", "error"}
    assert (row["response"]["status_code"], row["error"]) == (200, None)
    assert row["response"]["request_id"] == row["response"]["body"]["id"]
    assert batch.usage.output_tokens == 40 == batch.usage.total_tokens - batch.usage.input_tokens
    moments = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert moments == sorted(moments)
    assert batch.expires_at - batch.created_at == 86_400
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_the_batch_object_is_openais(client: openai.OpenAI):
    file = client.files.create(file=("r.jsonl", jsonl([line("a")])), purpose="batch")

    raw = client.batches.with_raw_response.create(
        input_file_id=file.id,
        endpoint="/v1/jobs",  # type: ignore[arg-type]
        completion_window="24h",
    )
    body = raw.http_response.json()
    last = ended(client, raw.parse())

    assert body.keys() == KNOWN
    Batch.model_validate(body, strict=True)
    assert last.id in [batch.id for batch in client.batches.list(limit=2)]


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a b"}], "model": "echo", "max_tokens": 9},
            "chat.completion",
        ),
        ("/v1/completions", {"prompt": "a b", "model": "echo"}, "text_completion"),
        ("/v1/jobs", {"query": "a b"}, "job"),
        ("/v1/responses", {"input": "a b", "instructions": "c", "model": "echo"}, "response"),
    ],
)
def test_lines_ask_what_a_call_of_their_endpoint_asks(
    client: openai.OpenAI, endpoint: str, body: dict[str, Any], kind: str
):
    asked = {"custom_id": "1", "method": "POST", "url": endpoint, "body": body}

    batch = ended(client, begin(client, jsonl([asked]), endpoint=endpoint))

    answer = results(client, batch.output_file_id)["1"]["response"]["body"]
    assert answer["object"] == kind
    assert '"a b"' in json.dumps(answer)


def test_lines_hold_pictures_by_data_url_and_by_file(client: openai.OpenAI):
    data = picture(32, 24)
    file = client.files.create(file=("a.png", data), purpose="vision")
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    lines = [
        line("url", "<image>[[media]]", images=[url]),
        line("file", "<image>[[media]]", images=[file.id]),
        line("broken", "<image>x", images=["data:image/png;base64,!!!"]),
        line("missing", "<image>x", images=[f"file_{'0' * 32}"]),
        line("no picture", "<image>x", images=["data:image/png;base64,AAAA"]),
    ]

    batch = ended(client, begin(client, jsonl(lines)))

    assert batch.request_counts.model_dump() == {"total": 5, "completed": 2, "failed": 3}
    output, errors = (results(client, f) for f in (batch.output_file_id, batch.error_file_id))
    texts = {row["response"]["body"]["output"]["text"] for row in output.values()}
    assert (len(texts), output.keys()) == (1, {"url", "file"})
    assert errors["broken"]["error"]["code"] == "media_unreadable"
    assert errors["missing"]["error"]["code"] == "upload_not_found"
    refused = errors["no picture"]["response"]
    assert refused["status_code"] == 400
    assert refused["body"]["error"]["code"] in {"media_unsupported", "media_unreadable"}


def test_bad_lines_fail_the_batch_before_any_job_is_made(client: openai.OpenAI):
    rows = [
        line("good"),
        "{not json",
        line("good"),
        {"custom_id": "x", "method": "GET", "url": "/v1/jobs", "body": {}},
        {"custom_id": "y", "method": "POST", "url": "/v1/chat/completions", "body": {}},
        line("z", query=7),  # type: ignore[arg-type]
        {"method": "POST", "url": "/v1/jobs", "body": {"query": "a"}},
        line("m", model="nobody"),
        line("u", colour="red"),
    ]
    data = b"\n".join(r.encode() if isinstance(r, str) else json.dumps(r).encode() for r in rows)

    batch = ended(client, begin(client, data))

    assert (batch.status, batch.request_counts.total) == ("failed", 0)
    assert (batch.output_file_id, batch.error_file_id, batch.finalizing_at) == (None, None, None)
    assert [(e.line, e.code, e.param) for e in batch.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_line", "method"),
        (5, "mismatched_url", "url"),
        (6, "invalid_request", "body.query"),
        (7, "invalid_line", "custom_id"),
        (8, "model_not_found", "body.model"),
        (9, "invalid_request", "body.colour"),
    ]
    assert all(e.message for e in batch.errors.data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\n \n\n", "empty_file"),
        (jsonl([line("s", stream=True)]), "invalid_request"),
        (jsonl([line("l", "x" * 2_100_000)]), "line_too_long"),
    ],
)
def test_a_file_that_is_no_good_fails(client: openai.OpenAI, data: bytes, code: str):
    batch = ended(client, begin(client, data))

    assert (batch.status, batch.errors.data[0].code) == ("failed", code)


def test_a_cancelled_batch_keeps_what_was_answered(client: openai.OpenAI):
    lines = [line("quick-1"), line("quick-2"), *(line(f"slow-{n}", "[[hang]]") for n in range(6))]
    begun = begin(client, jsonl(lines))
    until(lambda: client.batches.retrieve(begun.id).request_counts.completed == 2)

    asked = client.batches.cancel(begun.id)
    batch = ended(client, begun)
    again = client.batches.cancel(begun.id)

    assert (asked.status, batch.status, again.status) == ("cancelling", "cancelled", "cancelled")
    assert batch.cancelling_at <= batch.cancelled_at
    assert results(client, batch.output_file_id).keys() == {"quick-1", "quick-2"}
    errors = results(client, batch.error_file_id)
    assert {row["error"]["code"] for row in errors.values()} == {"batch_cancelled"}
    assert len(errors) == 6
    assert batch.request_counts.model_dump() == {"total": 8, "completed": 2, "failed": 6}


def test_a_batch_whose_window_is_over_keeps_what_was_answered(client: openai.OpenAI):
    lines = [line("quick"), *(line(f"slow-{n}", "[[hang]]") for n in range(300))]

    begun = begin(client, jsonl(lines), window="3s")
    batch = ended(client, begun)

    assert batch.status == "expired"
    assert batch.expired_at >= batch.expires_at == batch.created_at + 3
    assert results(client, batch.output_file_id).keys() == {"quick"}
    errors = results(client, batch.error_file_id)
    assert len(errors) == 300  # those within the window and those never begun
    assert {row["error"]["code"] for row in errors.values()} == {"batch_expired"}


def test_a_batch_that_is_over_cannot_be_cancelled(client: openai.OpenAI):
    batch = ended(client, begin(client, jsonl([line("a")])))

    with pytest.raises(openai.ConflictError) as refused:
        client.batches.cancel(batch.id)

    assert refused.value.code == "batch_conflict"


def test_a_line_that_waits_for_its_results_file_is_neither_erased_nor_retried(
    client: openai.OpenAI, running: Service
):
    begun = begin(client, jsonl([line("bad", "[[fail]]"), line("slow", "[[hang]]")]))
    until(lambda: client.batches.retrieve(begun.id).request_counts.failed == 1)
    jobs = httpx.get(f"{running.url}/v1/jobs?status=failed&limit=1").json()["data"]

    erased = httpx.delete(f"{running.url}/v1/jobs/{jobs[0]['id']}")
    retried = httpx.post(f"{running.url}/v1/jobs/{jobs[0]['id']}/retry")
    client.batches.cancel(begun.id)
    batch = ended(client, begun)

    assert (erased.status_code, retried.status_code) == (409, 409)
    errors = results(client, batch.error_file_id)
    assert errors["bad"]["response"]["body"]["error"]["code"] == "engine_error"
    assert errors["slow"]["error"]["code"] == "batch_cancelled"


async def test_the_same_key_makes_one_batch(http: httpx.AsyncClient):
    made = await http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": jsonl([line("a")])}
    )
    body = {
        "input_file_id": made.json()["id"],
        "endpoint": "/v1/jobs",
        "completion_window": "1h",
    }
    key = {"Idempotency-Key": made.json()["id"]}

    first = await http.post("/v1/batches", json=body, headers=key)
    second = await http.post("/v1/batches", json=body, headers=key)
    other = await http.post("/v1/batches", json=body | {"completion_window": "2h"}, headers=key)

    assert first.json()["id"] == second.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("changed", "status", "code", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "invalid_request", "endpoint"),
        ({"completion_window": "soon"}, 400, "invalid_request", "completion_window"),
        ({"completion_window": "0s"}, 400, "invalid_request", "completion_window"),
        ({"completion_window": "31d"}, 400, "invalid_request", "completion_window"),
        ({"input_file_id": "file_0"}, 404, "file_not_found", None),
        ({"metadata": {"a": 1}}, 400, "invalid_request", "metadata.a"),
        ({"metadata": {"a": "\ud800"}}, 400, "invalid_request", None),
        ({"colour": "red"}, 400, "invalid_request", "colour"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "invalid_request",
         "output_expires_after.seconds"),
    ],
)  # fmt: skip
async def test_a_bad_batch_is_refused(
    http: httpx.AsyncClient, changed: dict[str, Any], status: int, code: str, param: str | None
):
    made = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"{}"})
    body = {
        "input_file_id": made.json()["id"], "endpoint": "/v1/jobs", "completion_window": "24h",
    }  # fmt: skip

    sent = json.dumps(body | changed)  # httpx's own JSON cannot hold half a surrogate pair
    response = await http.post(
        "/v1/batches", content=sent, headers={"Content-Type": "application/json"}
    )

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


async def test_only_a_file_of_lines_makes_a_batch(http: httpx.AsyncClient):
    made = await http.post("/v1/files", data={"purpose": "vision"}, files={"file": b"{}"})

    response = await http.post("/v1/batches", json={
        "input_file_id": made.json()["id"], "endpoint": "/v1/jobs", "completion_window": "24h",
    })  # fmt: skip

    assert (response.status_code, response.json()["error"]["param"]) == (400, "input_file_id")


@pytest.mark.parametrize("call", ["", "/cancel"])
async def test_an_unknown_batch_is_not_found(http: httpx.AsyncClient, call: str):
    method = "POST" if call else "GET"

    response = await http.request(method, f"/v1/batches/batch_0{call}")

    assert (response.status_code, response.json()["error"]["code"]) == (404, "batch_not_found")
