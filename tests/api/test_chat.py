"""Chat and text completions, asked by the `openai` client as it is."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion
from pydantic import BaseModel

from tests.support.media_files import picture
from tests.support.openai_types import check
from tests.support.processes import Service

LONG = "[[tokens=100000 rate=50]]"


@pytest.fixture
async def client(running: Service) -> AsyncIterator[AsyncOpenAI]:
    url = f"{running.url}/v1"
    async with AsyncOpenAI(api_key="EMPTY", base_url=url, max_retries=0, timeout=30) as made:
        yield made


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def chunks_of(http: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    """Return the data of a stream's frames as they came; the last is `[DONE]`."""
    response = await http.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def job_of(http: httpx.AsyncClient, response: Any) -> dict[str, Any]:
    return (await http.get(f"/v1/jobs/{response.headers['x-forebay-job-id']}")).json()


async def test_an_answer_has_exactly_the_fields_that_the_client_knows(client: AsyncOpenAI):
    raw = await client.chat.completions.with_raw_response.create(
        model="echo", messages=user("四只 羊")
    )

    check(json.loads(raw.content), ChatCompletion)
    parsed = raw.parse()
    assert parsed.choices[0].message.content == "四只 羊"
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + 3
    assert parsed.id.removeprefix("chatcmpl-") in raw.headers["x-forebay-job-id"]


async def test_a_call_is_a_job_that_can_be_read_as_one(
    client: AsyncOpenAI, http: httpx.AsyncClient
):
    raw = await client.chat.completions.with_raw_response.create(
        model="echo", messages=user("a b"), metadata={"shop": "7"}, extra_body={"priority": "high"}
    )

    job = await job_of(http, raw)
    assert (job["status"], job["output"]["text"]) == ("completed", "a b")
    assert (job["metadata"], job["priority"]) == ({"shop": "7"}, "high")


async def test_a_stream_can_be_printed_without_looking(client: AsyncOpenAI):
    text = "图片中一共有四只羊[[rate=200]]"
    stream = await client.chat.completions.create(model="echo", messages=user(text), stream=True)

    printed = [chunk.choices[0].delta.content async for chunk in stream]

    assert None not in printed
    assert "".join(str(piece) for piece in printed) == "图片中一共有四只羊"


async def test_every_chunk_of_a_stream_is_what_the_client_knows(http: httpx.AsyncClient):
    chunks = await chunks_of(
        http, "/v1/chat/completions", model="echo", messages=user("[[tokens=20 rate=100]]"),
        stream_options={"include_usage": True},
    )  # fmt: skip

    for chunk in chunks:
        check(chunk, ChatCompletionChunk)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-1] == "stop"
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 20)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_the_limit_of_either_name_ends_an_answer(client: AsyncOpenAI):
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        answer = await client.chat.completions.create(
            model="echo", messages=user("[[tokens=9]]"), **limit
        )

        assert answer.choices[0].message.content == "tok1 tok2"
        assert answer.choices[0].finish_reason == "length"


async def test_three_choices_are_three_jobs_with_seeds_of_their_own(
    client: AsyncOpenAI, http: httpx.AsyncClient
):
    raw = await client.chat.completions.with_raw_response.create(
        model="echo", messages=user("a b"), n=3, seed=5
    )

    answer = raw.parse()
    ids = raw.headers["x-forebay-job-id"].split(",")
    jobs = [(await http.get(f"/v1/jobs/{job_id}")).json() for job_id in ids]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"a b"}
    assert {job["status"] for job in jobs} == {"completed"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(j["usage"]["completion_tokens"] for j in jobs) == 6
    assert answer.usage.prompt_tokens == jobs[0]["usage"]["prompt_tokens"]


async def test_streamed_choices_come_mixed_and_each_is_whole(http: httpx.AsyncClient):
    chunks = await chunks_of(
        http, "/v1/chat/completions", model="echo", messages=user("[[tokens=30 rate=100]]"), n=3,
        stream_options={"include_usage": True},
    )  # fmt: skip

    texts = {0: "", 1: "", 2: ""}
    order = []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
        order.append(choice["index"])
    assert set(texts.values()) == {" ".join(f"tok{n}" for n in range(1, 31))}
    assert order != sorted(order)
    assert chunks[-1]["usage"]["completion_tokens"] == 90


async def test_every_choice_sees_the_picture(client: AsyncOpenAI):
    part = {"type": "image_url", "image_url": {"url": data_url(), "detail": "high"}}
    content = [part, {"type": "text", "text": "[[media]]"}]

    raw = await client.chat.completions.with_raw_response.create(
        model="echo", messages=[{"role": "user", "content": content}], n=2
    )

    texts = [choice.message.content or "" for choice in raw.parse().choices]
    assert [len(json.loads(text)) for text in texts] == [1, 1]
    assert texts[0] == texts[1]


async def test_media_beside_the_messages_and_tags_inside_them_are_read_as_ms_swift_does(
    client: AsyncOpenAI,
):
    listed = await client.chat.completions.create(
        model="echo", messages=user("<image>[[media]]"),
        extra_body={"images": [data_url()], "videos": [], "audios": []},
    )  # fmt: skip
    tagged = await client.chat.completions.create(
        model="echo", messages=user(f"<img>{data_url()}</img>[[media]]")
    )

    assert listed.choices[0].message.content == tagged.choices[0].message.content
    assert json.loads(listed.choices[0].message.content or "")[0]["kind"] == "image"


def data_url() -> str:
    return f"data:image/png;base64,{base64.b64encode(picture()).decode()}"


# --- tools, schemas, logprobs ---------------------------------------------------------------------

ADD: Any = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}},
}


