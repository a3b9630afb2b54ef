"""Both body forms: the guide's rules as a table, its errors, and what holds for any text."""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.contract import forms
from worker.contract.body import JobBody
from worker.contract.errors import JobError
from worker.contract.forms import Parsed
from worker.contract.job import MediaRef, Message, Priority, VideoPolicy
from worker.contract.settings import Settings

LIMITS = Settings(
    _env_file=None,
    FOREBAY_IMAGE_MAX_BYTES=100,
    FOREBAY_VIDEO_MAX_BYTES=200,
    FOREBAY_MEDIA_MAX_PARTS=4,
    FOREBAY_MAX_TEXT_BYTES=1000,
)
A, B, V = "http://host/a.png", "https://host/b.png", "https://host/v.mp4"
FILE = "file_" + "0a" * 16


def parsed(limits: Settings = LIMITS, **body: Any) -> Parsed:
    return forms.parse(JobBody.model_validate(body), limits)


def turns(result: Parsed) -> list[tuple[str, list[str]]]:
    """Return roles and parts, a medium shown as [where it is]."""
    where = [s.url or s.file_id or repr(s.data) for s in result.sources]
    return [
        (m.role, [p if isinstance(p, str) else f"[{where[p]}]" for p in m.parts])
        for m in result.messages
    ]


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content[0] if len(content) == 1 else list(content)}]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


SWIFT = {
    "D3.1 placeholder and list": (
        {"query": "<image>描述图片", "images": [A]},
        [("user", [f"[{A}]", "描述图片"])],
    ),
    "D3.2 text only": ({"query": "你是谁？"}, [("user", ["你是谁？"])]),
    "D3.3 two inline tags": (
        {"query": f"<img>{A}</img><img>{B}</img>What is the difference?"},
        [("user", [f"[{A}]", f"[{B}]", "What is the difference?"])],
    ),
    "D3.4 one inline tag": (
        {"query": f"<img>{A}</img>描述图片"},
        [("user", [f"[{A}]", "描述图片"])],
    ),
    "D3.5 video placeholder and list": (
        {"query": "<video>描述视频", "videos": [V]},
        [("user", [f"[{V}]", "描述视频"])],
    ),
    "an inline video": (
        {"query": f"<video>{V}</video>描述视频"},
        [("user", [f"[{V}]", "描述视频"])],
    ),
    "D3.7 fewer placeholders than media": (
        {"query": "what? <image>", "history": [("before", "yes")], "images": [A, B]},
        [("user", [f"[{B}]", "before"]), ("assistant", ["yes"]), ("user", ["what? ", f"[{A}]"])],
    ),
    "no placeholder at all": (
        {"query": "what?", "images": [A], "videos": [V]},
        [("user", [f"[{A}]", f"[{V}]", "what?"])],
    ),
    "D3.7 a bare string is a list of one": (
        {"query": "<image>q", "images": A},
        [("user", [f"[{A}]", "q"])],
    ),
    "both kinds in the order of the text": (
        {"query": "1<video>2<image>3<image>4", "images": [A, B], "videos": [V]},
        [("user", ["1", f"[{V}]", "2", f"[{A}]", "3", f"[{B}]", "4"])],
    ),
    "tags of one kind beside a list of the other": (
        {"query": f"<img>{A}</img><video>q", "videos": [V]},
        [("user", [f"[{A}]", f"[{V}]", "q"])],
    ),
    "D4.2 placeholders of the history first": (
        {"query": "and <image> this?", "history": [("<image>q", "四只羊")], "images": [A, B]},
        [
            ("user", [f"[{A}]", "q"]),
            ("assistant", ["四只羊"]),
            ("user", ["and ", f"[{B}]", " this?"]),
        ],
    ),
    "D4.3 tags of the history are read again": (
        {"query": "and now?", "history": [(f"<img>{A}</img>q", "a <image> b")]},
        [("user", [f"[{A}]", "q"]), ("assistant", ["a <image> b"]), ("user", ["and now?"])],
    ),
    "an upload": ({"query": "<image>q", "images": [FILE]}, [("user", [f"[{FILE}]", "q"])]),
    "bare base64": (
        {"query": "<image>q", "images": [base64.b64encode(b"data").decode()]},
        [("user", ["[b'data']", "q"])],
    ),
    "a data URL": (
        {"query": "<image>q", "images": ["data:image/png;base64,ZGF0YQ=="]},
        [("user", ["[b'data']", "q"])],
    ),
    "what only looks like a tag": (
        {"query": "a < b <images> </img> <img></img> <IMAGE>"},
        [("user", ["a < b <images> </img> <img></img> <IMAGE>"])],
    ),
}

