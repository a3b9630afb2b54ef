"""`/v1/responses` over HTTP: waiting, the background, what is kept, and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.media_files import picture
from tests.support.web import body as served
from tests.support.web import web_server

ENDLESS = "[[tokens=100000 rate=50]]"
LONG = {"max_output_tokens": 100_000}


async def post(http: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    response = await http.post("/v1/responses", json={"input": "你好"} | asked)
    assert response.status_code == 200, response.text
    return response.json()


async def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"], error["param"]


def job_of(response: dict[str, Any]) -> str:
    return response["id"].replace("resp_", "job_")


async def until_over(http: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    await http.get(f"/v1/responses/{response_id}", params={"stream": True})
    return (await http.get(f"/v1/responses/{response_id}")).json()


async def job_when_over(http: httpx.AsyncClient, job_id: str) -> httpx.Response:
    """Return the last of a job: it over, or that it is gone."""
    async with asyncio.timeout(20):
        while True:
            response = await http.get(f"/v1/jobs/{job_id}", params={"wait": 10})
            if response.status_code != 200 or response.json()["finished_at"] is not None:
                return response


async def test_a_response_is_answered_at_its_end(http: httpx.AsyncClient):
    raw = await http.post("/v1/responses", json={"input": "你是谁？"})

    response = raw.json()
    assert (raw.status_code, response["status"]) == (200, "completed")
    assert response["output"][0]["content"][0]["text"] == "你是谁？"
    assert raw.headers["x-forebay-job-id"] == job_of(response)


async def test_a_response_is_a_job(http: httpx.AsyncClient):
    response = await post(http, metadata={"k": "v"}, priority="high")

    job = (await http.get(f"/v1/jobs/{job_of(response)}")).json()

    assert (job["status"], job["priority"], job["metadata"]) == ("completed", "high", {"k": "v"})


async def test_in_the_background_it_is_queued_at_once_and_fetched_later(http: httpx.AsyncClient):
    response = await post(http, input="one two [[rate=50]]", background=True)

    over = await until_over(http, response["id"])

    assert (response["status"], response["output"]) == ("queued", [])
    assert (over["status"], over["background"]) == ("completed", True)
    assert over["output"][0]["content"][0]["text"] == "one two "


async def test_a_repeat_with_an_idempotency_key_is_the_same_response(http: httpx.AsyncClient):
    key = {"Idempotency-Key": "resp-repeat"}

    first, again = [
        (await http.post("/v1/responses", json={"input": "hi"}, headers=key)).json()
        for _ in range(2)
    ]

    assert first == again


async def test_an_answer_that_runs_into_its_limit_is_incomplete(http: httpx.AsyncClient):
    response = await post(http, input="[[tokens=50]]", max_output_tokens=3)

    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["content"][0]["text"] == "tok1 tok2 tok3"


async def test_a_failure_is_a_response_that_says_so(http: httpx.AsyncClient):
    response = await post(http, input="[[tokens=3]] [[fail]]")

    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["error"]["type"] == "engine_error"
    assert response["output"][0]["content"][0]["text"] == "tok1 tok2 tok3"


async def test_a_bad_picture_is_told_in_openais_words(http: httpx.AsyncClient):
    part = {"type": "input_image", "image_url": "https://nowhere.invalid/a.png"}

    response = await post(http, input=[{"role": "user", "content": [part]}])

    assert response["status"] == "failed"
    assert response["error"]["code"] == "failed_to_download_image"
    assert response["error"]["param"] == "input[0].content[0]"


# --- hanging up -----------------------------------------------------------------------------------


async def begin_and_hang_up(http: httpx.AsyncClient, **asked: Any) -> str:
    """Ask for a stream, read until it tells something, leave; return the job's id."""
    request = {"input": ENDLESS, "stream": True} | LONG | asked
    async with http.stream("POST", "/v1/responses", json=request) as response:
        await anext(response.aiter_lines())
        return response.headers["x-forebay-job-id"]


async def test_a_stored_response_goes_on_when_its_reader_leaves(http: httpx.AsyncClient):
    job_id = await begin_and_hang_up(http, input="one two three [[rate=20]]")

    job = (await job_when_over(http, job_id)).json()

    assert (job["status"], job["output"]["text"]) == ("completed", "one two three ")


async def test_an_unstored_stream_is_cancelled_and_erased_when_its_reader_leaves(
    http: httpx.AsyncClient,
):
    job_id = await begin_and_hang_up(http, store=False)

    async with asyncio.timeout(20):
        while (await job_when_over(http, job_id)).status_code != 410:
            pass  # over, but not yet erased


async def test_an_unstored_response_is_cancelled_when_its_client_stops_waiting(
    http: httpx.AsyncClient,
):
    asked = {"input": ENDLESS, "store": False, "metadata": {"who": "leaves"}} | LONG
    waiting = asyncio.create_task(http.post("/v1/responses", json=asked))
    job_id = await running_job(http, "leaves")

    waiting.cancel()

    async with asyncio.timeout(20):
        while (await job_when_over(http, job_id)).status_code != 410:
            pass


