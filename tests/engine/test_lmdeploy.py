"""What of the LMDeploy engine needs no GPU: names, options, answers, parcels, and reading."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.prompts import DEADLY, ask, decode, decode_or_die, picture
from worker.contract.errors import EngineDied, EngineFailed, OptionUnsupported
from worker.engine import EngineSpec, load_engine
from worker.engine.base import (
    Clip,
    Delta,
    EngineOptions,
    Prompt,
    TokenLogprob,
    ToolCall,
    ToolUse,
    Turn,
)
from worker.engine.lmdeploy import LmdeployEngine
from worker.engine.lmdeploy.answering import Answering, Sampled
from worker.engine.lmdeploy.capacity import token_bytes
from worker.engine.lmdeploy.engine import reason_of
from worker.engine.lmdeploy.grammar import response_format
from worker.engine.lmdeploy.models import hub_id
from worker.engine.lmdeploy.options import Defaults, generation, honoured, repeats
from worker.engine.lmdeploy.template import knows_tools

if TYPE_CHECKING:
    from worker.engine.lmdeploy.readers import Readers

EOS = 0
NO_EOS: frozenset[int] = frozenset()
OPTIONS = ask("?").options


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("internvl2-2b", "OpenGVLab/InternVL2-2B"),
        ("internvl2_2b", "OpenGVLab/InternVL2-2B"),
        ("glm4v_9b_chat", "THUDM/glm-4v-9b"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ],
)
def test_the_guides_names_mean_hub_models(name: str, hub: str):
    assert hub_id(name) == hub


@pytest.mark.parametrize(
    ("name", "since", "last"),
    [
        ("qwen_vl_chat", "0.15.0", "0.14.0"),
        ("qwen-vl-chat", "0.15.0", "0.14.0"),
        ("Qwen/Qwen-VL-Chat", "0.15.0", "0.14.0"),
        ("internlm_xcomposer2_5_7b_chat", "0.14.0", "0.13.0"),
        ("internlm-xcomposer2_5-7b-chat", "0.14.0", "0.13.0"),
        ("Shanghai_AI_Laboratory/internlm-xcomposer2d5-7b", "0.14.0", "0.13.0"),
        ("deepseek_vl_1_3b_chat", "0.14.0", "0.13.0"),
        ("deepseek-vl-1_3b-chat", "0.14.0", "0.13.0"),
        ("deepseek-ai/deepseek-vl-1.3b-chat", "0.14.0", "0.13.0"),
        ("minicpm_v_v2_5_chat", "0.14.0", "0.13.0"),
        ("minicpm-v-v2_5-chat", "0.14.0", "0.13.0"),
        ("openbmb/MiniCPM-Llama3-V-2_5", "0.14.0", "0.13.0"),
    ],
)
def test_a_model_that_left_lmdeploy_is_answered_with_the_last_version_that_has_it(
    name: str, since: str, last: str
):
    with pytest.raises(EngineFailed) as caught:
        hub_id(name)

    assert f"no more since {since}; {last} was the last version with it" in caught.value.message


def test_a_folder_is_a_folder_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "qwen_vl_chat").mkdir()
    monkeypatch.chdir(tmp_path)

    assert hub_id("qwen_vl_chat") == "qwen_vl_chat"


async def test_without_a_gpu_the_engine_says_what_it_needs():
    with pytest.raises(EngineFailed, match=r"needs (lmdeploy|an NVIDIA GPU)"):
        load_engine(EngineSpec("demo", "lmdeploy"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such file.\nDetails."), "no such file"),
        (KeyError(), "KeyError"),
        (
            ValueError("It contains custom code. \nPlease pass `trust_remote_code=True`."),
            "It contains custom code; --trust-remote-code runs that code",
        ),
    ],
)
def test_of_a_librarys_error_the_first_line_and_our_own_flag_are_told(error: Exception, told: str):
    assert reason_of(error) == told


# --- capacity -------------------------------------------------------------------------------------

LANGUAGE = {
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 24,
    "hidden_size": 2048,
}


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(**LANGUAGE),
        SimpleNamespace(text_config=SimpleNamespace(**LANGUAGE), hidden_size=99),
        SimpleNamespace(llm_config=LANGUAGE, vision_config={"num_attention_heads": 3}),
        {"thinker_config": SimpleNamespace(text_config=LANGUAGE)},
    ],
    ids=["text only", "text_config", "llm_config as a dict", "two deep"],
)
def test_a_token_of_the_cache_is_measured_by_the_language_model(config: object):
    assert token_bytes(config, tp=1) == 2 * 2 * 24 * 8 * 128
    assert token_bytes(config, tp=2) == 2 * 2 * 24 * 4 * 128


@pytest.mark.parametrize("lacking", ["num_attention_heads", "num_hidden_layers", "hidden_size"])
def test_a_configuration_that_says_too_little_gives_no_measure(lacking: str):
    assert token_bytes({**LANGUAGE, lacking: None}, tp=1) is None


# --- options --------------------------------------------------------------------------------------


def test_given_options_win_over_the_checkpoints():
    defaults = Defaults.of({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "eos_token_id": 5})
    options = ask("?", max_tokens=7, temperature=0.2, top_k=3, min_p=0.1).options

    said = generation(
        options, defaults, seed=9, emitted=0, eos_ids=frozenset({5, 2}), vocabulary=99
    )

    assert said == {
        "max_new_tokens": 7,
        "do_sample": True,
        "temperature": 0.2,
        "top_k": 3,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "random_seed": 9,
        "ignore_eos": False,
        "stop_token_ids": [2, 5],
    }


@pytest.mark.parametrize("config", [{}, {"do_sample": False, "temperature": 0.9}])
def test_greedy_is_the_likeliest_token_and_keeps_a_penalty(config: dict[str, object]):
    asked = {} if config else {"temperature": 0.0}
    options = ask("?", repetition_penalty=1.2, top_k=40, **asked).options

    said = generation(
        options, Defaults.of(config), seed=9, emitted=0, eos_ids=NO_EOS, vocabulary=99
    )

    assert (said["top_k"], said["repetition_penalty"]) == (1, 1.2)


def test_an_attempt_that_goes_on_asks_for_the_rest_with_other_random_numbers():
    options, seed = ask("?", max_tokens=10).options, (1 << 63) - 1

    first = generation(options, Defaults(), seed=seed, emitted=0, eos_ids=NO_EOS, vocabulary=99)
    second = generation(options, Defaults(), seed=seed, emitted=4, eos_ids=NO_EOS, vocabulary=99)
    again = generation(options, Defaults(), seed=seed, emitted=4, eos_ids=NO_EOS, vocabulary=99)

    assert (first["max_new_tokens"], second["max_new_tokens"]) == (10, 6)
    assert first["random_seed"] == seed
    assert second["random_seed"] == again["random_seed"] != first["random_seed"]
    assert 0 <= second["random_seed"] < 1 << 63


@pytest.mark.parametrize(
    ("top_k", "limit", "said"),
    [(2000, None, 2000), (1024, 1024, 1024), (5000, 1024, 0), (10**30, None, 0), (0, 1024, 0)],
)
def test_a_top_k_of_the_whole_vocabulary_is_none(top_k: int, limit: int | None, said: int):
    options = ask("?", top_k=top_k).options

    made = generation(
        options,
        Defaults(),
        seed=9,
        emitted=0,
        eos_ids=NO_EOS,
        vocabulary=5000,
        max_top_k=limit,
    )

    assert made["top_k"] == said


def test_a_top_k_of_which_turbomind_would_die_is_refused():
    options = ask("?", top_k=1025).options

    with pytest.raises(OptionUnsupported, match="1024 at most"):
        generation(
            options,
            Defaults(),
            seed=9,
            emitted=0,
            eos_ids=NO_EOS,
            vocabulary=5000,
            max_top_k=1024,
        )


@pytest.mark.parametrize("has_logprobs", [False, True])
@pytest.mark.parametrize("knows_tools", [False, True])
def test_only_what_the_backend_and_the_template_can_do_is_honoured(
    has_logprobs: bool, knows_tools: bool
):
    names = honoured(has_logprobs=has_logprobs, knows_tools=knows_tools)

    assert {"seed", "response_format"} <= names
    assert ({"logprobs", "top_logprobs"} <= names) == has_logprobs
    assert ({"tools", "tool_choice", "parallel_tool_calls"} <= names) == knows_tools


# --- templates ------------------------------------------------------------------------------------


class Template:
    """Renders a chat as LMDeploy's templates do; `offer` and `call` are format strings."""

    def __init__(self, offer: str = "", call: str = "") -> None:
        self._offer, self._call = offer, call

    def messages2prompt(self, messages: list[dict[str, Any]], tools: list[Any]) -> str:
        calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
        said = "".join(
            self._call.format(name=call["name"], arguments=json.dumps(call["arguments"]))
            for call in calls
        )
        return (
            self._offer.format(json.dumps(tools)) + "".join(m["content"] for m in messages) + said
        )