async def test_a_tool_is_called_and_its_answer_taken_back(client: AsyncOpenAI):
    asked = user('[[tool=add {"a": 1}]]')
    raw = await client.chat.completions.with_raw_response.create(
        model="echo", messages=asked, tools=[ADD]
    )

    check(json.loads(raw.content), ChatCompletion)
    (choice,) = raw.parse().choices
    (call,) = choice.message.tool_calls or ()
    assert choice.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})

    result = {"role": "tool", "tool_call_id": call.id, "content": "2"}
    second = await client.chat.completions.create(
        model="echo", messages=[*asked, choice.message, result, *user("两只")], tools=[ADD]
    )
    assert second.choices[0].message.content == "两只"


async def test_a_called_tool_is_streamed_without_a_null_content(http: httpx.AsyncClient):
    chunks = await chunks_of(
        http, "/v1/chat/completions", model="echo", tools=[ADD],
        messages=user('[[think=hm]]one [[tool=add {"a": 1}]]'),
    )  # fmt: skip

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    for chunk in chunks:
        check(chunk, ChatCompletionChunk)
    assert all(isinstance(delta["content"], str) for delta in deltas)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "add")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


class Herd(BaseModel):
    """What is counted."""

    animal: str
    count: int


async def test_the_clients_own_helpers_parse_and_stream(client: AsyncOpenAI):
    wanted = user('{"animal": "sheep", "count": 4}')
    parsed = await client.chat.completions.parse(
        model="echo", messages=wanted, response_format=Herd
    )
    async with client.chat.completions.stream(
        model="echo", messages=wanted, response_format=Herd
    ) as stream:
        final = await stream.get_final_completion()

    assert parsed.choices[0].message.parsed == Herd(animal="sheep", count=4)
    assert final.choices[0].message.parsed == Herd(animal="sheep", count=4)


async def test_logprobs_are_the_same_whole_and_in_pieces(http: httpx.AsyncClient):
    body: dict[str, Any] = {"model": "echo", "messages": user("一 二 三"), "max_tokens": 8}
    body |= {"logprobs": True, "top_logprobs": 2}
    whole = (await http.post("/v1/chat/completions", json=body)).json()
    chunks = await chunks_of(http, "/v1/chat/completions", **body)
    older = await http.post(
        "/v1/completions", json={"prompt": "一 二 三", "max_tokens": 8, "logprobs": 2}
    )

    check(whole, ChatCompletion)
    check(older.json(), Completion)
    told = whole["choices"][0]["logprobs"]["content"]
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert len(told) == whole["usage"]["completion_tokens"]
    assert [token for piece in pieces if piece for token in piece["content"]] == told
    lists = older.json()["choices"][0]["logprobs"]
    assert lists["tokens"] == [token["token"] for token in told]
    assert lists["text_offset"][0] == 0


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"presence_penalty": 1.5}, "option_unsupported", "presence_penalty"),
        ({"nonsense": 1}, "invalid_request", "nonsense"),
        ({"n": 1000}, "invalid_request", "n"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "invalid_request", None),
    ],
)
async def test_what_cannot_be_honoured_is_a_400_with_its_name(
    client: AsyncOpenAI, body: dict[str, Any], code: str, param: str | None
):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="echo", messages=user("q"), extra_body=body)

    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


async def test_a_model_that_is_not_served_is_a_404(client: AsyncOpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-4", messages=user("q"))

    assert caught.value.code == "model_not_found"
    assert "echo" in caught.value.message


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        ({"messages": user("[[fail]]")}, 500, "engine_error"),
        ({"messages": user("[[oom]]")}, 500, "out_of_memory"),
        ({"messages": user("[[hang]]"), "timeout_s": 0.3}, 408, "timeout"),
        ({"messages": user("q"), "max_tokens": 1_000_000}, 400, "context_length_exceeded"),
        ({"messages": user("<img>data:image/png;base64,AAAA</img>q")}, 415, "media_unsupported"),
    ],
)
async def test_a_job_that_fails_is_an_error_that_no_client_repeats(
    http: httpx.AsyncClient, ask: dict[str, Any], status: int, code: str
):
    plain = await http.post("/v1/chat/completions", json={"model": "echo"} | ask)
    streamed = await chunks_of(http, "/v1/chat/completions", model="echo", **ask)

    assert (plain.status_code, plain.json()["error"]["code"]) == (status, code)
    assert plain.headers["x-should-retry"] == "false"
    assert (await job_of(http, plain))["status"] == "failed"
    assert streamed[-1]["error"]["code"] == code
    assert streamed[0]["choices"][0]["delta"]["content"] == ""