async def test_a_stored_response_goes_on_when_its_client_stops_waiting(http: httpx.AsyncClient):
    asked = {"input": "one two [[rate=4]]", "metadata": {"who": "stays"}}
    waiting = asyncio.create_task(http.post("/v1/responses", json=asked))
    job_id = await running_job(http, "stays")

    waiting.cancel()

    assert (await job_when_over(http, job_id)).json()["status"] == "completed"


async def running_job(http: httpx.AsyncClient, who: str) -> str:
    """Return the id of the job with this metadata once it runs."""
    async with asyncio.timeout(20):
        while True:
            jobs = (await http.get("/v1/jobs", params={"status": "in_progress"})).json()["data"]
            for job in jobs:
                if job["metadata"].get("who") == who:
                    return str(job["id"])


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unstored_response_is_answered_once_and_then_erased(
    http: httpx.AsyncClient, stream: bool
):
    answer = await http.post(
        "/v1/responses", json={"input": "hi", "store": False, "stream": stream}
    )

    job_id = answer.headers["x-forebay-job-id"]
    response_id = job_id.replace("job_", "resp_")
    later = await http.get(f"/v1/responses/{response_id}")
    assert "hi" in answer.text
    assert await refusal(later) == (404, "response_not_found", None)
    async with asyncio.timeout(20):
        while (await http.get(f"/v1/jobs/{job_id}")).status_code != 410:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- cancel and delete ----------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_cancel_is_true_and_twice_is_fine(http: httpx.AsyncClient, background: bool):
    if background:
        job_id = job_of(await post(http, input=ENDLESS, background=True, **LONG))
    else:
        job_id = await begin_and_hang_up(http)
    url = f"/v1/responses/{job_id.replace('job_', 'resp_')}/cancel"

    first, second = (await http.post(url)).json(), (await http.post(url)).json()

    job = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert (first["status"], job["status"]) == ("cancelled", "cancelled")
    assert first == second


async def test_cancel_leaves_what_is_over_as_it_is(http: httpx.AsyncClient):
    made = await post(http)

    assert (await http.post(f"/v1/responses/{made['id']}/cancel")).json() == made


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_deleted_response_is_no_more(http: httpx.AsyncClient, is_over: bool):
    made = await post(http, input="hi" if is_over else ENDLESS, background=not is_over, **LONG)
    url = f"/v1/responses/{made['id']}"

    deleted = await http.delete(url)

    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    for call in (
        http.get(url), http.delete(url), http.post(f"{url}/cancel"), http.get(f"{url}/input_items"),
        http.get(url, params={"stream": True}),
    ):  # fmt: skip
        assert await refusal(await call) == (404, "response_not_found", None)


async def test_a_job_of_another_door_is_no_response(http: httpx.AsyncClient):
    job = (await http.post("/v1/jobs", json={"query": "hi"})).json()

    other = await http.get(f"/v1/responses/{job['id'].replace('job_', 'resp_')}")

    assert await refusal(other) == (404, "response_not_found", None)


# --- going on -------------------------------------------------------------------------------------


async def test_a_chain_of_responses_holds_every_turn_and_its_pictures(http: httpx.AsyncClient):
    async with web_server() as web:
        url = web.at("/a.png", served(picture()))
        first = await post(
            http,
            instructions="be brief",
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": url},
                        {"type": "input_text", "text": "one"},
                    ],
                }
            ],
        )
        requests = web.requests["/a.png"]
    # The address is dead from here on.
    second = await post(http, input="two", previous_response_id=first["id"])
    third = await post(http, input="[[media]]", previous_response_id=second["id"])

    items = await http.get(
        f"/v1/responses/{third['id']}/input_items", params={"order": "asc", "limit": 3}
    )
    page = items.json()

    assert requests == 1
    assert second["instructions"] is None
    assert [kind["kind"] for kind in json.loads(third["output"][0]["content"][0]["text"])] == [
        "image"
    ]
    assert [(item["role"], item["content"][-1]["text"]) for item in page["data"]] == [
        ("user", "one"), ("assistant", "one"), ("user", "two"),
    ]  # fmt: skip
    assert page["data"][0]["content"][0]["image_url"] == url
    assert page["data"][1]["id"] == first["output"][0]["id"]
    assert page["has_more"] is True
    job = (await http.get(f"/v1/jobs/{job_of(third)}")).json()
    assert [turn[1] for turn in job["history"][:2]] == ["one", "two"]


@pytest.fixture
async def deleted_id(http: httpx.AsyncClient) -> str:
    made = await post(http)
    await http.delete(f"/v1/responses/{made['id']}")
    return made["id"]


async def test_a_response_that_is_gone_cannot_be_gone_on_from(
    http: httpx.AsyncClient, deleted_id: str
):
    for missing in (deleted_id, "resp_" + "0" * 32, "resp_x"):
        answer = await http.post(
            "/v1/responses", json={"input": "q", "previous_response_id": missing}
        )
        assert await refusal(answer) == (404, "response_not_found", "previous_response_id")


@pytest.fixture
async def endless(http: httpx.AsyncClient) -> AsyncIterator[str]:
    made = await post(http, input=ENDLESS, background=True, **LONG)
    yield made["id"]
    await http.delete(f"/v1/responses/{made['id']}")


