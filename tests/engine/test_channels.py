"""Text, reasoning and calls are told apart, however the raw text is cut, over all attempts."""

from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.base import EngineOptions, Prompt, ToolCall, ToolUse
from worker.engine.channels import Channels, Words

ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
SUB = '<tool_call>{"name": "sub", "arguments": {"b": "羊"}}</tool_call>'
ADDED, SUBBED = ToolCall("add", '{"a": 1}'), ToolCall("sub", '{"b": "羊"}')


NOTHING = Words()


def prompt(after: Words = NOTHING, *, stop: tuple[str, ...] = (), **use: Any) -> Prompt:
    tools = ToolUse(({"name": "add"}, {"name": "sub"}), **use)
    return Prompt(
        "p", (), EngineOptions(9, stop=stop, tools=tools), emitted_text=after.text,
        emitted_reasoning=after.reasoning, emitted_calls=len(after.tool_calls),
    )  # fmt: skip


def spoken(channels: Channels, pieces: list[str]) -> list[Words]:
    return [*map(channels.push, pieces), channels.finish()]


def whole(raw: str, asked: Prompt | None = None, **how: bool) -> Words:
    return reduce(add, spoken(Channels(asked or prompt(), **how), [raw]))


TOLD = {
    "no call": ("How are\nyou? \n", Words("How are\nyou? \n")),
    "one call": (ADD, Words(tool_calls=(ADDED,))),
    "text and two calls": (
        f"Let me see.\n\n{ADD}\n{SUB}\n",
        Words("Let me see.", "", (ADDED, SUBBED)),
    ),
    "a bad call after text": ("a \n<tool_call>b", Words("a \n<tool_call>b")),
    "text between calls": (f"{ADD}\n so \n{SUB} done", Words("so done", "", (ADDED, SUBBED))),
    "a call whose end is missing": (ADD.removesuffix("</tool_call>"), Words("", "", (ADDED,))),
    "a call that was cut": (f"x {ADD[:40]}", Words(f"x {ADD[:40]}")),
    "no JSON": ("x <tool_call>{</tool_call> y", Words("x <tool_call>{</tool_call> y")),
    "no object": ("<tool_call>[1]</tool_call>", Words("<tool_call>[1]</tool_call>")),
    "no name": ('<tool_call>{"a": 1}</tool_call>', Words('<tool_call>{"a": 1}</tool_call>')),
    "a function nobody offered": (ADD.replace("add", "rm"), Words(ADD.replace("add", "rm"))),
    "arguments that are none": (
        ADD.replace('{"a": 1}', "3"),
        Words(ADD.replace('{"a": 1}', "3")),
    ),
    "half a surrogate pair": (
        ADD.replace("1", r'"\ud800"'),
        Words(ADD.replace("1", r'"\ud800"')),
    ),
    "no arguments": (
        '<tool_call>{"name": "add"}</tool_call>',
        Words("", "", (ToolCall("add", "{}"),)),
    ),
    "what only begins like a call": ("a < b <tool", Words("a < b <tool")),
}


@pytest.mark.parametrize("case", TOLD)
def test_an_answer_is_told_apart(case: str):
    raw, expected = TOLD[case]

    assert whole(raw) == expected


def test_without_tools_nothing_is_a_call():
    asked = Prompt("p", (), EngineOptions(9))

    assert whole(f" {ADD} ", asked) == Words(f" {ADD} ")


@pytest.mark.parametrize(
    ("raw", "how", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes ", {"reasons": True}, Words("yes ", "hm")),
        (" \n<think>hm", {"reasons": True}, Words("", "hm")),
        ("hm\n</think>yes", {"reasons": True, "is_thinking": True}, Words("yes", "hm")),
        ("yes <think>no", {"reasons": True}, Words("yes <think>no")),
        ("<think>hm</think>yes", {}, Words("<think>hm</think>yes")),
        ("<thin", {"reasons": True}, Words("<thin")),
        (f"<think>{ADD}</think>{SUB}", {"reasons": True}, Words("", ADD, (SUBBED,))),
    ],
)
def test_reasoning_is_told_apart_where_the_model_reasons(
    raw: str, how: dict[str, bool], expected: Words
):
    assert whole(raw, **how) == expected


def test_the_answer_ends_after_the_last_call_that_is_allowed():
    channels = Channels(prompt(max_calls=1))

    words = reduce(add, spoken(channels, [f"a {ADD} b {SUB}"]))

    assert words == Words("a", "", (ADDED,))
    assert channels.is_stopped
    assert (channels.reason("stop"), channels.reason("length")) == ("tool_calls", "length")


def test_a_stop_text_ends_calls_as_well():
    assert whole(f"a {ADD}!{SUB}", prompt(stop=("!",))) == Words("a", "", (ADDED,))


MARKS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    ADD,
    SUB,
    " ",
    "\n",
    "<",
    "</t",
    "羊",
]
RAW = st.lists(st.one_of(st.sampled_from(MARKS), st.text("ab<>/{}", max_size=4)), max_size=8)


@given(RAW, st.data(), st.booleans(), st.booleans())
def test_any_cut_and_any_take_over_tell_the_same(
    parts: list[str], data: st.DataObject, reasons: bool, is_thinking: bool
):
    raw = "".join(parts)
    how = {"reasons": reasons, "is_thinking": is_thinking}
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    words = spoken(Channels(prompt(), **how), pieces)

    assert reduce(add, words) == whole(raw, **how)
    for at in range(len(pieces) + 1):
        said = reduce(add, words[:at], NOTHING)
        again = spoken(Channels(prompt(said), **how), ["".join(pieces[:at]), *pieces[at:]])
        assert said + reduce(add, again) == reduce(add, words)
