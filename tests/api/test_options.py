"""Logprobs, JSON by a schema, tools and reasoning: results and streams of real processes."""

import json
from typing import Any

import httpx

from tests.support.sse import frames, text_of

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"enum": ["四只"]}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}


async def answered(http: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    response = await http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=20"})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def deltas_of(http: httpx.AsyncClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    events = [frame async for frame in frames(http, job["id"])]
    assert text_of(events) == job["output"]["text"]
    return [frame.data for frame in events if frame.event == "delta"]


async def test_a_plain_answer_has_nothing_but_text(http: httpx.AsyncClient):
    job = await answered(http, query="hi")

    assert job["output"] == {"text": "hi", "finish_reason": "stop"}
    assert all(
        d.keys() == {"sequence_number", "text", "tokens"} for d in await deltas_of(http, job)
    )


async def test_logprobs_are_in_every_delta_and_in_the_result(http: httpx.AsyncClient):
    job = await answered(http, query="四只 sheep [[rate=100]]", logprobs=True, top_logprobs=3)

    content = job["output"]["logprobs"]["content"]
    streamed = [
        e for d in await deltas_of(http, job) if d["tokens"] for e in d["logprobs"]["content"]
    ]
    assert content == streamed
    assert [entry["token"] for entry in content] == ["四", "只", " sheep", " "]
    assert content[0]["bytes"] == list("四".encode())
    assert [len(entry["top_logprobs"]) for entry in content] == [3] * 4


async def test_an_answer_by_a_schema_is_json_that_fits(http: httpx.AsyncClient):
    job = await answered(http, query="how many?", response_format=FORMAT)

    assert json.loads(job["output"]["text"]) == {"n": "四只"}


async def test_a_call_is_in_the_stream_and_in_the_result_and_no_text(http: httpx.AsyncClient):
    asked = {"tools": [ADD], "messages": [{"role": "user", "content": 'hm [[tool=add {"a": 1}]]'}]}
    job = await answered(http, **asked)

    (call,) = job["output"]["tool_calls"]
    streamed = [call for d in await deltas_of(http, job) for call in d.get("tool_calls", ())]
    assert streamed == [call]
    assert call["id"].startswith("call_")
    assert (call["type"], call["function"]) == (
        "function",
        {"name": "add", "arguments": '{"a": 1}'},
    )
    assert (job["output"]["text"], job["output"]["finish_reason"]) == ("hm", "tool_calls")


async def test_a_calls_result_is_handed_back_and_answered(http: httpx.AsyncClient):
    ask = {"role": "user", "content": "[[tool=add {}]]"}
    first = await answered(http, tools=[ADD], messages=[ask])
    calls = first["output"]["tool_calls"]

    second = await answered(
        http,
        tools=[ADD],
        tool_choice="none",
        messages=[
            {"role": "user", "content": "what is 1 + 1?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "2"},
        ],
    )

    assert second["output"]["text"] == "what is 1 + 1?"


async def test_a_demanded_call_is_made(http: httpx.AsyncClient):
    job = await answered(http, query="1 + 1?", tools=[ADD], tool_choice="required")

    (call,) = job["output"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 0}'}


async def test_reasoning_stands_beside_the_text(http: httpx.AsyncClient):
    job = await answered(http, query="[[think=one two]]four")

    streamed = [d["reasoning"] for d in await deltas_of(http, job) if "reasoning" in d]
    assert "".join(streamed) == job["output"]["reasoning"] == "one two"
    assert job["output"]["text"] == "four"
    assert job["history"] == [["[[think=one two]]four", "four"]]


async def test_a_schema_that_is_none_is_refused_with_its_place(http: httpx.AsyncClient):
    broken = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strin"}}}

    response = await http.post("/v1/jobs", json={"query": "q", "response_format": broken})

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_request")
    assert error["param"] == "response_format.json_schema.schema"


async def test_a_body_that_is_nested_without_end_is_refused(http: httpx.AsyncClient):
    deep = "[" * 900 + "]" * 900

    response = await http.post(
        "/v1/jobs",
        content=f'{{"query": "q", "tools": {deep}}}',
        headers={"content-type": "application/json"},
    )

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_tool_choice_of_another_shape_is_named(http: httpx.AsyncClient):
    asked = {"query": "q", "tools": [ADD], "tool_choice": {"type": "function", "name": "add"}}

    response = await http.post("/v1/jobs", json=asked)

    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tool_choice")