OFFER = 'Tools: {}. Call as <tool_call>{{"name": …}}</tool_call>\n'
AS_JSON = '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("template", "specials", "knows"),
    [
        (Template(OFFER, AS_JSON), set(), True),
        (Template("", AS_JSON), set(), False),
        (Template(OFFER, ""), set(), False),
        (
            Template(OFFER, "<tool_call>\n<function={name}>\n</function>\n</tool_call>"),
            set(),
            False,
        ),
        (Template(OFFER, '[{{"name": "{name}", "parameters": {arguments}}}]'), set(), False),
        (Template(OFFER, AS_JSON), {"<tool_call>"}, False),
        (object(), set(), False),
    ],
    ids=["json", "offers none", "writes none", "xml", "no marks", "special marks", "refuses"],
)
def test_a_template_knows_tools_if_it_offers_them_and_writes_calls_that_we_read(
    template: object, specials: set[str], knows: bool
):
    assert knows_tools(template, frozenset(specials)) is knows


# --- answers --------------------------------------------------------------------------------------

LETTERS = "?abcdefghijklmnopqrstuvwxyz"  # token n is its n-th letter; 0 ends a text


def letters(ids: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in ids)


def answering(prompt: Prompt) -> Answering:
    return Answering(prompt, prompt_tokens=11, eos_ids=frozenset({EOS}), decode=letters)


