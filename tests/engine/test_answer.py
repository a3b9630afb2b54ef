"""Stop texts and what earlier attempts have sent, against a reading of the rules on whole texts."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.answer import AnswerText

_TEXT = st.text("ab羊c", max_size=24)
_STOPS = st.lists(st.text("ab羊c", min_size=1, max_size=4), max_size=3)


def _before_first_stop(text: str, stops: list[str]) -> str:
    """Return the text before the stop text that is complete first."""
    for end in range(1, len(text) + 1):
        found = [text.index(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@given(_TEXT, _STOPS, st.lists(st.integers(1, 5)))
def test_however_a_text_is_cut_it_ends_before_the_stop_text_that_is_complete_first(
    text: str, stops: list[str], sizes: list[int]
):
    answer, streamed, at = AnswerText(stops), "", 0

    for size in [*sizes, len(text)]:
        streamed += answer.push(text[at : at + size])
        at += size
    streamed += answer.finish()

    assert streamed == _before_first_stop(text, stops)
    assert answer.is_stopped == (streamed != text or any(text.endswith(s) for s in stops))


@given(_TEXT, _STOPS, st.integers(0, 24))
def test_what_was_sent_before_is_not_sent_again(text: str, stops: list[str], sent: int):
    whole = _before_first_stop(text, stops)
    already = whole[:sent]
    answer = AnswerText(stops, already)

    streamed = "".join(map(answer.push, text)) + answer.finish()

    assert already + streamed == whole


def test_only_what_could_still_become_a_stop_text_is_held_back():
    answer = AnswerText(["STOP"])

    assert [answer.push(piece) for piece in ("xS", "T", "x", "ST")] == ["x", "", "STx", ""]
    assert answer.finish() == "ST"
