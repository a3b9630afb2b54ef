"""Functions, thoughts, log probabilities and JSON of a response, by the `openai` client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.support.openai_types import check
from tests.support.processes import Service

TOOL: Any = {
    "type": "function",
    "name": "count",
    "description": "Count animals.",
    "parameters": {"type": "object", "properties": {"animal": {"type": "string"}}},
}


@pytest.fixture
def client(running: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_function_is_called_and_its_output_sent_back(client: openai.OpenAI):
    turns: list[Any] = [{"role": "user", "content": 'Let me see [[tool=count {"animal": "羊"}]]'}]
    raw = client.responses.with_raw_response.create(model="echo", input=turns, tools=[TOOL])
    first = raw.parse()
    turns += first.output
    call = first.output[-1]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "4"})

    second = client.responses.create(model="echo", input=turns, tools=[TOOL], tool_choice="none")

    check(raw.http_response.json(), Response)
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call", "count", {"animal": "羊"},
    )  # fmt: skip
    assert second.status == "completed"
    items = list(client.responses.input_items.list(second.id, order="asc"))
    assert [item.type for item in items] == [
        "message", "message", "function_call", "function_call_output",
    ]  # fmt: skip
    assert items[2].call_id == items[3].call_id == call.call_id


def test_a_functions_output_goes_on_from_the_response_that_called_it(client: openai.OpenAI):
    first = client.responses.create(
        model="echo", input="[[tool=count {}]]", tools=[TOOL], instructions="be brief"
    )
    (call,) = first.output

    second = client.responses.create(
        model="echo",
        previous_response_id=first.id,
        tools=[TOOL],
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "4"}],
    )

    items = list(client.responses.input_items.list(second.id, order="asc"))
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    assert items[1].id == call.id


def test_a_call_is_streamed_to_the_clients_own_accumulator(client: openai.OpenAI):
    with client.responses.stream(
        model="echo", input="Let me see [[tool=count {}]]", tools=[TOOL]
    ) as stream:
        names = [event.type for event in stream]
        whole = stream.get_final_response()

    assert "response.function_call_arguments.done" in names
    assert [item.type for item in whole.output] == ["message", "function_call"]


def test_thoughts_are_an_item_that_may_be_sent_back(client: openai.OpenAI):
    raw = client.responses.with_raw_response.create(model="echo", input="[[think=hm]] four")
    first = raw.parse()
    turns: list[Any] = [{"role": "user", "content": "q"}, *first.output]

    second = client.responses.create(
        model="echo", input=[*turns, {"role": "user", "content": "and now?"}]
    )

    check(raw.http_response.json(), Response)
    assert [item.type for item in first.output] == ["reasoning", "message"]
    assert first.output[0].content[0].text == "hm"
    assert second.output_text == "and now?"


def test_log_probabilities_come_with_every_token(client: openai.OpenAI):
    events = list(
        client.responses.create(
            model="echo", input="one two three", stream=True, top_logprobs=2,
            include=["message.output_text.logprobs"], max_output_tokens=9,
        )
    )  # fmt: skip

    told = [
        entry.token
        for event in events
        if event.type == "response.output_text.delta"
        for entry in event.logprobs
    ]
    final = events[-1].response
    check(json.loads(final.to_json()), Response)
    assert "".join(told) == "one two three"
    assert [entry.token for entry in final.output[0].content[0].logprobs] == told
    assert final.top_logprobs == 2


class Seen(BaseModel):
    animal: str
    number: int


def test_an_answer_is_parsed_into_the_callers_class(client: openai.OpenAI):
    response = client.responses.parse(
        model="echo", input='{"animal": "sheep", "number": 4}', text_format=Seen
    )

    assert response.output_parsed == Seen(animal="sheep", number=4)
    assert response.text.format.type == "json_schema"
