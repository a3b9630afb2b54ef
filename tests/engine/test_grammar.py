"""Schemas, tools and reasoning in the transformers engine: what only it has to get right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.prompts import Answer, answer_of, ask
from worker.contract.errors import InvalidRequest, OptionUnsupported
from worker.engine import EngineSpec, load_engine
from worker.engine.base import EngineOptions, ToolUse

pytest.importorskip("torch", reason="the extra `cpu` is not installed")

import torch
from transformers import AutoTokenizer

from tests.support.tiny_model import write_tiny_model
from worker.engine.alphabet import Alphabet
from worker.engine.transformers.constraint import Constraint
from worker.engine.transformers.grammar import grammar_of
from worker.engine.transformers.template import knows_reasoning, knows_tools

NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"name": "add", "parameters": NUMBER | {"additionalProperties": False}}
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
BAD_CALL = '<tool_call>\n{"name": "add", "arguments": {"b": 1}}\n</tool_call>'


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def alphabet(tokenizer: Any) -> Alphabet:
    made = Alphabet.of(tokenizer, frozenset({tokenizer.eos_token_id}))
    assert made is not None
    return made


@pytest.fixture
def fits(alphabet: Alphabet, tokenizer: Any) -> Callable[..., bool]:
    """Return what says whether a text is a whole answer by some options."""

    def fits(text: str, options: EngineOptions, **how: bool) -> bool:
        grammar = grammar_of(options, **({"reasons": False, "is_thinking": False} | how))
        assert grammar is not None
        constraint = Constraint(alphabet, grammar, "tools")
        try:
            for token_id in tokenizer.encode(text):
                constraint.take(token_id)
        except InvalidRequest:
            return False
        scores = torch.zeros((1, alphabet.size + 5))
        allowed = constraint(torch.zeros((1, 0)), scores).isfinite()[0]
        assert not allowed[alphabet.size :].any()  # scores of no token at all
        return bool(allowed[tokenizer.eos_token_id])

    return fits


def options(**asked: Any) -> EngineOptions:
    return EngineOptions(max_tokens=9, **asked)


@pytest.mark.parametrize(
    ("text", "is_fit"),
    [
        ('{"a": 1}', True),
        ('{\n  "a": 1\n}', True),
        ('{"a": "x"}', False),
        ('{"a": 1', False),
        ('{"a":' + " " * 40 + "1}", False),
    ],
)
def test_an_answer_by_a_schema(fits: Callable[..., bool], text: str, is_fit: bool):
    assert fits(text, options(json_schema=NUMBER)) is is_fit


@pytest.mark.parametrize(
    ("use", "text", "is_fit"),
    [
        ({"must_call": True}, CALLED, True),
        ({"must_call": True}, f"{CALLED}\n{CALLED}", True),
        ({"must_call": True}, "no", False),
        ({"must_call": True}, BAD_CALL, False),
        ({"must_call": True, "max_calls": 1}, f"{CALLED}\n{CALLED}", False),
        ({"must_call": True, "only": "sub"}, CALLED, False),
        ({"must_call": True, "only": "add"}, CALLED, True),
    ],
)
def test_a_demanded_call(fits: Callable[..., bool], use: dict[str, Any], text: str, is_fit: bool):
    tools = ToolUse((ADD, {"name": "sub"}), **use)

    assert fits(text, options(tools=tools)) is is_fit


@pytest.mark.parametrize(
    ("text", "is_fit"),
    [
        ("no call", True),
        (f"so {CALLED} done", True),
        (f"so {BAD_CALL}", False),
        ("<tool_call>", False),
    ],
)
def test_text_is_free_and_calls_of_strict_functions_are_not(
    fits: Callable[..., bool], text: str, is_fit: bool
):
    assert fits(text, options(tools=ToolUse((ADD | {"strict": True},)))) is is_fit


def test_without_strict_functions_nothing_is_constrained():
    assert grammar_of(options(tools=ToolUse((ADD,))), reasons=True, is_thinking=True) is None


@pytest.mark.parametrize("text", ['{"a": 1}', CALLED])
def test_an_answer_is_json_or_a_call_where_both_are_possible(fits: Callable[..., bool], text: str):
    asked = options(json_schema=NUMBER, tools=ToolUse((ADD,)))

    assert fits(text, asked)
    assert not fits("neither", asked)


@pytest.mark.parametrize(
    ("text", "how", "is_fit"),
    [
        ('hm {"b"} </think>\n\n{"a": 1}', {"is_thinking": True}, True),
        ('{"a": 1}', {"is_thinking": True}, False),
        ('<think>hm</think>{"a": 1}', {"reasons": True}, True),
        ('{"a": 1}', {"reasons": True}, True),
        ("hm", {"reasons": True}, False),
    ],
)
def test_reasoning_is_never_constrained(
    fits: Callable[..., bool], text: str, how: dict[str, bool], is_fit: bool
):
    assert fits(text, options(json_schema=NUMBER), **how) is is_fit


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "nested repeats": {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    "a thousand conditions": {"type": "string", "pattern": "^(.*a.*|.*b.*){50}$"},
    "a billion characters": {"type": "string", "minLength": 10**9},
    "a million items": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    "many words": {"enum": [f"{n:05}" * 2 for n in range(4000)]},
    "many members": {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": f".*{n}.*"} for n in range(800)},
    },
    "many alternatives": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {"type": "null"}}} for i in range(10)]}
            for j in range(10)
        ]
    },
    "deep": deep(60),
    "itself": {"$ref": "#"},
    "a number without end": {"type": "integer", "minimum": -(10**400), "maximum": 10**400},
    "a schema elsewhere": {"$ref": "http://127.0.0.1:9/schema"},
}


def begun(alphabet: Alphabet, grammar: str) -> InvalidRequest | None:
    """Begin an answer by a grammar; return what was against it."""
    try:
        constraint = Constraint(alphabet, grammar, "response_format")
        for _ in range(20):
            scores = constraint(torch.zeros((1, 0)), torch.zeros((1, alphabet.size)))
            constraint.take(int(scores.argmax()))
            if constraint.is_over:
                break
    except InvalidRequest as error:
        return error
    return None


@pytest.mark.timeout(20)  # hundredths of a second on an idle machine
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_schema_costs_little_and_ends_in_a_grammar_or_an_error(
    alphabet: Alphabet, case: str
):
    grammar = grammar_of(options(json_schema=HOSTILE[case]), reasons=False, is_thinking=False)

    refusal = begun(alphabet, str(grammar))

    assert refusal is None or refusal.param == "response_format"
    assert len(str(refusal)) < 400


HERMES = "{% if tools %}{{ tools }}<tool_call>{% endif %}"


@pytest.mark.parametrize(
    ("template", "specials", "known"),
    [
        (HERMES, set(), True),
        ("{{ messages }}", set(), False),
        ("{{ tools }}[TOOL_CALLS]", set(), False),
        ("{{ tools }}<tool_call><function=", set(), False),
        ("{{ toolshed }}<tool_call>", set(), False),
        (HERMES, {"<tool_call>"}, False),
    ],
)
def test_tools_are_taken_where_the_template_offers_them_in_a_form_that_is_read(
    template: str, specials: set[str], known: bool
):
    assert knows_tools(template, frozenset(specials)) is known


def test_reasoning_is_told_apart_where_the_template_knows_it():
    assert knows_reasoning("…</think>…", frozenset())
    assert not knows_reasoning("…", frozenset())
    assert not knows_reasoning("…</think>…", frozenset({"</think>"}))


async def test_a_model_whose_template_knows_no_tools_refuses_them(tmp_path: Path):
    write_tiny_model(tmp_path, is_multimodal=False)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    engine = load_engine(EngineSpec(str(tmp_path), "transformers"))

    card = await engine.start()

    assert "tools" not in card.options
    assert {"logprobs", "response_format"} <= card.options
    with pytest.raises(OptionUnsupported, match="no tools"):
        await answer_of(engine, ask("q", tools=ToolUse((ADD,))))
    await engine.close()


async def test_reasoning_that_the_template_has_opened_is_told_apart_over_attempts(tmp_path: Path):
    write_tiny_model(tmp_path, is_multimodal=False)
    template = "{{ messages[0].content }}{# </think> #}<think>\n"
    (tmp_path / "chat_template.jinja").write_text(template)
    engine = load_engine(EngineSpec(str(tmp_path), "transformers"))
    await engine.start()
    asked = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True}

    whole = await answer_of(engine, ask("q", **asked))
    start = Answer(whole.deltas[:9])
    rest = await answer_of(engine, ask("q", after=start, **asked))

    assert (whole.text, len(whole.token_ids)) == ("", 20)
    assert whole.reasoning
    assert start.reasoning + rest.reasoning == whole.reasoning
    await engine.close()


async def test_the_demo_model_knows_no_tools_and_answers_by_a_schema():
    engine = load_engine(EngineSpec("demo", "transformers"))
    schema = {
        "type": "object",
        "properties": {"n": {"enum": ["四只", "两只"]}},
        "required": ["n"],
        "additionalProperties": False,
    }

    card = await engine.start()
    answer = await answer_of(engine, ask("你是谁？", max_tokens=64, json_schema=schema))

    assert "tools" not in card.options
    assert json.loads(answer.text)["n"] in {"四只", "两只"}
    await engine.close()


async def test_logprobs_are_the_models_own_whatever_the_sampling_and_the_grammar(tiny_model: Path):
    engine = load_engine(EngineSpec(str(tiny_model), "transformers"))
    await engine.start()
    asked = {"max_tokens": 1, "top_logprobs": 5, "seed": 3, "ignore_eos": True}

    plain = await answer_of(engine, ask("羊", temperature=0.0, **asked))
    wild = await answer_of(engine, ask("羊", temperature=2.0, repetition_penalty=5.0, **asked))
    bound = await answer_of(engine, ask("羊", json_schema=NUMBER, **asked))

    tops = [
        [(other.data, round(other.logprob, 3)) for other in answer.logprobs[0].top]
        for answer in (plain, wild, bound)
    ]
    assert tops[0] == tops[1] == tops[2]
    assert bound.logprobs[0].data == b"{"
    assert bound.logprobs[0].logprob < plain.logprobs[0].logprob
    await engine.close()
