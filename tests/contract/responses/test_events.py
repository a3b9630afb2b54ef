"""A job's log told as a response's events: one sequence, whoever reads it, from wherever."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent

from tests.support.openai_types import check
from tests.support.responses import SPEC, job
from worker.contract.events import Event, delta_data, joined
from worker.contract.responses import view
from worker.contract.responses.events import Telling

KINDS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
ENDS = ("completed", "failed", "cancelled", "expired")
JOB_ID = "job_" + "0a" * 16

Log = list[Event]


def status(word: str, stage: str = "waiting_engine") -> tuple[str, str]:
    return "status", json.dumps({"status": word, "stage": stage, "attempt": 1, "at": 5})


def delta(text: str, **more: Any) -> tuple[str, str]:
    return "delta", delta_data(text, 1, **more)


def entry(token: str) -> dict[str, Any]:
    data = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
    return data | {"top_logprobs": [data]}


def called(name: str) -> dict[str, Any]:
    return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}


def log_of(*happened: tuple[str, str]) -> Log:
    """Return a job's log; its first event, number 1, is never stored."""
    return [Event(number, kind, data) for number, (kind, data) in enumerate(happened, start=2)]


def text_of(log: Log) -> str:
    return "".join(event.text for event in log)


def told(log: Log, finish_reason: str | None = "stop") -> list[dict[str, Any]]:
    """Tell a log from its beginning to wherever it ends."""
    telling = Telling(view.blank(JOB_ID, "echo", 1.5, SPEC))
    events = telling.begin()
    for event in log:
        if event.is_last:
            ended = job(JOB_ID, event.kind, joined(log), finish_reason=finish_reason)
            events += telling.end(view.response(ended, SPEC))
        else:
            events += telling.tell(event)
    return events


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


statuses = st.sampled_from(["queued", "in_progress"]).flatmap(
    lambda word: st.sampled_from(["waiting_engine", "generating", "fetching"]).map(
        lambda stage: status(word, stage)
    )
)
texts = st.sampled_from(["", "羊", " a", "\n", "😀", "x" * 40])
entries = st.lists(texts.map(entry), max_size=3)
pieces = st.builds(
    lambda text, logprobs, calls: delta(text, logprobs=logprobs, tool_calls=calls),
    texts, entries, st.lists(st.sampled_from("fg").map(called), max_size=1),
)  # fmt: skip
thoughts = st.builds(
    lambda text, logprobs: delta("", reasoning=text, logprobs=logprobs), texts, entries
)
logs = st.builds(
    lambda before, body, end: log_of(status("in_progress"), *before, *body, (end, "{}")),
    st.lists(statuses | thoughts, max_size=5),
    st.lists(statuses | pieces, max_size=25),
    st.sampled_from(ENDS),
)


@given(logs, st.data())
def test_what_a_reader_has_seen_never_changes_with_what_comes(log: Log, data: st.DataObject):
    cut = data.draw(st.integers(0, len(log)))

    early, whole = told(log[:cut]), told(log)

    assert whole[: len(early)] == early


@given(logs, st.lists(st.integers(0, 80), max_size=6))
def test_readers_cut_anywhere_piece_the_same_sequence_together(log: Log, cuts: list[int]):
    whole, pieced = told(log), []

    for cut in [*sorted(cuts), len(whole)]:
        seen = pieced[-1]["sequence_number"] if pieced else -1
        pieced += [e for e in told(log) if seen < e["sequence_number"] < cut]

    assert pieced == whole
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))


@given(logs)
def test_deltas_join_to_the_text_of_every_later_event(log: Log):
    events = told(log)

    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    finals = [e for e in events if e["type"] == "response.output_text.done"]
    text = "".join(event["delta"] for event in deltas)
    assert text == text_of(log)
    assert [event["text"] for event in finals] == [text] * len(finals)
    if finals:
        logprobs = [entry for event in deltas for entry in event["logprobs"]]
        assert logprobs == finals[0]["logprobs"]
        assert len(logprobs) == len(joined(log).logprobs)


