"""A response's body as a question: every item form, its places, and what an earlier one lends."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseItem

from tests.support.factories import PICTURE, question
from tests.support.openai_types import check
from tests.support.responses import body
from worker.contract import forms
from worker.contract.errors import InvalidRequest, MediaUnreadable, MediaUnsupported
from worker.contract.job import ChatRequest, Door, MediaRef, Message, Priority
from worker.contract.responses import output, view
from worker.contract.responses.body import ResponseBody
from worker.contract.responses.envelope import envelope, to_spec
from worker.contract.responses.question import (
    Earlier,
    as_written,
    placed,
    renamed,
    to_chat,
)
from worker.contract.s3 import media_key
from worker.contract.settings import Settings

A, V = "https://host/a.png", "https://host/v.mp4"
FILE = "file_" + "0a" * 16
LIMITS = Settings(_env_file=None)


def text(value: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def turns(asked: ResponseBody) -> list[tuple[str, list[str]]]:
    """Return roles and parts, a medium shown as [where it is]."""
    parsed = forms.parse(to_chat(asked), LIMITS)
    where = [s.url or s.file_id or repr(s.data) for s in parsed.sources]
    return [
        (m.role, [p if isinstance(p, str) else f"[{where[p]}]" for p in m.parts])
        for m in parsed.messages
    ]


FORMS = {
    "a text": ("你好", [("user", ["你好"])]),
    "a text that looks like a tag": ("<img>x</img>", [("user", ["<img>x</img>"])]),
    "a short message": ([{"role": "user", "content": "q"}], [("user", ["q"])]),
    "a developer": (
        [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "q"}],
        [("system", ["be brief"]), ("user", ["q"])],
    ),
    "a picture by its URL": (
        [{"role": "user", "content": [
            {"type": "input_image", "image_url": A, "detail": "high"}, text("q")]}],
        [("user", [f"[{A}]", "q"])],
    ),
    "a picture by its file": (
        [{"role": "user", "content": [text("q"), {"type": "input_image", "file_id": FILE}]}],
        [("user", ["q", f"[{FILE}]"])],
    ),
    "a video": (
        [{"role": "user", "content": [{"type": "input_video", "video_url": V}]}],
        [("user", [f"[{V}]"])],
    ),
    "a file that is a picture by its address": (
        [{"role": "user", "content": [{"type": "input_file", "file_url": f"{A}?x=1"}]}],
        [("user", [f"[{A}?x=1]"])],
    ),
    "a file that is a video by its name": (
        [{"role": "user", "content": [
            {"type": "input_file", "file_id": FILE, "filename": "clip.MP4"}]}],
        [("user", [f"[{FILE}]"])],
    ),
    "a file that is a picture by its data": (
        [{"role": "user", "content": [
            {"type": "input_file", "file_data": "data:image/png;base64,YWJj", "filename": "x"}]}],
        [("user", ["[b'abc']"])],
    ),
    "an answer sent back as it came": (
        [{"role": "user", "content": "q"},
         {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
          "phase": None, "content": [
              {"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]},
         {"role": "user", "content": "and now?"}],
        [("user", ["q"]), ("assistant", ["a"]), ("user", ["and now?"])],
    ),
}  # fmt: skip


CALLS = [
    {"role": "user", "content": "q"},
    {"type": "message", "role": "assistant", "content": "let me look"},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": '{"n": 1}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "four"},
    {"type": "function_call_output", "call_id": "call_2", "output": [
        {"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": A}]},
]  # fmt: skip


def test_what_the_model_said_and_called_in_one_go_is_one_turn():
    asked = body(input=CALLS)
    parsed = forms.parse(to_chat(asked), LIMITS)
    media = tuple(MediaRef(s.type, s.param, url=s.url) for s in parsed.sources)
    chat = placed(asked, ChatRequest("echo", parsed.messages, media), None)

    assert [(m.role, m.parts, m.tool_call_id) for m in chat.messages] == [
        ("user", ("q",), None),
        ("assistant", ("let me look",), None),
        ("tool", ("four",), "call_1"),
        ("tool", ("a", 0), "call_2"),
    ]
    assert [call["function"]["name"] for call in chat.messages[1].tool_calls] == ["f", "g"]
    assert chat.media[0].param == "input[5].output[1]"


def test_input_items_are_what_was_sent_item_by_item():
    asked = body(input=CALLS, instructions="be brief")
    parsed = forms.parse(to_chat(asked), LIMITS)
    media = tuple(MediaRef(s.type, s.param, url=s.url) for s in parsed.sources)
    chat = placed(asked, ChatRequest("echo", parsed.messages, media), None)
    spec = to_spec(asked, None)

    items = view.input_items("job_" + "0a" * 16, chat, spec)

    assert [(item["id"][:3], item["type"], item.get("call_id")) for item in items] == [
        ("msg", "message", None),
        ("msg", "message", None),
        ("fc_", "function_call", "call_1"),
        ("fc_", "function_call", "call_2"),
        ("fco", "function_call_output", "call_1"),
        ("fco", "function_call_output", "call_2"),
    ]
    for item in items:
        check(item, ResponseItem)


@pytest.mark.parametrize("name", FORMS)
def test_an_input_is_read_in_every_form(name: str):
    given_input, expected = FORMS[name]

    assert turns(body(input=given_input)) == expected


REFUSED_FILES = {
    "a document": {"file_data": "data:application/pdf;base64,YWJj", "filename": "a.pdf"},
    "a document whose name says picture": {
        "file_data": "data:text/plain;base64,YWJj", "filename": "a.png",
    },
    "a file of no known kind": {"file_id": FILE},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_file_that_is_no_medium_is_refused_with_its_place(name: str):
    part = {"type": "input_file"} | REFUSED_FILES[name]

    with pytest.raises(MediaUnsupported, match="only pictures and videos") as refused:
        to_chat(body(input=[{"role": "user", "content": [text("q"), part]}]))

    assert refused.value.param == "input[0].content[1]"


REFUSED = {
    "two places of a picture": {"input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": A, "file_id": FILE}]}]},
    "no place of a video": {"input": [{"role": "user", "content": [{"type": "input_video"}]}]},
    "a picture that the assistant said": {"input": [{"role": "assistant", "content": [
        {"type": "input_image", "image_url": A}]}]},
    "no items": {"input": []},
    "no parts": {"input": [{"role": "user", "content": []}]},
    "an unknown field": {"inputs": "x"},
    "a conversation": {"conversation": "conv_1"},
    "truncation": {"truncation": "auto"},
    "reasoning": {"reasoning": {"effort": "high"}},
    "another tier": {"service_tier": "flex"},
    "verbosity": {"text": {"verbosity": "low"}},
    "a tool of OpenAI's": {"tools": [{"type": "web_search"}]},
    "an unknown include": {"include": ["everything"]},
    "padding": {"stream": True, "stream_options": {"include_obfuscation": True}},
    "background without store": {"background": True, "store": False},
    "retention without store": {"retention_s": 600, "store": False},
    "half a surrogate pair": {"instructions": "\ud83d"},
    "a key without bounds": {"user": "x" * 513},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(name: str):
    with pytest.raises(ValueError, match="validation error"):
        body(**REFUSED[name])


def test_neutral_values_are_taken():
    body(
        truncation="disabled", service_tier="auto", reasoning={"effort": None, "summary": "auto"},
        text={"format": {"type": "text"}, "verbosity": "medium"}, conversation=None, prompt=None,
        include=["reasoning.encrypted_content"], stream_options={"include_obfuscation": False},
        store=None, background=None, stream=None, tools=[], max_tool_calls=3,
    )  # fmt: skip


def options(**given_options: Any) -> dict[str, Any]:
    chat = to_chat(body(**given_options))
    return forms.to_request(chat, "echo", forms.parse(chat, LIMITS), ()).options


def test_options_get_the_names_of_the_jobs_door():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}

    assert options() == {}
    assert options(max_output_tokens=5, temperature=0.5, top_p=0.9, seed=1, stop="x") == {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"],
    }  # fmt: skip
    assert options(text={"format": {"type": "json_object"}}) == {
        "response_format": {"type": "json_object"}
    }
    assert options(text={"format": {"type": "json_schema", "name": "n", "schema": schema}}) == {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    }
    assert options(text={"format": {"type": "text"}}) == {}
    assert options(top_logprobs=2) == {"logprobs": True, "top_logprobs": 2}
    assert options(include=["message.output_text.logprobs"]) == {"logprobs": True}


def test_functions_get_the_form_of_the_jobs_door():
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}

    assert options(tools=[tool], tool_choice={"type": "function", "name": "f"}) == {
        "tools": [{
            "type": "function",
            "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
        }],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }  # fmt: skip


def test_the_spec_says_how_and_how_long():
    asked = body(priority="high", timeout_s=5, retention_s=600, metadata={"k": "v"})

    spec = to_spec(asked, None)

    assert (spec.priority, spec.timeout_s, spec.retention_s) == (Priority.HIGH, 5, 600)
    assert (spec.door, spec.metadata) == (Door.RESPONSES, {"k": "v"})


def test_what_is_not_stored_outlives_its_end_for_minutes_only():
    asked = body(store=False)

    assert (to_spec(asked, None).retention_s or 0) <= 600


TURN = {"role": "user", "content": [text("q"), text("r")]}
PLACES = [
    ("messages", "input"),
    ("messages[2].content[1]", "input[2].content[1]"),
    ("query", "input"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("temperature", "temperature"),
    ("video.frames", "video.frames"),
    ("tools[1].function.parameters", "tools[1].parameters"),
    ("response_format.json_schema.schema", "text.format.schema"),
]


@pytest.mark.parametrize(("theirs", "ours"), PLACES)
def test_places_are_told_as_the_caller_wrote_them(theirs: str, ours: str):
    assert as_written(theirs, body(input=[TURN] * 3)) == ours


def test_thoughts_that_are_left_out_do_not_move_the_places_behind_them():
    asked = body(input=[{"type": "reasoning", "id": "rs_1", "summary": []},
                        {"role": "user", "content": "q"}])  # fmt: skip

    assert [message.role for message in to_chat(asked).messages or ()] == ["user"]
    assert as_written("messages[0].content[0]", asked) == "input[1].content"


def test_a_text_has_no_places_inside():
    assert as_written("messages[0].content[0]", body()) == "input"


@pytest.mark.parametrize("param", [None, "messages[0].content[0]"])
def test_a_complaint_keeps_its_kind_and_sentence(param: str | None):
    error = renamed(MediaUnreadable("broken", param=param), body())

    assert (type(error), error.message) == (MediaUnreadable, "broken")
    assert error.param == (param and "input")


@given(st.text(max_size=200))
def test_any_text_is_asked_as_it_is(words: str):
    assert to_chat(body(input=words)).messages[0].content[0].text == words  # type: ignore[union-attr,index]


# --- going on from an earlier response ------------------------------------------------------------

EARLIER_ID = "resp_" + "0b" * 16
FIRST = ChatRequest(
    "echo",
    (Message("system", ("old rules",)), Message("user", (0, "how many?"))),
    (MediaRef("image", "input[0].content[0]", url=A),),
    query="<image>how many?",
)
FOUR = output.message(EARLIER_ID, output.text_part("four"), "completed")
CALLED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def earlier(**changed: Any) -> Earlier:
    made = Earlier(
        request=FIRST,
        prepared=(PICTURE,),
        output=[FOUR],
        items=[{"id": "msg_x_0", "role": "user"}],
        links=[{"url": A}],
        has_instructions=True,
    )
    return replace(made, **changed)


def continued(asked: ResponseBody, before: Earlier) -> ChatRequest:
    return placed(asked, question("and now?", pictures=1), before)


def test_earlier_turns_come_first_without_their_instructions():
    asked = body(instructions="new rules", previous_response_id=EARLIER_ID)

    chat = continued(asked, earlier())

    assert chat.messages == (
        Message("system", ("new rules",)),
        Message("user", (0, "how many?")),
        Message("assistant", ("four",)),
        Message("user", (1, "and now?")),
    )
    assert chat.history == (("<image>how many?", "four"),)
    assert chat.query == "<image>and now?"


def test_an_earlier_picture_is_referred_to_by_what_it_holds():
    chat = continued(body(), earlier())

    assert chat.media == (
        MediaRef("image", "previous_response_id", object_key=media_key(PICTURE.sha256)),
        MediaRef("image", "images[0]", url="https://example.com/0.png"),
    )


def test_an_earlier_response_without_media_lends_its_turns_alone():
    plain = replace(FIRST, messages=(Message("user", ("q",)),), media=())

    chat = continued(body(), earlier(request=plain, prepared=(), links=[], has_instructions=False))

    assert [message.role for message in chat.messages] == ["user", "assistant", "user"]
    assert chat.messages[-1].parts == (0, "and now?")


def test_the_envelope_names_every_item_and_where_its_media_are():
    asked = body(
        input=[
            {"role": "developer", "content": "x"},
            {"role": "user", "content": [
                {"type": "input_image", "image_url": "data:image/png;base64,YWJj"},
                {"type": "input_image", "file_id": FILE},
                {"type": "input_video", "video_url": V},
            ]},
        ]
    )  # fmt: skip

    kept = envelope(asked, earlier())

    assert kept["items"] == [
        {"id": "msg_x_0", "role": "user"},
        {"id": "msg_" + "0b" * 16, "role": "assistant"},
        {"id": None, "role": "developer"},
        {"id": None, "role": "user"},
    ]
    assert kept["links"] == [{"url": A}, {}, {"file_id": FILE}, {"url": V}]


def test_earlier_calls_are_turns_of_the_model_and_their_items_keep_their_names():
    thought = output.reasoning(EARLIER_ID, "hm", "completed")
    called = output.call(EARLIER_ID, 0, CALLED)
    before = earlier(output=[thought, FOUR, called])
    asked = body(input=[{"type": "function_call_output", "call_id": "call_1", "output": "x"}])

    chat = placed(asked, question("x"), before)

    assert chat.messages[1] == Message("assistant", ("four",), (CALLED,))
    assert [item["id"] for item in envelope(asked, before)["items"]] == [
        "msg_x_0", FOUR["id"], called["id"], None,
    ]  # fmt: skip


def test_bytes_of_a_body_are_not_kept_twice():
    data = "YWJj" * 100
    asked = body(input=[{"role": "user", "content": [
        {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}]}])  # fmt: skip

    assert data not in repr(envelope(asked, None))


def test_a_body_that_the_jobs_door_would_refuse_is_refused_with_a_sentence():
    too_late = body(max_output_tokens=5).model_copy(update={"max_output_tokens": 0})

    with pytest.raises(InvalidRequest) as refused:
        to_chat(too_late)

    assert "greater than or equal to 1" in refused.value.message
