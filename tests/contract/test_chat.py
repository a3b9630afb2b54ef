"""Bodies of OpenAI's chat and completions as jobs, and jobs as their answers."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion
from pydantic import ValidationError

from tests.support.openai_types import check, differences
from worker.contract import chat, choices, completions, forms
from worker.contract.chat import ChatBody
from worker.contract.completions import CompletionBody
from worker.contract.errors import InvalidRequest, OptionUnsupported
from worker.contract.events import Event, delta_data
from worker.contract.job import ChatRequest, Message
from worker.contract.options import read_options

ASK = {"messages": [{"role": "user", "content": "图片中有几只羊"}]}
ID = "job_" + "0a" * 16
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOKEN = {"token": "四", "logprob": -0.5, "bytes": [229], "top_logprobs": [
    {"token": "四", "logprob": -0.5, "bytes": [229]}]}  # fmt: skip


def job(text: str = "四只", reason: str | None = "stop", **output: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "status": "completed",
        "model": "demo",
        "created_at": 1790000000.123,
        "output": {"text": text, "finish_reason": reason} | output,
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def read(**body: Any) -> ChatBody:
    return ChatBody.model_validate(ASK | body)


def asked(body: ChatBody) -> dict[str, Any]:
    return read_options(chat.to_job(body))


def delta(text: str, **more: Any) -> Event:
    return Event(3, "delta", delta_data(text, 1, **more))


def test_a_chat_body_is_a_job_with_the_same_messages_and_options():
    body = read(temperature=0, top_k=5, seed=3, stop="。", max_completion_tokens=9, priority="low")

    made = chat.to_job(body)

    assert made.messages == body.messages
    assert (made.temperature, made.top_k, made.seed, made.max_tokens) == (0, 5, 3, 9)
    assert forms.to_spec(made).priority == "low"


def test_nulls_are_fields_that_were_not_given():
    every = dict.fromkeys(ChatBody.model_fields.keys() - {"messages"})

    assert chat.to_job(read(**every)) == chat.to_job(read())


def test_what_asks_for_nothing_asks_the_engine_for_nothing():
    idle = {
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto",
        "logprobs": False, "ignore_eos": False, "top_logprobs": 0,
    }  # fmt: skip

    assert asked(read(**idle)) == {"ignore_eos": False}


@pytest.mark.parametrize("field", [
    {"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"logit_bias": {}}, {"n": 1},
    {"user": "u"}, {"store": True}, {"service_tier": "auto"}, {"service_tier": "default"},
    {"parallel_tool_calls": False}, {"safety_identifier": "s"}, {"prompt_cache_key": "k"},
    {"modalities": ["text"]}, {"verbosity": "medium"}, {"num_beams": 1, "length_penalty": 1.0},
    {"best_of": 1, "audios": []}, {"functions": []},
])  # fmt: skip
def test_a_value_that_changes_nothing_is_taken(field: dict[str, Any]):
    assert asked(read(**field)) == {}


@pytest.mark.parametrize("field", [
    {"presence_penalty": 1}, {"frequency_penalty": -0.5}, {"logit_bias": {"42": 1}},
    {"service_tier": "flex"}, {"modalities": ["text", "audio"]}, {"audio": {"voice": "x"}},
    {"reasoning_effort": "high"}, {"verbosity": "low"}, {"num_beams": 4}, {"best_of": 2},
    {"web_search_options": {}}, {"functions": [{"name": "f"}]}, {"prediction": {"type": "content"}},
    {"audios": ["a.wav"]},
])  # fmt: skip
def test_a_value_that_would_change_the_answer_is_refused_by_name(field: dict[str, Any]):
    with pytest.raises(OptionUnsupported) as caught:
        chat.to_job(read(**field))

    (name,) = field
    assert caught.value.param == name
    assert name in caught.value.message


@pytest.mark.parametrize("field", [
    {"n": 0}, {"n": 129}, {"max_tokens": 3, "max_completion_tokens": 4}, {"top_logprobs": 2},
    {"stream_options": {"include_usage": True}}, {"query": "q"}, {"nonsense": 1},
    {"not_before": "2030-01-01T00:00:00Z"}, {"on_disconnect": "perhaps"},
    {"stream": True, "stream_options": {"nonsense": 1}},
])  # fmt: skip
def test_what_makes_no_sense_is_refused(field: dict[str, Any]):
    with pytest.raises(ValidationError):
        read(**field)


def test_an_answer_may_be_sent_back_as_it_was_read():
    message = chat.completion(job(reasoning="hm"))["choices"][0]["message"]
    echoed = message | {"audio": None, "tool_calls": None, "function_call": None}

    body = read(messages=[*ASK["messages"], echoed, {"role": "user", "content": "白色吗？"}])

    assert body.messages[1].content == "四只"


def test_every_choice_has_a_seed_of_its_own_and_the_first_keeps_the_given_one():
    question = ChatRequest("demo", (Message("user", ("q",)),), options={"seed": 5, "top_k": 3})

    seeds = [one.options["seed"] for one in choices.variants(question, 50)]

    assert seeds[0] == 5
    assert len(set(seeds)) == 50
    assert seeds == [one.options["seed"] for one in choices.variants(question, 50)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert {one.options["top_k"] for one in choices.variants(question, 3)} == {3}


def test_a_negative_seed_is_a_seed():
    assert 0 <= (chat.to_job(read(seed=-1)).seed or 0) < 2**63


def test_without_a_seed_the_choices_are_the_same_question():
    question = ChatRequest("demo", (Message("user", ("q",)),))

    assert choices.variants(question, 3) == [question] * 3


def test_a_completion_is_what_the_client_knows_and_nothing_else():
    answer = chat.completion(job(), job("三只", "length"))

    check(answer, ChatCompletion)
    assert answer["id"] == "chatcmpl-" + "0a" * 16
    assert [c["message"]["content"] for c in answer["choices"]] == ["四只", "三只"]
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop", "length"]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


def test_tool_calls_logprobs_and_reasoning_come_through():
    answer = chat.completion(
        job("", "tool_calls", tool_calls=[CALL], logprobs={"content": [TOKEN]}, reasoning="hm")
    )

    check(answer, ChatCompletion)
    (choice,) = answer["choices"]
    assert choice["message"]["tool_calls"] == [CALL]
    assert choice["message"]["content"] is None
    assert choice["logprobs"]["content"] == [TOKEN]


def test_a_cancelled_job_is_an_answer_that_was_cut():
    cancelled = job("图片中", None) | {"status": "cancelled", "usage": None}

    answer = chat.completion(cancelled)

    check(answer, ChatCompletion)
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("includes_usage", [True, False])
def test_no_chunk_has_a_null_content_or_no_choice_unless_usage_is_asked_for(includes_usage: bool):
    chunks = chat.Chunks(job(), includes_usage)
    told = [
        chunks.begin(0),
        chunks.delta(0, delta("", reasoning="hm")),
        chunks.delta(0, delta("四只", logprobs=[TOKEN])),
        chunks.delta(0, delta("", tool_calls=[CALL])),
        chunks.delta(0, delta("", tool_calls=[CALL])),
        chunks.end(0, job("四只", "tool_calls", tool_calls=[CALL])),
    ]

    for chunk in told:
        check(chunk, ChatCompletionChunk)
        assert isinstance(chunk["choices"][0]["delta"]["content"], str)
        assert ("usage" in chunk) == includes_usage
    assert told[0]["choices"][0]["delta"]["role"] == "assistant"
    assert told[1]["choices"][0]["delta"]["reasoning_content"] == "hm"
    assert told[2]["choices"][0]["logprobs"]["content"] == [TOKEN]
    assert [c["choices"][0]["delta"]["tool_calls"][0]["index"] for c in told[3:5]] == [0, 1]
    assert told[-1]["choices"][0]["finish_reason"] == "tool_calls"
    counted = chunks.usage([job()])
    assert (counted["choices"], counted["usage"]["total_tokens"]) == ([], 9)


def test_tokens_without_text_make_no_chunk():
    assert chat.Chunks(job()).delta(0, delta("")) is None


# --- completions ----------------------------------------------------------------------------------


def prompt(text: Any = "Once", **body: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": text} | body)


def test_every_prompt_is_a_job_of_its_own():
    made = completions.to_jobs(prompt(["a", "b"], max_tokens=3, logprobs=2, suffix="", echo=False))

    assert [one.messages[0].content for one in made] == ["a", "b"]
    assert {(one.max_tokens, one.logprobs, one.top_logprobs) for one in made} == {(3, True, 2)}


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]]])
def test_token_ids_are_refused_with_what_to_send(tokens: list[Any]):
    with pytest.raises(ValidationError, match="send the prompt as text"):
        prompt(tokens)


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "end"}, {"top_logprobs": 1},
                                   {"tools": [{"type": "function", "function": {"name": "f"}}]},
                                   ])  # fmt: skip
def test_what_completions_cannot_do_is_refused(field: dict[str, Any]):
    with pytest.raises(OptionUnsupported):
        completions.to_jobs(prompt(**field))


def test_prompts_times_n_have_one_limit():
    with pytest.raises(InvalidRequest) as caught:
        completions.to_jobs(prompt(["a"] * 65, n=2))

    assert caught.value.param == "n"


def test_a_text_completion_counts_a_prompt_once_for_its_choices():
    answer = completions.completion(job("a"), job("b"), job("c"), job("d"), n=2)

    check(answer, Completion)
    assert [c["text"] for c in answer["choices"]] == ["a", "b", "c", "d"]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 14, "completion_tokens": 8, "total_tokens": 22}


def test_chunks_of_a_text_completion_know_where_their_tokens_stand():
    chunks = completions.Chunks(job(), includes_usage=True)
    told = [
        chunks.begin(0),
        chunks.delta(0, delta("四", logprobs=[TOKEN])),
        chunks.delta(0, delta("四", logprobs=[TOKEN])),
        chunks.end(0, job()),
        chunks.usage([job()]),
    ]

    for chunk in told:
        check(chunk, Completion)
    assert [c["choices"][0]["text"] for c in told[:-1]] == ["", "四", "四", ""]
    assert told[2]["choices"][0]["logprobs"]["text_offset"] == [1]
    assert told[3]["choices"][0]["finish_reason"] == "stop"


# --- the check itself -----------------------------------------------------------------------------


def test_the_type_check_sees_what_is_missing_unknown_or_of_another_type():
    answer = chat.completion(job())
    answer["choices"][0]["message"] |= {"text": "?"}
    del answer["created"]
    answer["usage"]["total_tokens"] = "9"

    assert list(differences(answer, ChatCompletion)) == [
        "$.choices[0].message.text: unknown",
        "$.created: missing",
        "$.usage.total_tokens: '9' is no int",
    ]