def test_tokens_that_came_together_leave_together():
    answer = answering(ask("?", max_tokens=9))

    deltas = [answer.take(Sampled([1, 2, 3])), answer.take(Sampled([4]))]

    assert deltas == [Delta("abc", (1, 2, 3), 11), Delta("d", (4,), 11)]


def test_the_token_that_ends_a_text_is_no_part_of_it():
    answer = answering(ask("?", max_tokens=9))

    assert answer.take(Sampled([1, 2, EOS], is_last=True)) == Delta("ab", (1, 2), 11, "stop")


def test_with_ignore_eos_that_token_is_one_like_any_other():
    answer = answering(ask("?", max_tokens=3, ignore_eos=True))

    assert answer.take(Sampled([1, EOS, 2], is_last=True)) == Delta(
        "a?b", (1, EOS, 2), 11, "length"
    )


def test_no_more_than_max_tokens_are_taken():
    answer = answering(ask("?", max_tokens=2))

    assert answer.take(Sampled([1, 2, 3, 4])) == Delta("ab", (1, 2), 11, "length")


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_stop_text_ends_at_the_same_token_however_tokens_come(size: int):
    answer = answering(ask("?", max_tokens=20, stop=("def",)))
    sampled = list(range(1, 10))

    deltas = []
    for at in range(0, len(sampled), size):
        deltas.append(answer.take(Sampled(sampled[at : at + size])))
        if deltas[-1].finish_reason:
            break

    assert "".join(delta.text for delta in deltas) == "abc"
    assert [t for delta in deltas for t in delta.token_ids] == [1, 2, 3, 4, 5, 6]
    assert deltas[-1].finish_reason == "stop"