async def test_one_that_still_runs_cannot_be_gone_on_from_yet(
    http: httpx.AsyncClient, endless: str
):
    answer = await http.post("/v1/responses", json={"input": "q", "previous_response_id": endless})

    assert await refusal(answer) == (409, "job_conflict", "previous_response_id")


async def test_one_that_failed_has_no_answer_to_go_on_from(http: httpx.AsyncClient):
    failed = await post(http, input="[[fail]]")

    answer = await http.post(
        "/v1/responses", json={"input": "q", "previous_response_id": failed["id"]}
    )

    assert await refusal(answer) == (409, "job_conflict", "previous_response_id")
    assert "is failed" in answer.json()["error"]["message"]


async def test_a_chain_ends_at_the_limit_of_text(start_api: Any, running: Any):
    api = start_api(
        FOREBAY_KEY_PREFIX=running.environ["FOREBAY_KEY_PREFIX"], FOREBAY_MAX_TEXT_BYTES="1500"
    )

    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        first = await post(http, input="a" * 700)
        answer = await http.post(
            "/v1/responses", json={"input": "b" * 800, "previous_response_id": first["id"]}
        )
        kept = await http.post(
            "/v1/responses", json={"input": "q", "instructions": "i" * 700, "user": "u" * 500}
        )

    assert await refusal(answer) == (413, "text_too_large", "input")
    assert await refusal(kept) == (413, "text_too_large", None)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "no input": ({"input": None}, (400, "invalid_request", "input")),
    "empty texts": ({"input": ""}, (400, "invalid_request", "input")),
    "an answer at the end": (
        {"input": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        (400, "invalid_request", "input"),
    ),
    "an unknown field": ({"inputs": 1}, (400, "invalid_request", "inputs")),
    "an unknown field of a part": (
        {"input": [{"role": "user", "content": [
            {"type": "input_text", "text": "q", "bold": True}]}]},
        (400, "invalid_request", "input[0].content[0].bold"),
    ),
    "sound": (
        {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        (400, "invalid_request", "input[0].content[0]"),
    ),
    "a broken data URL": (
        {"input": [{"role": "user", "content": [
            {"type": "input_text", "text": "q"},
            {"type": "input_image", "image_url": "data:image/png;base64,%%"}]}]},
        (400, "media_unreadable", "input[0].content[1]"),
    ),
    "a file that is not there": (
        {"input": [{"role": "user", "content": [
            {"type": "input_image", "file_id": "file_" + "0" * 32}]}]},
        (404, "upload_not_found", "input[0].content[0]"),
    ),
    "a document": (
        {"input": [{"role": "user", "content": [
            {"type": "input_file", "file_data": "data:application/pdf;base64,YQ=="}]}]},
        (415, "media_unsupported", "input[0].content[0]"),
    ),
    "a schema without a name": (
        {"text": {"format": {"type": "json_schema", "schema": {}}}},
        (400, "invalid_request", "text.format.name"),
    ),
    "a schema that is none": (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": 3}}}},
        (400, "invalid_request", "text.format.schema"),
    ),
    "a choice among no tools": (
        {"tool_choice": {"type": "function", "name": "f"}},
        (400, "invalid_request", "tool_choice"),
    ),
    "a call without arguments": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
        (400, "invalid_request", "input[0].arguments"),
    ),
    "an item that is only referred to": (
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        (400, "invalid_request", "input[0]"),
    ),
    "an unknown model": ({"model": "gpt-9"}, (404, "model_not_found", "model")),
    "no token": ({"max_output_tokens": 0}, (400, "invalid_request", "max_output_tokens")),
    "truncation": ({"truncation": "auto"}, (400, "invalid_request", "truncation")),
    "a conversation": ({"conversation": "c"}, (400, "invalid_request", "conversation")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_bad_input_is_refused_at_its_place(http: httpx.AsyncClient, name: str):
    asked, expected = REFUSED[name]

    answer = await http.post("/v1/responses", json={"input": "q"} | asked)

    assert await refusal(answer) == expected


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"starting_after": 3}, "starting_after"),
        ({"stream": True, "starting_after": -1}, "starting_after"),
        ({"stream": True, "include_obfuscation": True}, "include_obfuscation"),
        ({"include[]": "everything"}, "include[]"),
    ],
)
async def test_a_bad_query_is_refused(http: httpx.AsyncClient, query: dict[str, Any], param: str):
    made = await post(http)

    answer = await http.get(f"/v1/responses/{made['id']}", params=query)

    status, code, _ = await refusal(answer)
    assert (status, code) == (400, "invalid_request")
    assert param.removesuffix("[]") in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", [{"after": "msg_x"}, {"limit": 0}, {"limit": 101}, {"order": "x"}]
)
async def test_a_bad_page_is_refused(http: httpx.AsyncClient, query: dict[str, Any]):
    made = await post(http)

    answer = await http.get(f"/v1/responses/{made['id']}/input_items", params=query)

    assert await refusal(answer) == (400, "invalid_request", next(iter(query)))