OPENAI = {
    "D8.3 media first": (
        {"messages": user(image(A), text("q"))},
        [("user", [f"[{A}]", "q"])],
    ),
    "D8.7 text first": (
        {"messages": user(text("q"), image(A), text("r"))},
        [("user", ["q", f"[{A}]", "r"])],
    ),
    "a video by its bare URL": (
        {"messages": user(text("q"), {"type": "video_url", "video_url": V})},
        [("user", ["q", f"[{V}]"])],
    ),
    "an upload by its id": (
        {"messages": user({"type": "image_url", "image_url": {"file_id": FILE}}, text("q"))},
        [("user", [f"[{FILE}]", "q"])],
    ),
    "system, developer and earlier turns": (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "developer", "content": "d"},
                {"role": "user", "content": "q1"},
                {"role": "assistant", "content": f"<img>{A}</img>"},
                {"role": "user", "content": "q2"},
            ]
        },
        [
            ("system", ["s"]),
            ("system", ["d"]),
            ("user", ["q1"]),
            ("assistant", [f"<img>{A}</img>"]),
            ("user", ["q2"]),
        ],
    ),
    "D8.8 a plain text with tags": (
        {"messages": user(f"<img>{A}</img>q")},
        [("user", [f"[{A}]", "q"])],
    ),
    "D8.8 a plain text with placeholders and a list": (
        {"messages": user("<image>q<image>"), "images": [A, B]},
        [("user", [f"[{A}]", "q", f"[{B}]"])],
    ),
    "D8.9 a list without placeholders": (
        {"messages": user("q"), "images": [A]},
        [("user", [f"[{A}]", "q"])],
    ),
    "a placeholder without any list is text": (
        {"messages": user("what does <image> mean?")},
        [("user", ["what does <image> mean?"])],
    ),
    "tags in a text part are text": (
        {"messages": user(text(f"<img>{A}</img>"), text("q"))},
        [("user", [f"<img>{A}</img>", "q"])],
    ),
}


@pytest.mark.parametrize("case", [*SWIFT, *OPENAI])
def test_a_body_becomes_these_turns(case: str):
    body, expected = (SWIFT | OPENAI)[case]

    assert turns(parsed(**body)) == expected