async def test_the_client_raises_what_comes_in_a_stream(client: AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="echo", messages=user("[[tokens=3]][[fail]]"), stream=True
    )

    with pytest.raises(openai.APIError, match="fail"):
        async for _ in stream:
            pass


async def test_a_job_that_somebody_cancels_answers_with_what_is_there(
    client: AsyncOpenAI, http: httpx.AsyncClient
):
    stream = await client.chat.completions.create(
        model="echo", messages=user(LONG), max_tokens=100_000, stream=True
    )
    job_id = stream.response.headers["x-forebay-job-id"]
    printed, reason, is_asked = "", None, False

    async for chunk in stream:
        printed += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason
        if printed and not is_asked:
            is_asked = True
            await http.post(f"/v1/jobs/{job_id}/cancel")

    job = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert (job["status"], reason) == ("cancelled", "length")
    assert printed == job["output"]["text"]


# --- hanging up -----------------------------------------------------------------------------------


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    job = (await http.get(f"/v1/jobs/{job_id}")).json()
    while job["finished_at"] is None:
        job = (await http.get(f"/v1/jobs/{job_id}", params={"wait": 5})).json()
    return job


async def begun(http: httpx.AsyncClient, mark: str) -> str:
    """Return the id of the job whose metadata have a mark, once it generates."""
    async with asyncio.timeout(20):
        while True:
            jobs = (await http.get("/v1/jobs", params={"limit": 100})).json()["data"]
            for job in jobs:
                if job["metadata"] == {"mark": mark} and job["progress"]["tokens"]:
                    return str(job["id"])


@pytest.mark.parametrize(
    ("more", "headers", "status"),
    [
        ({}, {}, "cancelled"),
        ({"on_disconnect": "continue"}, {}, "completed"),
        ({}, {"Idempotency-Key": "continue-{mark}"}, "completed"),
        ({"on_disconnect": "cancel"}, {"Idempotency-Key": "cancel-{mark}"}, "cancelled"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_ends_its_job_unless_it_may_come_back(
    http: httpx.AsyncClient,
    more: dict[str, Any],
    headers: dict[str, str],
    status: str,
    stream: bool,
):
    mark = f"{stream}-{more}-{len(headers)}"
    sent = {name: value.format(mark=hash(mark)) for name, value in headers.items()}
    body = {
        "model": "echo", "messages": user("[[tokens=60 rate=60]]"), "stream": stream,
        "metadata": {"mark": mark},
    } | more  # fmt: skip
    calling = asyncio.create_task(http.post("/v1/chat/completions", json=body, headers=sent))
    job_id = await begun(http, mark)

    calling.cancel()
    await asyncio.wait({calling})

    job = await ended(http, job_id)
    assert job["status"] == status
    assert (job["output"]["text"].count("tok") < 60) == (status == "cancelled")


async def test_the_same_key_gives_the_same_answer_once(http: httpx.AsyncClient):
    body = {"model": "echo", "messages": user("a b"), "n": 2, "seed": 1}
    headers = {"Idempotency-Key": "chat-same-key"}

    first = await http.post("/v1/chat/completions", json=body, headers=headers)
    again = await http.post("/v1/chat/completions", json=body, headers=headers)
    streamed = await http.post(
        "/v1/chat/completions", json=body | {"stream": True}, headers=headers
    )

    assert first.json() == again.json()
    assert first.headers["x-forebay-job-id"] == again.headers["x-forebay-job-id"]
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (409, "idempotency_conflict")


# --- completions ----------------------------------------------------------------------------------


async def test_a_text_is_completed(client: AsyncOpenAI):
    raw = await client.completions.with_raw_response.create(
        model="echo", prompt=["a b", "c"], n=2, max_tokens=9
    )

    check(json.loads(raw.content), Completion)
    answer = raw.parse()
    assert [choice.text for choice in answer.choices] == ["a b", "a b", "c", "c"]
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
    }  # fmt: skip


async def test_a_completion_is_streamed(http: httpx.AsyncClient):
    chunks = await chunks_of(
        http, "/v1/completions", model="echo", prompt=["one two", "三"],
        stream_options={"include_usage": True},
    )  # fmt: skip

    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        check(chunk, Completion)
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "one two", 1: "三"}
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 3)