def test_a_later_attempt_says_only_what_comes_after():
    start = Delta("ab", (1, 2, 3), 11)  # the third letter was held back as a stop text's beginning
    prompt = Prompt(
        "p",
        (Turn("user", ("?",)),),
        ask("?", max_tokens=5, stop=("cx",)).options,
        start.token_ids,
        start.text,
    )
    answer = answering(prompt)

    delta = answer.take(Sampled([4, 5], is_last=True))

    assert not answering(prompt).is_over
    assert delta == Delta("cde", (4, 5), 11, "length")


def test_an_answer_of_a_given_format_is_begun_anew_and_must_come_out_the_same():
    options = ask("?", max_tokens=5, json_schema={"type": "object"}).options
    prompt = Prompt("p", (Turn("user", ("?",)),), options, (1, 2), "ab")

    def begun() -> Answering:
        return Answering(
            prompt, prompt_tokens=11, eos_ids=NO_EOS, decode=letters, repeats=repeats(prompt)
        )

    answer = begun()

    assert [answer.take(Sampled([1])), answer.take(Sampled([2, 3]))] == [
        Delta("", (), 11),
        Delta("c", (3,), 11),
    ]
    with pytest.raises(EngineFailed, match="came out otherwise"):
        begun().take(Sampled([1, 9]))


def test_a_call_of_a_tool_is_told_apart_and_ends_the_answer_as_one():
    words = ["", "<tool_call>", '{"name": "add", ', '"arguments": {}}', "</tool_call>", "."]
    tools = ToolUse(({"name": "add"},), max_calls=1)
    answer = Answering(
        ask("?", max_tokens=9, tools=tools),
        prompt_tokens=1,
        eos_ids=NO_EOS,
        decode=lambda ids: "".join(words[token] for token in ids),
    )

    delta = answer.take(Sampled([1, 2, 3, 4, 5]))

    assert delta.tool_calls == (ToolCall("add", "{}"),)
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", (1, 2, 3, 4), "tool_calls")


def test_what_earlier_attempts_made_whole_is_over():
    prompt = Prompt("p", (Turn("user", ("?",)),), ask("?", max_tokens=2).options, (1, 2), "ab")
    answer = answering(prompt)

    assert answer.is_over
    assert answer.last() == Delta("", (), 11, "length")


def test_logprobs_stand_beside_the_tokens_that_were_kept_chosen_first_or_not():
    answer = Answering(
        ask("?", max_tokens=9, top_logprobs=1),
        prompt_tokens=1,
        eos_ids=frozenset({EOS}),
        decode=letters,
        spell=lambda token: LETTERS[token].encode(),
    )
    likely = ({2: -1.5, 1: -0.25}, {3: -0.5}, {EOS: -0.1})

    delta = answer.take(Sampled([2, 3, EOS], likely, is_last=True))

    assert delta.logprobs == (
        TokenLogprob(b"b", -1.5, (TokenLogprob(b"a", -0.25),)),
        TokenLogprob(b"c", -0.5, (TokenLogprob(b"c", -0.5),)),
    )


# --- forms of answers -----------------------------------------------------------------------------

ADD = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
SAY = {"name": "say"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 4}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "say", "arguments": {}}\n</tool_call>'


def fits(said: str, options: EngineOptions, **how: bool) -> bool:
    """Ask XGrammar whether an answer has the form that is asked for."""
    xgrammar = pytest.importorskip("xgrammar", reason="LMDeploy is not installed")
    form = response_format(options, **how)
    if form is None:
        return True
    if form["type"] == "json_schema":
        grammar = xgrammar.Grammar.from_json_schema(json.dumps(form["json_schema"]["schema"]))
    else:
        grammar = xgrammar.Grammar.from_structural_tag(json.dumps(form))
    letters = xgrammar.TokenizerInfo([bytes([n]) for n in range(256)] + [b"</s>"])
    compiled = xgrammar.GrammarCompiler(letters).compile_grammar(grammar)
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return bool(matcher.accept_string(said)) and bool(matcher.is_completed())


