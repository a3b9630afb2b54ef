"""Calls and logprobs in OpenAI's words."""

import json
import math

from worker.engine.base import TokenLogprob, ToolCall
from worker.telling import call_objects, logprob_object

CALLS = [ToolCall("add", '{"a": 1}'), ToolCall("add", '{"a": 1}'), ToolCall("sub", "{}")]


def test_a_calls_id_is_the_same_in_every_attempt_and_no_other_calls():
    whole = call_objects("job_1", 0, CALLS)

    again = [*call_objects("job_1", 0, CALLS[:1]), *call_objects("job_1", 1, CALLS[1:])]

    assert list(whole) == again
    assert len({call["id"] for call in (*whole, *call_objects("job_2", 0, CALLS))}) == 6
    assert whole[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_a_token_that_is_half_a_character_is_told_by_its_bytes():
    half = "羊".encode()[:2]
    entry = TokenLogprob(half, -0.5, (TokenLogprob("羊".encode(), -0.25),))

    told = logprob_object(entry)

    assert told == {
        "token": "bytes:\\xe7\\xbe",
        "logprob": -0.5,
        "bytes": [0xE7, 0xBE],
        "top_logprobs": [{"token": "羊", "logprob": -0.25, "bytes": [0xE7, 0xBE, 0x8A]}],
    }


def test_a_token_that_cannot_be_has_a_logprob_that_json_can_say():
    told = logprob_object(TokenLogprob(b"x", -math.inf))

    assert json.loads(json.dumps(told, allow_nan=False))["logprob"] == -9999.0
