"""What a request becomes for an engine: options, turns, and an estimate of its size."""

import dataclasses
from typing import Any

import pytest

from tests.support.factories import question
from worker.chat import engine_options, estimate_tokens
from worker.engine.base import Clip, EngineOptions, Picture, Prompt, ToolUse, Turn

PLAIN = {
    "max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7,
    "stop": ["。"], "repetition_penalty": 1.1, "ignore_eos": True,
}  # fmt: skip


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def json_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def prompt(*parts: str | Picture | Clip, max_tokens: int = 0) -> Prompt:
    return Prompt("k", (Turn("user", parts),), EngineOptions(max_tokens=max_tokens))


def picture(width: int, height: int) -> Picture:
    return Picture(b"", width, height, "0" * 64)


def test_every_plain_option_reaches_the_engine_under_its_own_name():
    options = engine_options(question(options=PLAIN), 256)

    assert {name: getattr(options, name) for name in PLAIN} == PLAIN | {"stop": ("。",)}
    assert (options.top_logprobs, options.json_schema, options.tools) == (None, None, None)


def test_what_is_not_said_is_left_to_the_model_but_the_length():
    options = engine_options(question(), 256)

    assert options == EngineOptions(max_tokens=256)


@pytest.mark.parametrize(
    ("asked", "top"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
def test_logprobs_are_told_with_as_many_likely_tokens_as_were_asked_for(
    asked: dict[str, Any], top: int | None
):
    assert engine_options(question(options=asked), 256).top_logprobs == top


def test_any_json_object_is_a_schema_as_well():
    schema = {"type": "object", "required": ["n"]}

    free = engine_options(question(options={"response_format": {"type": "json_object"}}), 256)
    strict = engine_options(question(options={"response_format": json_format(schema)}), 256)

    assert free.json_schema == {"type": "object"}
    assert strict.json_schema == schema


@pytest.mark.parametrize(
    ("choice", "use"),
    [
        ({}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "required"}, {"must_call": True}),
        ({"tool_choice": tool("add")}, {"must_call": True, "only": "add", "max_calls": 1}),
        ({"parallel_tool_calls": False}, {"max_calls": 1}),
        ({"parallel_tool_calls": True}, {}),
    ],
)
def test_a_tool_choice_says_what_must_and_what_may_be_called(
    choice: dict[str, Any], use: dict[str, Any]
):
    asked = {"tools": [tool("add"), tool("sub")]} | choice

    options = engine_options(question(options=asked), 256)

    assert options.tools == ToolUse(({"name": "add"}, {"name": "sub"}), **use)


def test_every_option_of_the_protocol_can_be_asked_for():
    fields = {field.name for field in dataclasses.fields(EngineOptions)}

    assert fields == PLAIN.keys() | {"top_logprobs", "json_schema", "tools"}


def test_tools_count_into_the_estimate():
    options = EngineOptions(max_tokens=0, tools=ToolUse(({"name": "add", "about": "x" * 300},)))

    assert estimate_tokens(Prompt("k", (), options)) >= 100


def test_the_estimate_grows_with_texts_pictures_frames_and_the_answer():
    text = estimate_tokens(prompt("四" * 30))

    assert 30 <= text <= 35
    assert estimate_tokens(prompt("四" * 30, max_tokens=100)) == text + 100
    assert estimate_tokens(prompt(picture(280, 280))) >= 100
    frames = tuple(picture(280, 280) for _ in range(8))
    assert estimate_tokens(prompt(Clip(frames, (0.0,) * 8, "0" * 64))) >= 800