BAD = {
    "more placeholders than pictures": (
        {"query": "<image><image>q", "images": [A]},
        ("invalid_request", "images", "2 <image> placeholders but 1 images"),
    ),
    "placeholders and no list": (
        {"query": "<video>q"},
        ("invalid_request", "videos", "1 <video> placeholders but 0 videos"),
    ),
    "placeholders of the history count": (
        {"query": "<image>q", "history": [("<image>", "a")], "images": [A]},
        ("invalid_request", "images", "2 <image> placeholders but 1 images"),
    ),
    "tags beside a list": (
        {"query": f"<img>{A}</img>q", "images": [B]},
        ("invalid_request", "images", "not both"),
    ),
    "tags beside placeholders": (
        {"query": f"<img>{A}</img><image>q", "images": []},
        ("invalid_request", "images", "not both"),
    ),
    "a URL of more than 8192 characters": (
        {"query": f"<video>q<img>{B + 8192 * 'x'}</img>", "videos": [V]},
        ("invalid_request", "query", "longer than 8192"),
    ),
    "broken base64 in a data URL": (
        {"query": "<image>q", "images": ["data:image/png;base64,@@@"]},
        ("media_unreadable", "images[0]", "base64 is broken"),
    ),
    "cut base64 in a data URL": (
        {"messages": user(text("q"), image("data:image/png;base64,ZGF0Y"))},
        ("media_unreadable", "messages[0].content[1]", "base64 is broken"),
    ),
    "a data URL that is not base64": (
        {"query": "<image>q", "images": ["data:text/plain,hello"]},
        ("media_unsupported", "images[0]", "data:<type>;base64"),
    ),
    "an empty data URL": (
        {"query": "<image>q", "images": ["data:image/png;base64,"]},
        ("media_unreadable", "images[0]", "no bytes"),
    ),
    "an empty reference": (
        {"query": "<image>q", "images": [""]},
        ("media_unreadable", "images[0]", "no bytes"),
    ),
    "a path on the server": (
        {"query": "<img>/etc/passwd</img>q"},
        ("media_unreadable", "query", "not opened"),
    ),
    "another scheme": (
        {"query": "<image>q", "images": ["file:///etc/passwd"]},
        ("media_unreadable", "images[0]", "not opened"),
    ),
    "a picture over the limit": (
        {"query": "<image>q", "images": [base64.b64encode(bytes(101)).decode()]},
        ("media_too_large", "images[0]", "the limit is 100"),
    ),
    "a video over the limit": (
        {"query": "<video>q", "videos": [base64.b64encode(bytes(201)).decode()]},
        ("media_too_large", "videos[0]", "the limit is 200"),
    ),
    "too many parts": (
        {"query": "q", "images": [A] * 5},
        ("media_too_large", "images[4]", "5 pictures and videos; the limit is 4"),
    ),
    "too much text": (
        {"query": "四" * 334},
        ("text_too_large", "messages", "1002 bytes of text; the limit is 1000"),
    ),
    "too much text in the history": (
        {"query": "q", "history": [("x" * 500, "y" * 500)]},
        ("text_too_large", "messages", "the limit is 1000"),
    ),
    "no question": ({"query": ""}, ("invalid_request", "query", "no question")),
    "no user turn at the end": (
        {"messages": [*user("q"), {"role": "assistant", "content": "a"}]},
        ("invalid_request", "messages", "the last message must be the user's"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_refused_with_code_place_and_reason(case: str):
    body, (code, param, reason) = BAD[case]

    with pytest.raises(JobError) as caught:
        parsed(**body)

    assert (caught.value.code, caught.value.param) == (code, param)
    assert reason in caught.value.message


@pytest.mark.parametrize("size", [97, 98, 99, 100])
def test_a_picture_just_within_the_limit_is_taken(size: int):
    result = parsed(query="<image>q", images=[base64.b64encode(bytes(size)).decode()])

    assert result.sources[0].data == bytes(size)


@pytest.mark.parametrize(
    ("place", "body"),
    [
        ("images[1]", {"query": "<image>x<image>", "images": [A, B]}),
        ("query", {"query": f"<img>{A}</img>q<img>{B}</img>"}),
        ("history[0][0]", {"query": "q", "history": [(f"<img>{A}</img>", "a")]}),
        ("messages[0].content[1]", {"messages": user(text("q"), image(A))}),
        ("messages[0].content", {"messages": user(f"<img>{A}</img>")}),
    ],
)
def test_every_medium_knows_its_place_in_the_body(place: str, body: dict[str, Any]):
    assert parsed(**body).sources[-1].param == place


def test_the_history_is_what_was_sent_and_the_query_verbatim():
    history = [(f"<img>{A}</img>q", "四只")]

    result = parsed(query="<video>and?", history=history, videos=[V])

    assert result.query == "<video>and?"
    assert result.history == tuple(history)


def test_messages_give_pairs_with_placeholders_for_media():
    messages = [
        {"role": "system", "content": "s"},
        *user(image(A), text("q1")),
        {"role": "assistant", "content": "a1"},
        *user(text("q2"), image(B)),
    ]

    result = parsed(messages=messages)

    assert result.history == (("<image>q1", "a1"),)
    assert result.query == "q2<image>"


def test_the_body_is_not_changed():
    body = JobBody.model_validate({"query": "q<image>", "images": [A], "history": [("a", "b")]})
    before = body.model_dump()

    forms.parse(body, LIMITS)

    assert body.model_dump() == before


def test_only_given_options_go_to_the_engine_and_stop_is_a_list():
    body = JobBody(query="q", temperature=0, seed=7, stop="。", video={"fps": 2, "end_s": 3})

    request = forms.to_request(body, "m", forms.parse(body, LIMITS), ())

    assert request.options == {"temperature": 0, "seed": 7, "stop": ["。"]}
    assert request.video == VideoPolicy(fps=2, end_s=3)


def test_what_is_asked_beside_the_question_becomes_the_spec():
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    body = JobBody(
        query="q", priority="high", not_before=moment, retention_s=60, timeout_s=5,
        start_deadline_s=9, metadata={"k": "v"},
    )  # fmt: skip

    spec = forms.to_spec(body)

    assert (spec.priority, spec.not_before_ms) == (Priority.HIGH, int(moment.timestamp() * 1000))
    assert (spec.retention_s, spec.timeout_s, spec.start_deadline_s) == (60, 5, 9)
    assert spec.metadata == {"k": "v"}


def test_a_request_survives_its_wire_form():
    body = JobBody(query="<image>q", images=[A], history=[("a", "b")], top_k=3)
    media = [MediaRef("image", "images[0]", url=A)]
    request = forms.to_request(body, "m", forms.parse(body, LIMITS), media)

    assert type(request).from_dict(request.as_dict()) == request


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12)
PIECES = st.lists(st.one_of(WORDS, st.sampled_from(["<image>", "<video>"])), max_size=4)


@given(PIECES)
def test_placeholders_keep_their_order_and_texts_stay_verbatim(pieces: list[str]):
    counts = {kind: pieces.count(f"<{kind}>") for kind in ("image", "video")}
    images = [f"http://host/{n}.png" for n in range(counts["image"])]
    videos = [f"http://host/{n}.mp4" for n in range(counts["video"])]
    query = "".join(pieces) + "?"

    (message,) = (result := parsed(query=query, images=images, videos=videos)).messages

    again = "".join(
        part if isinstance(part, str) else f"<{result.sources[part].type}>"
        for part in message.parts
    )
    used = [result.sources[part] for part in message.parts if isinstance(part, int)]
    assert again == query == result.query
    assert [source.url for source in used if source.type == "image"] == images
    assert [source.url for source in used if source.type == "video"] == videos


@given(st.lists(st.one_of(WORDS.map(text), st.sampled_from([image(A), image(B)])), max_size=4))
def test_openai_parts_stay_as_they_were_sent(parts: list[dict[str, Any]]):
    parts = [*parts, text("?")]
    sent = [p["text"] if p["type"] == "text" else f"[{p['image_url']['url']}]" for p in parts]

    (message,) = turns(parsed(messages=[{"role": "user", "content": parts}]))

    assert message == ("user", sent)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_an_answer_in_the_history_is_never_read_for_tags(answer: str):
    result = parsed(query="q", history=[("before", answer)])

    assert result.messages[1] == Message("assistant", (answer,))
    assert result.sources == ()