@given(logs)
def test_the_items_that_were_told_are_the_final_output(log: Log):
    events = told(log)

    done = [e for e in events if e["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == events[-1]["response"]["output"]
    assert [event["output_index"] for event in done] == list(range(len(done)))


@given(logs)
def test_all_that_is_opened_is_closed_before_the_next_and_before_the_end(log: Log):
    told_names = names(told(log))

    edges = [n for n in told_names if n.startswith(("output_item", "content_part"))]
    opened: list[str] = []
    for edge in edges:
        what, _, act = edge.partition(".")
        if act == "added":
            assert what not in opened
            opened.append(what)
        else:
            assert opened.pop() == what
    assert opened == []
    assert told_names.count("in_progress") <= 1
    assert told_names[-1] in {"completed", "failed", "incomplete"}


@given(logs)
def test_every_event_is_of_the_clients_types(log: Log):
    for event in told(log):
        check(event, KINDS[event["type"]])


def test_an_answer_is_told_in_openais_order():
    log = log_of(
        status("queued", "fetching"), status("in_progress"), status("in_progress", "generating"),
        delta("四"), delta(""), delta("只"), ("completed", "{}"),
    )  # fmt: skip

    assert names(told(log)) == [
        "created", "queued", "in_progress", "output_item.added", "content_part.added",
        "output_text.delta", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip


def test_thoughts_come_before_the_answer_and_calls_after_it():
    log = log_of(
        status("in_progress"), delta("", reasoning="hm"), delta("", tool_calls=[called("f")]),
        delta("a"), ("completed", "{}"),
    )  # fmt: skip

    assert names(told(log))[3:] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip


def test_a_call_alone_is_no_message():
    events = told(log_of(status("in_progress"), delta("", tool_calls=[called("f")]),
                         ("completed", "{}")))  # fmt: skip

    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["call_id"], item["name"]) == ("function_call", "call_f", "f")


def test_log_probabilities_of_what_shows_no_text_yet_go_with_the_next_that_does():
    log = log_of(
        status("in_progress"), delta("", logprobs=[entry("x")]),
        delta("羊", logprobs=[entry("y")]), ("completed", "{}"),
    )  # fmt: skip

    (piece,) = [e for e in told(log) if e["type"] == "response.output_text.delta"]
    assert [entry["token"] for entry in piece["logprobs"]] == ["x", "y"]


def test_a_job_taken_over_by_another_worker_is_in_progress_all_the_while():
    log = log_of(
        status("in_progress"), delta("a"), status("queued"), status("in_progress"), delta("b"),
        ("completed", "{}"),
    )  # fmt: skip

    assert names(told(log))[2:7] == [
        "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("end", "reason", "last", "status_inside", "item"),
    [
        ("completed", "stop", "completed", "completed", "completed"),
        ("completed", "length", "incomplete", "incomplete", "incomplete"),
        ("failed", None, "failed", "failed", "incomplete"),
        ("cancelled", None, "incomplete", "cancelled", "incomplete"),
        ("expired", None, "failed", "failed", "incomplete"),
    ],
)
def test_each_end_has_its_event(
    end: str, reason: str | None, last: str, status_inside: str, item: str
):
    events = told(log_of(status("in_progress"), delta("a"), (end, "{}")), reason)

    assert names(events)[-1] == last
    assert events[-1]["response"]["status"] == status_inside
    assert events[-2]["item"]["status"] == item


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
def test_an_end_before_the_first_word_has_no_item(end: str):
    assert names(told(log_of((end, "{}")), None))[:-1] == ["created", "queued"]


def test_an_answer_without_a_word_is_an_item_nevertheless():
    events = told(log_of(status("in_progress"), ("completed", "{}")))

    assert names(events)[3:] == [
        "output_item.added", "content_part.added", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