def test_a_plain_schema_is_asked_for_by_the_shortest_way_and_free_text_by_none():
    schema = {"type": "integer"}

    assert response_format(ask("?", json_schema=schema).options) == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema},
    }
    assert response_format(ask("?", tools=ToolUse((ADD,))).options, reasons=True) is None


@pytest.mark.parametrize(
    ("tools", "said", "is_right"),
    [
        (ToolUse((ADD, SAY), must_call=True), CALL, True),
        (ToolUse((ADD, SAY), must_call=True), f"{CALL}\n{OTHER}", True),
        (ToolUse((ADD, SAY), must_call=True), "no", False),
        (ToolUse((ADD, SAY), must_call=True), "", False),
        (ToolUse((ADD, SAY), must_call=True), CALL.replace("4", '"four"'), False),
        (ToolUse((ADD, SAY), must_call=True, only="say"), CALL, False),
        (ToolUse((ADD, SAY), must_call=True, only="say"), OTHER, True),
        (ToolUse((ADD,), must_call=True, max_calls=1), f"{CALL}\n{CALL}", False),
        (ToolUse((ADD,)), "anything", True),
        (ToolUse((ADD | {"strict": True},)), "anything", True),
        (ToolUse((ADD | {"strict": True},)), f"So: {CALL} and", True),
        (ToolUse((ADD | {"strict": True},)), f"So: {OTHER}", False),
    ],
)
def test_calls_have_the_form_that_was_asked_for(tools: ToolUse, said: str, is_right: bool):
    assert fits(said, ask("?", tools=tools).options) == is_right


def test_with_a_schema_and_tools_the_answer_is_an_instance_or_a_call():
    options = ask("?", json_schema={"type": "integer"}, tools=ToolUse((ADD,))).options

    assert fits("7", options)
    assert fits(CALL, options)
    assert not fits("seven", options)


@pytest.mark.parametrize(
    ("how", "said", "is_right"),
    [
        ({"reasons": True}, "7", True),
        ({"reasons": True}, "<think>\nsix? no\n</think>\n\n7", True),
        ({"reasons": True}, "six? no", False),
        ({"reasons": True, "is_thinking": True}, "six? no\n</think>\n\n7", True),
        ({"reasons": True, "is_thinking": True}, "six? no\n</think>\n\nseven", False),
    ],
)
def test_reasoning_before_an_answer_is_free(how: dict[str, bool], said: str, is_right: bool):
    assert fits(said, ask("?", json_schema={"type": "integer"}).options, **how) == is_right


# --- parcels --------------------------------------------------------------------------------------


def test_a_parcel_holds_tensors_of_every_kind_and_outlives_its_descriptor():
    torch = pytest.importorskip("torch", reason="the extra `cpu` is not installed")
    from worker.engine.lmdeploy import parcel  # noqa: PLC0415 - it needs torch

    sent = {
        "large": torch.arange(9000, dtype=torch.float32).reshape(90, 100).to(torch.bfloat16),
        "turned": torch.arange(4096).reshape(64, 64).t(),
        "small": torch.tensor([[1, 2, 3]]),
        "none": torch.empty((0, 4)),
        "number": torch.tensor(7.5),
        "ids": list(range(300)),
        "other": b"\x00" * 10_000,
    }

    descriptor = parcel.pack(sent)
    got = parcel.unpack(descriptor)
    os.close(descriptor)

    for name, value in sent.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value)
            assert got[name].dtype == value.dtype
        else:
            assert got[name] == value


# --- opening, with LMDeploy's own code ------------------------------------------------------------


def _backend_module() -> Any:
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    from worker.engine.lmdeploy import backend  # noqa: PLC0415 - it needs LMDeploy

    return backend


