"""Options that hang together: what is asked, what is not, and what is refused where."""

from typing import Any

import pytest
from pydantic import ValidationError

from worker.contract import forms
from worker.contract.body import JobBody
from worker.contract.errors import InvalidRequest, TextTooLarge
from worker.contract.job import ChatRequest, Message
from worker.contract.options import (
    MAX_LOGPROBS,
    MAX_SCHEMA_BYTES,
    MAX_TOOLS_BYTES,
    read_options,
)
from worker.contract.settings import Settings

LIMITS = Settings(_env_file=None, FOREBAY_MAX_TEXT_BYTES=1000)


def tool(name: str = "add", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | more}


def json_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | more}


def options(**asked: Any) -> dict[str, Any]:
    return read_options(JobBody.model_validate({"query": "q"} | asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": False},
        {"logprobs": False, "top_logprobs": 0},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"tools": [tool()], "tool_choice": "none"},
        {"parallel_tool_calls": False},
    ],
)
def test_what_asks_for_nothing_is_no_option(asked: dict[str, Any]):
    assert options(**asked) == {}


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 20, "max_tokens": 5},
        {"response_format": {"type": "json_object"}},
        {"response_format": json_format({"type": "object"}, strict=True, description="d")},
        {"tools": [tool(description="d", parameters={"type": "object"}, strict=True), tool("b")]},
        {"tools": [tool()], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [tool(), tool("b")], "tool_choice": tool("b")},
    ],
)
def test_what_is_asked_for_stays_as_it_was_written(asked: dict[str, Any]):
    assert options(**asked) == asked


REFUSED = {
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs", "needs logprobs: true"),
    "too many logprobs": (
        {"logprobs": True, "top_logprobs": 20, "max_tokens": MAX_LOGPROBS // 20},
        "top_logprobs",
        f"the limit is {MAX_LOGPROBS}",
    ),
    "too many tokens with logprobs": (
        {"logprobs": True, "max_tokens": MAX_LOGPROBS + 1},
        "max_tokens",
        f"the limit is {MAX_LOGPROBS}",
    ),
    "a schema that is none": (
        {"response_format": json_format({"properties": {"a": {"type": "strin"}}})},
        "response_format.json_schema.schema",
        '"strin" is not valid',
    ),
    "a schema over the limit": (
        {"response_format": json_format({"enum": ["x" * MAX_SCHEMA_BYTES]})},
        "response_format.json_schema.schema",
        f"the limit is {MAX_SCHEMA_BYTES}",
    ),
    "a reference that leads outside": (
        {"response_format": json_format({"items": {"$ref": "http://10.0.0.1/"}})},
        "response_format.json_schema.schema",
        "only point into the schema itself",
    ),
    "parameters that are no schema": (
        {"tools": [tool(), tool("b", parameters={"required": "a"})]},
        "tools[1].function.parameters",
        "no JSON schema",
    ),
    "two functions of one name": (
        {"tools": [tool(), tool("b"), tool()]},
        "tools[2].function.name",
        "two functions are called add",
    ),
    "tools over the limit": (
        {"tools": [tool(f"f{n}", description="x" * 16_000) for n in range(9)]},
        "tools",
        f"the limit is {MAX_TOOLS_BYTES}",
    ),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    "a choice that is not offered": (
        {"tools": [tool()], "tool_choice": tool("sub")},
        "tool_choice",
        "names sub; the tools are add",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_with_place_and_reason(case: str):
    asked, param, reason = REFUSED[case]

    with pytest.raises(InvalidRequest) as caught:
        options(**asked)

    assert caught.value.param == param
    assert reason in caught.value.message


def test_a_schema_that_a_schema_names_as_its_own_is_not_fetched():
    asked = json_format({"$schema": "http://127.0.0.1:9/none", "type": "object"})

    assert options(response_format=asked) == {"response_format": asked}


NESTED: dict[str, Any] = {}
for _ in range(200):
    NESTED = {"not": NESTED}

SHAPES = [
    {"response_format": {"type": "xml"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "text", "json_schema": {"name": "n"}}},
    {"response_format": json_format({}) | {"more": 1}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "no spaces"}}},
    {"response_format": json_format([])},
    {"response_format": json_format(NESTED)},
    {"tools": [tool("no spaces")]},
    {"tools": [tool("x" * 65)]},
    {"tools": [tool(f"f{n}") for n in range(129)]},
    {"tools": [{"type": "custom", "custom": {"name": "c"}}]},
    {"tools": [tool()], "tool_choice": "always"},
    {"tools": [tool()], "tool_choice": {"type": "function"}},
]


@pytest.mark.parametrize("asked", SHAPES)
def test_what_has_another_shape_is_refused(asked: dict[str, Any]):
    with pytest.raises(ValidationError):
        options(**asked)


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL | {"index": 0}]},
    {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "4"},
]


def test_calls_and_their_results_are_part_of_the_question():
    body = JobBody.model_validate({"messages": TALK})

    request = forms.to_request(body, "m", forms.parse(body, LIMITS), ())

    assert request.messages[1:] == (
        Message("assistant", (), tool_calls=(CALL,)),
        Message("tool", ("4",), tool_call_id="call_1", name="add"),
    )
    assert ChatRequest.from_dict(request.as_dict()) == request


def test_a_record_of_an_older_version_has_turns_without_calls():
    old = ChatRequest("m", ()).as_dict() | {"messages": [{"role": "user", "parts": ["q"]}]}

    assert ChatRequest.from_dict(old).messages == (Message("user", ("q",)),)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "user", "content": None},
        {"role": "tool", "content": "4"},
        {"role": "user", "content": "q", "tool_call_id": "call_1"},
        {"role": "user", "content": "q", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL | {"function": {"name": "a"}}]},
        {"role": "assistant", "content": "", "tool_calls": [CALL] * 129},
    ],
)
def test_a_message_that_does_not_fit_its_role_is_refused(message: dict[str, Any]):
    with pytest.raises(ValidationError):
        JobBody.model_validate({"messages": [message]})


def test_arguments_of_calls_count_as_text():
    long = CALL | {"function": {"name": "add", "arguments": "x" * 1001}}
    talk = [TALK[0], TALK[1] | {"tool_calls": [long]}, TALK[2]]

    with pytest.raises(TextTooLarge, match="the limit is 1000"):
        forms.parse(JobBody.model_validate({"messages": talk}), LIMITS)
