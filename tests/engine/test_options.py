"""What an answer must look like and what is told of its tokens: the same for every engine."""

import json
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from tests.support.prompts import Answer, answer_of, ask
from worker.contract.errors import InvalidRequest
from worker.engine.base import Engine, EngineOptions, ModelCard, Prompt, ToolCall, ToolUse, Turn

QUESTION = "图片中有几只羊？ How many sheep are there? 🐑"
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "seed": 7}
UNSEEDED = {"temperature": 1.0}
SAMPLED = pytest.mark.parametrize(
    "options", [GREEDY, SEEDED, UNSEEDED], ids=["greedy", "seeded", "no seed"]
)
SHEEP = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "animal": {"enum": ["sheep", "羊"]},
        "sure": {"type": "boolean"},
    },
    "required": ["count", "animal", "sure"],
    "additionalProperties": False,
}
COUNT = {"name": "count", "description": "Counts.", "parameters": SHEEP}
NAME = {"name": "name_it"}
CUTS = 5


@pytest.fixture(autouse=True)
def needs(request: pytest.FixtureRequest, card: ModelCard) -> None:
    """Skip what an engine says that it cannot do."""
    for mark in request.node.iter_markers("needs"):
        if not set(mark.args) <= card.options:
            pytest.skip(f"{card.engine} does not take {mark.args}")


async def goes_on_anywhere(engine: Engine, *parts: Any, **options: Any) -> Answer:
    """Return a prompt's answer, after a cut at some of its deltas led to the same one."""
    whole = await answer_of(engine, ask(*parts, **options))
    for cut in range(0, len(whole.deltas), len(whole.deltas) // CUTS + 1):
        start = Answer(whole.deltas[:cut])
        rest = await answer_of(engine, ask(*parts, after=start, **options))

        assert start.text + rest.text == whole.text
        assert start.tool_calls + rest.tool_calls == whole.tool_calls
        assert start.token_ids + rest.token_ids == whole.token_ids
        assert rest.finish_reason == whole.finish_reason
    return whole


@pytest.mark.needs("logprobs")
@pytest.mark.parametrize("top", [0, 1, 5])
async def test_every_token_has_its_logprob_and_the_likeliest_beside_it(engine: Engine, top: int):
    asked = ask(QUESTION, max_tokens=24, top_logprobs=top, ignore_eos=True, **GREEDY)

    answer = await answer_of(engine, asked)

    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in answer.deltas)
    spelled = b"".join(entry.data for entry in answer.logprobs).decode(errors="replace")
    assert spelled.rstrip("\ufffd") == answer.text
    assert all(entry.logprob <= 0 and len(entry.top) == top for entry in answer.logprobs)
    for entry in answer.logprobs:
        values = [other.logprob for other in entry.top]
        assert values == sorted(values, reverse=True)
        assert not entry.top or entry.top[0].data == entry.data  # greedy: the likeliest is chosen


@pytest.mark.needs("logprobs")
async def test_nothing_is_told_of_tokens_where_nobody_asked(engine: Engine):
    answer = await answer_of(engine, ask(QUESTION, max_tokens=4))

    assert answer.logprobs == ()


@pytest.mark.needs("logprobs")
async def test_logprobs_go_on_after_a_take_over(engine: Engine):
    options = {"max_tokens": 12, "top_logprobs": 2, "ignore_eos": True} | SEEDED
    whole = await answer_of(engine, ask(QUESTION, **options))

    start = Answer(whole.deltas[:5])
    rest = await answer_of(engine, ask(QUESTION, after=start, **options))

    again = [entry.logprob for entry in (*start.logprobs, *rest.logprobs)]
    assert again == pytest.approx([entry.logprob for entry in whole.logprobs], abs=1e-4)


@pytest.mark.needs("response_format")
@SAMPLED
async def test_an_answer_by_a_schema_fits_it_and_goes_on_anywhere(
    engine: Engine, options: dict[str, Any]
):
    answer = await goes_on_anywhere(
        engine, QUESTION, max_tokens=400, json_schema=SHEEP, ignore_eos=True, **options
    )

    Draft202012Validator(SHEEP).validate(json.loads(answer.text))
    assert answer.finish_reason == "stop"


@pytest.mark.needs("response_format")
async def test_any_json_object_begins_as_one(engine: Engine):
    options = {"max_tokens": 300, "json_schema": {"type": "object"}} | SEEDED

    answer = await answer_of(engine, ask("{} [1]", **options))

    assert answer.text.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)


@pytest.mark.needs("tools")
@SAMPLED
async def test_a_demanded_call_is_made_and_goes_on_anywhere(
    engine: Engine, options: dict[str, Any]
):
    use = ToolUse((COUNT, NAME), must_call=True, max_calls=1)

    answer = await goes_on_anywhere(engine, QUESTION, max_tokens=400, tools=use, **options)

    (call,) = answer.tool_calls
    parameters = {"count": SHEEP, "name_it": {"maxProperties": 0}}[call.name]
    Draft202012Validator(parameters).validate(json.loads(call.arguments))
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")


@pytest.mark.needs("tools")
@pytest.mark.parametrize("function", [COUNT, NAME], ids=["first", "second"])
async def test_a_named_function_is_the_one_that_is_called(engine: Engine, function: dict[str, Any]):
    use = ToolUse((COUNT, NAME), must_call=True, only=function["name"], max_calls=1)

    answer = await answer_of(engine, ask(QUESTION, max_tokens=400, tools=use, **SEEDED))

    assert [call.name for call in answer.tool_calls] == [function["name"]]


@pytest.mark.needs("tools")
async def test_offered_tools_and_earlier_calls_are_part_of_the_prompt(
    engine: Engine, card: ModelCard
):
    if card.engine == "echo":
        pytest.skip("the echo engine has no template")
    options = EngineOptions(max_tokens=1)
    call, result = ToolCall("count", '{"count": 4}'), "4 <|im_end|>"
    turns = (Turn("user", (QUESTION,)), Turn("assistant", ()), Turn("tool", (result,)))
    called = (turns[0], Turn("assistant", (), (call,)), Turn("tool", (result,), (), "id", "count"))

    plain = await answer_of(engine, Prompt("plain", turns, options))
    spoken = await answer_of(engine, Prompt("spoken", called, options))
    offered = EngineOptions(max_tokens=1, tools=ToolUse((COUNT,)))
    known = await answer_of(engine, Prompt("known", called, offered))

    assert plain.prompt_tokens < spoken.prompt_tokens < known.prompt_tokens


@pytest.mark.needs("response_format")
async def test_a_schema_that_nothing_fits_fails_its_own_prompt_with_its_place(
    engine: Engine, card: ModelCard
):
    if card.engine == "echo":
        pytest.skip("the echo engine has no grammar")

    with pytest.raises(InvalidRequest) as caught:
        await answer_of(engine, ask("q", json_schema={"not": {}}))

    assert caught.value.param == "response_format"
    assert (await answer_of(engine, ask("q", max_tokens=2, ignore_eos=True))).token_ids
