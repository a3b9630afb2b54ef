"""The Response object of a job in every state, against the types of the `openai` client."""

from typing import Any, get_args

import pytest
from openai.types.responses import Response, ResponseError, ResponseItemList

from tests.support.openai_types import check
from tests.support.responses import SPEC, job, spec
from worker.contract import errors
from worker.contract.job import ChatRequest, JobStatus, MediaRef, Message
from worker.contract.responses import event_type, job_id, response_id, status_of, view

JOB_ID = "job_" + "0a" * 16
OPTIONAL = {
    "access_programs", "image", "input_transformations", "moderation", "prompt_cache_diagnostics",
    "prompt_cache_options", "prompt_cache_retention", "tool_usage",
}  # fmt: skip
"""What the types have and OpenAI's own answers leave out where nobody asked for it."""


def shown(status: str, text: str = "", **more: Any) -> dict[str, Any]:
    return view.response(job(JOB_ID, status, text, **more), SPEC)


@pytest.mark.parametrize("status", JobStatus)
def test_every_state_is_of_the_clients_type_with_all_its_fields(status: str):
    response = shown(status, "四只")

    check(response, Response)
    assert set(Response.model_fields) - OPTIONAL <= set(response)


STATES = [
    ("queued", None, "queued"),
    ("in_progress", None, "in_progress"),
    ("completed", "stop", "completed"),
    ("completed", "length", "incomplete"),
    ("failed", None, "failed"),
    ("cancelled", None, "cancelled"),
    ("expired", None, "failed"),
]


@pytest.mark.parametrize(("status", "reason", "expected"), STATES)
def test_states_have_openais_names(status: str, reason: str | None, expected: str):
    assert status_of(JobStatus(status), reason) == expected
    assert event_type(expected) == f"response.{expected}"


def test_an_answer_that_was_cut_says_why():
    response = shown("completed", "四", finish_reason="length")

    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"


def test_a_whole_answer_has_its_counts():
    response = shown("completed", "四只")

    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 9,
    }
    assert (response["created_at"], response["completed_at"]) == (1, 9)
    assert (response["error"], response["incomplete_details"]) == (None, None)


def test_an_answer_under_way_is_shown_as_far_as_it_is():
    output = shown("in_progress", "四")["output"]

    assert [(item["status"], item["content"][0]["text"]) for item in output] == [
        ("in_progress", "四")
    ]


CODES = sorted(
    kind.code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.JobError)
)


@pytest.mark.parametrize("code", CODES)
def test_every_error_has_a_code_that_the_client_knows_and_ours(code: str):
    error = shown("failed", code=code)["error"]

    check(error, ResponseError)
    assert error["code"] in get_args(ResponseError.model_fields["code"].annotation)
    assert (error["type"], error["message"]) == (code, "no")


def test_what_was_asked_is_repeated():
    asked = spec(
        background=True, instructions="be brief", max_output_tokens=9, temperature=0.5, top_p=0.9,
        previous_response_id="resp_x", metadata={"k": "v"}, user="u", prompt_cache_key="c",
        tools=[{"type": "function", "name": "f", "parameters": None, "strict": None}],
        tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False, top_logprobs=3,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    )  # fmt: skip

    response = view.response(job(JOB_ID, "completed"), asked)

    check(response, Response)
    assert response["text"]["format"] == {
        "type": "json_schema", "name": "n", "schema": {"type": "object"},
    }  # fmt: skip
    assert response["tools"] == [{
        "type": "function", "name": "f", "description": None, "parameters": None, "strict": None,
    }]  # fmt: skip
    for name, value in {
        "background": True, "instructions": "be brief", "max_output_tokens": 9, "temperature": 0.5,
        "top_p": 0.9, "previous_response_id": "resp_x", "metadata": {"k": "v"}, "user": "u",
        "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False,
        "top_logprobs": 3, "prompt_cache_key": "c",
    }.items():  # fmt: skip
        assert response[name] == value, name


@pytest.mark.parametrize("strange", ["resp_", "resp_" + "0A" * 16, "job_" + "0a" * 16, "", "x\n"])
def test_only_our_ids_are_ids(strange: str):
    assert job_id(strange) is None
    assert job_id(response_id(JOB_ID)) == JOB_ID


def test_input_items_say_what_went_in_and_where_it_was():
    asked = spec(input=[{"role": "user", "content": [
        {"type": "input_image", "image_url": "https://host/a.png"},
        {"type": "input_image", "file_id": "file_1"},
        {"type": "input_text", "text": "q"}]}])  # fmt: skip
    media = (
        MediaRef("image", "x", url="https://host/a.png"),
        MediaRef("image", "y", object_key="uploads/default/file_1"),
    )
    request = ChatRequest("echo", (Message("user", (0, 1, "q")),), media)

    (item,) = view.input_items(JOB_ID, request, asked)

    assert item["id"] == f"msg_{'0a' * 16}_0"
    assert item["content"] == [
        {"type": "input_image", "image_url": "https://host/a.png", "file_id": None,
         "detail": "auto"},
        {"type": "input_image", "image_url": None, "file_id": "file_1", "detail": "auto"},
        {"type": "input_text", "text": "q"},
    ]  # fmt: skip


def test_earlier_items_keep_their_names_and_own_ones_are_counted_from_0():
    asked = spec(input=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    asked.envelope["items"].insert(0, {"id": "msg_earlier", "role": "user"})
    turns = tuple(Message("user", (text,)) for text in ("q", "a", "b"))

    items = view.input_items(JOB_ID, ChatRequest("echo", turns), asked)

    own = "msg_" + "0a" * 16
    assert [item["id"] for item in items] == ["msg_earlier", f"{own}_0", f"{own}_1"]


ITEMS = [
    {"id": f"msg_{n}", "type": "message", "role": "user", "status": "completed", "content": []}
    for n in range(5)
]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 5, 9])
def test_pages_piece_the_list_together(limit: int, newest_first: bool):
    def page_after(item_id: str | None) -> dict[str, Any]:
        page = view.page(ITEMS, after=item_id, limit=limit, newest_first=newest_first)
        check(page, ResponseItemList)
        assert page is not None
        return page

    pages = [page_after(None)]
    while pages[-1]["has_more"]:
        pages.append(page_after(pages[-1]["last_id"]))

    seen = [item for page in pages for item in page["data"]]
    assert seen == (ITEMS[::-1] if newest_first else ITEMS)


def test_a_page_after_no_item_is_none():
    assert view.page(ITEMS, after="msg_9", limit=2, newest_first=True) is None