def test_turbomind_is_refused_for_a_model_that_only_pytorch_sees_with(tmp_path: Path):
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backend = _backend_module()

    with pytest.raises(EngineFailed, match="use --backend pytorch"):
        backend.check_sees_by_itself(str(tmp_path))


def test_turbomind_is_taken_for_models_that_it_sees_with_and_for_those_of_text(
    tmp_path: Path, tiny_model: Path
):
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backend = _backend_module()

    backend.check_sees_by_itself(str(tiny_model))
    backend.check_sees_by_itself(str(tmp_path))


async def test_a_backend_is_closed_where_its_readers_cannot_open_the_model(tmp_path: Path):
    _backend_module()
    closed = []

    class Opened(LmdeployEngine):
        def _backend(self, folder: str) -> Any:
            return SimpleNamespace(
                feature_dtype=None, reasons=False, close=lambda: closed.append(folder)
            )

    with pytest.raises(EngineFailed, match="could not be opened"):
        await Opened(str(tmp_path), readers=1).start()

    assert closed == [str(tmp_path)]


# --- reading, with LMDeploy's own code ------------------------------------------------------------


@pytest.fixture
async def readers(tiny_model: Path) -> AsyncIterator["Readers"]:
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    from worker.engine.lmdeploy.readers import Readers  # noqa: PLC0415 - both need LMDeploy
    from worker.engine.lmdeploy.reading import ReaderSpec  # noqa: PLC0415

    readers = Readers(size=2)
    await readers.start()
    await readers.open(ReaderSpec(str(tiny_model), "bfloat16", decode=decode))
    yield readers
    await readers.close()


def _turns(*parts: object) -> tuple[Turn, ...]:
    return (Turn("user", parts),)  # type: ignore[arg-type]


async def test_pictures_fill_their_places_and_come_in_the_engines_type(readers: "Readers"):
    one = await readers.read(_turns(picture(), "有几只羊？"), OPTIONS)
    two = await readers.read(_turns(picture(seed=1), picture(seed=2), "有几只羊？"), OPTIONS)

    assert len(two.token_ids) > len(one.token_ids)
    assert len(one.multimodal) == 1
    assert str(one.multimodal[0]["pixel_values"].dtype) == "torch.bfloat16"
    assert len({item["fingerprint"] for item in (*one.multimodal, *two.multimodal)}) == 3


async def test_the_same_picture_has_the_same_fingerprint_wherever_it_stands(readers: "Readers"):
    alone = await readers.read(_turns(picture(seed=1)), OPTIONS)
    among = await readers.read(_turns(picture(seed=2), "and", picture(seed=1)), OPTIONS)

    assert alone.multimodal[0]["fingerprint"] == among.multimodal[1]["fingerprint"]


async def test_a_clip_is_numbered_pictures_where_the_model_takes_no_video(
    readers: "Readers",
):
    clip = Clip((picture(seed=1), picture(seed=2)), (0.5, 1.5), "sha")

    read = await readers.read(_turns(clip, "描述视频"), OPTIONS)

    assert len(read.multimodal) == 2


@pytest.mark.parametrize("reasons", [False, True])
def test_the_form_that_is_checked_is_the_one_that_is_sent(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, *, reasons: bool
):
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    from worker.engine.lmdeploy import forms, reading  # noqa: PLC0415 - both need LMDeploy

    checked: list[Any] = []
    monkeypatch.setattr(forms, "compile_response_format", lambda _, form: checked.append(form))
    options = ask("?", json_schema={"type": "integer"}).options

    reading.Reader(reading.ReaderSpec(str(tiny_model), None, reasons=reasons)).check_form(
        options, is_thinking=False
    )

    assert checked == [response_format(options, reasons=reasons)]


@pytest.mark.parametrize("tools", [None, ToolUse((ADD,))])
async def test_a_schema_that_can_be_read_but_not_compiled_fails_alone(
    readers: "Readers", tools: ToolUse | None
):
    schema = {"type": "string", "pattern": "^(a|b|[c-z]){1,2000}$"}
    asked = ask("?", json_schema=schema, tools=tools).options

    with pytest.raises(OptionUnsupported):
        await readers.read(_turns("?"), asked)

    good = ask("?", json_schema={"type": "string"}, tools=tools).options
    assert (await readers.read(_turns("?"), good)).token_ids


