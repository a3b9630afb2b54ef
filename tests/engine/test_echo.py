"""What only the echo engine does: what its prompts tell it to."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prompts import answer_of, ask, picture
from worker.contract.errors import EngineFailed, OutOfMemory
from worker.engine.base import Clip, EngineOptions, Prompt, ToolCall, ToolUse, Turn
from worker.engine.echo import EchoEngine
from worker.engine.script import BURST_TOKENS, PICTURE_TOKENS, prompt_tokens, read_script


@pytest.fixture
async def echo() -> AsyncIterator[EchoEngine]:
    engine = EchoEngine(slots=2)
    await engine.start()
    yield engine
    await engine.close()


async def test_the_last_user_text_comes_back_word_by_word(echo: EchoEngine):
    answer = await answer_of(echo, ask("图片中 how  many\nsheep? "))

    words = ["图", "片", "中", " how", "  many", "\nsheep?", " ", ""]
    assert [delta.text for delta in answer.deltas] == words
    assert answer.token_ids == (1, 2, 3, 4, 5, 6, 7)
    assert answer.finish_reason == "stop"


@given(st.text())
def test_words_join_to_exactly_the_text(text: str):
    script = read_script((Turn("user", (text.replace("[", ""),)),))

    assert script.text(0, script.length) == text.replace("[", "")


async def test_the_answer_is_to_the_last_user_turn(echo: EchoEngine):
    turns = (Turn("user", ("one",)), Turn("assistant", ("two",)), Turn("user", ("three", " four")))
    prompt = Prompt("p", turns, EngineOptions(max_tokens=9))

    answer = await answer_of(echo, prompt)

    assert answer.text == "three four"


async def test_counted_tokens_come_in_bursts_without_a_rate(echo: EchoEngine):
    answer = await answer_of(echo, ask("[[tokens=100 rate=0]]", max_tokens=200))

    assert answer.text == " ".join(f"tok{n}" for n in range(1, 101))
    assert answer.token_ids == tuple(range(1, 101))
    assert [len(delta.token_ids) for delta in answer.deltas] == [*[BURST_TOKENS] * 3, 4, 0]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("text", ["[[tokens=10 rate=100]]", "[[rate=100]]一二三四五六七八九十"])
async def test_a_rate_is_tokens_per_second(echo: EchoEngine, text: str):
    began = time.monotonic()

    answer = await answer_of(echo, ask(text))

    assert time.monotonic() - began > 0.09  # no upper bound: machines may be slow, rates not high
    assert len(answer.token_ids) == 10


@pytest.mark.parametrize(("command", "error"), [("fail", EngineFailed), ("oom", OutOfMemory)])
async def test_errors_come_after_the_tokens_that_were_asked_for(
    echo: EchoEngine, command: str, error: type[Exception]
):
    deltas = echo.generate(ask(f"[[tokens=2]] [[{command}]]"))

    assert (await anext(deltas)).text == "tok1 tok2"
    with pytest.raises(error, match=command):
        await anext(deltas)


async def test_hang_never_answers_and_can_be_left(echo: EchoEngine):
    deltas = echo.generate(ask("[[hang]]"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(deltas), timeout=0.05)

    assert (await answer_of(echo, ask("free"))).text == "free"


async def test_media_are_described_in_their_order(echo: EchoEngine):
    first, frames = picture(30, 20), (picture(8, 6, 1), picture(8, 6, 2))
    clip = Clip(frames, (0.25, 0.75), "c" * 64)

    answer = await answer_of(echo, ask(first, "[[media]] and words", clip))

    assert json.loads(answer.text) == [
        {"kind": "image", "width": 30, "height": 20, "sha256": first.sha256},
        {
            "kind": "video",
            "frames": 2,
            "times_s": [0.25, 0.75],
            "width": 8,
            "height": 6,
            "sha256": "c" * 64,
        },
    ]


def test_a_picture_counts_as_many_tokens_and_a_word_as_one():
    clip = Clip((picture(), picture()), (0.0, 1.0), "sha")

    assert prompt_tokens((Turn("user", ("two words", clip, picture())),)) == 2 + 3 * PICTURE_TOKENS


async def test_brackets_that_are_no_command_are_text(echo: EchoEngine):
    answer = await answer_of(echo, ask("[[what]] [[tokens=x]]"))

    assert answer.text == "[[what]] [[tokens=x]]"


async def test_a_text_that_is_over_stops_although_max_tokens_is_reached_with_it(echo: EchoEngine):
    answer = await answer_of(echo, ask("one two", max_tokens=2))

    assert (answer.text, answer.finish_reason) == ("one two", "stop")


TOOLS = ToolUse(({"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},))


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ('hm [[tool=add {"a": 1}]]', "hm", (("add", '{"a": 1}'),)),
        ("[[tool=add]]", "", (("add", "{}"),)),
        ('[[tool=add {"a": [[1]]}]][[tool=add {}]]', "", (("add", '{"a": [[1]]}'), ("add", "{}"))),
        ("[[tool=rm {}]]", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', ()),
        ("[[tool=add {1}]]", '<tool_call>{"name": "add", "arguments": {1}}</tool_call>', ()),
    ],
)
async def test_a_scripted_call_is_made_where_the_function_was_offered(
    echo: EchoEngine, text: str, said: str, calls: tuple[tuple[str, str], ...]
):
    answer = await answer_of(echo, ask(text, tools=TOOLS))

    assert answer.text == said
    assert answer.tool_calls == tuple(ToolCall(*call) for call in calls)
    assert answer.finish_reason == ("tool_calls" if calls else "stop")


async def test_a_demanded_call_that_is_not_scripted_is_an_example(echo: EchoEngine):
    answer = await answer_of(echo, ask("what is 1 + 1?", tools=replace(TOOLS, must_call=True)))

    assert answer.tool_calls == (ToolCall("add", '{"a": 0}'),)


async def test_a_scripted_thought_comes_before_the_answer(echo: EchoEngine):
    answer = await answer_of(echo, ask("[[think=so many sheep]]four"))

    assert (answer.reasoning, answer.text) == ("so many sheep", "four")


@pytest.mark.parametrize(
    ("text", "schema", "said"),
    [
        ('{"a": 1}', {"type": "object"}, '{"a": 1}'),
        ("四只", {"type": "object"}, '{"text": "四只"}'),
        ("5", {"type": "object"}, '{"text": "5"}'),
        ("5", {"type": "integer"}, "5"),
        ("四只", {"properties": {"n": {"type": "integer", "minimum": 3}}}, '{"n": 3}'),
        ("[[tokens=3]]", {"type": "boolean"}, "false"),
    ],
)
async def test_where_json_is_asked_for_the_answer_is_json(
    echo: EchoEngine, text: str, schema: dict[str, Any], said: str
):
    answer = await answer_of(echo, ask(text, json_schema=schema, ignore_eos=True))

    assert (answer.text, answer.finish_reason) == (said, "stop")