def test_a_process_ends_whose_schema_takes_too_long():
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    hangs = (
        "import time; from types import SimpleNamespace as Made\n"
        "from worker.engine.lmdeploy import reading_process\n"
        "reading_process.FORM_S = 0.1\n"
        "reader = Made(read=lambda *_: Made(is_thinking=False),"
        " check_form=lambda *_, **__: time.sleep(50))\n"
        "reading_process._read(reader, (), None)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", hangs], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, "Timeout" in ended.stderr) == (1, True)


async def test_special_tokens_of_a_user_are_text(readers: "Readers"):
    read = await readers.read(_turns("<|image_pad|> <IMAGE_TOKEN> <|im_end|>", picture()), OPTIONS)

    assert len(read.multimodal) == 1


async def test_a_prompt_that_cannot_be_read_fails_alone(readers: "Readers"):
    from worker.engine.base import Picture  # noqa: PLC0415

    good, bad = await asyncio.gather(
        readers.read(_turns(picture(), "?"), OPTIONS),
        readers.read(_turns(Picture(b"no picture", 84, 56, "sha"), "?"), OPTIONS),
        return_exceptions=True,
    )

    assert isinstance(bad, EngineFailed)
    assert good.multimodal


async def test_a_prompt_that_does_not_fit_into_this_process_fails_alone(
    readers: "Readers", monkeypatch: pytest.MonkeyPatch
):
    from worker.engine.lmdeploy import parcel  # noqa: PLC0415 - needs LMDeploy

    def full(_: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(parcel, "unpack", full)
        with pytest.raises(EngineFailed, match="Cannot allocate memory"):
            await asyncio.wait_for(readers.read(_turns("?"), OPTIONS), 30)

    assert (await readers.read(_turns("?"), OPTIONS)).token_ids


async def test_a_process_that_dies_is_replaced_and_its_prompts_are_read_again(
    readers: "Readers",
):
    victims = readers.pids
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    asked = [
        asyncio.create_task(readers.read(_turns(picture(), f"{n}"), OPTIONS)) for n in range(3)
    ]
    await asyncio.sleep(0)
    os.kill(victims[1], signal.SIGCONT)

    os.kill(victims[0], signal.SIGKILL)

    assert all(read.multimodal for read in await asyncio.gather(*asked))
    assert victims[0] not in readers.pids


@pytest.mark.parametrize("size", [1, 2])
async def test_a_prompt_that_ends_each_process_that_reads_it_fails_alone(
    tiny_model: Path, size: int
):
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    from worker.engine.base import Picture  # noqa: PLC0415
    from worker.engine.lmdeploy.readers import Readers  # noqa: PLC0415 - both need LMDeploy
    from worker.engine.lmdeploy.reading import ReaderSpec  # noqa: PLC0415

    deadly = Picture(DEADLY, 84, 56, "sha")
    readers = Readers(size)
    await readers.start()
    await readers.open(ReaderSpec(str(tiny_model), "bfloat16", decode=decode_or_die))
    try:
        bad, *good = await asyncio.gather(
            readers.read(_turns(deadly, "?"), OPTIONS),
            *(readers.read(_turns(picture(), f"{n}"), OPTIONS) for n in range(4)),
            return_exceptions=True,
        )
    finally:
        await readers.close()

    assert isinstance(bad, EngineFailed)
    assert [read for read in good if isinstance(read, Exception)] == []


async def test_closing_ends_the_processes_and_whoever_waits(readers: "Readers"):
    pids = readers.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.create_task(readers.read(_turns(picture(), "?"), OPTIONS))
    await asyncio.sleep(0)

    await readers.close()

    with pytest.raises(EngineDied):
        await waiting
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
