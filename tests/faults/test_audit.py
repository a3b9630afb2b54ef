"""That the books find what they are there to find."""

from dataclasses import replace

from tests.faults.audit import Record, judge
from tests.faults.ledger import Entry
from tests.faults.watch import Blow, Watch
from worker.contract.events import Event, delta_data

BOTH = frozenset({"one", "two"})


def entry(number: int = 0, *, outcome: str | None = "completed") -> Entry:
    """Return a caller who read `ab` to its end, or (outcome None) is still waiting."""
    made = Entry(number, "q", "ab", key="k", is_streamed=True, has_picture=False)
    made.accepted(f"job_{number}")
    for seq, text in ((1, ""), (2, ""), (3, "a"), (4, "b")):
        made.saw(seq, text)
    if outcome is not None:
        made.ended(outcome, "ab")
    return made


def record(number: int = 0) -> Record:
    """Return what Redis holds of it."""
    events = (
        claim(2, attempt=1, at_ms=1_000),
        Event(3, "delta", delta_data("a", 1)),
        Event(4, "delta", delta_data("b", 1)),
        Event(5, "completed", "{}"),
    )
    return Record(f"job_{number}", "completed", 1, "ab", "", events)


def claim(seq: int, *, attempt: int, at_ms: int) -> Event:
    said = f'{{"status":"in_progress","stage":"","attempt":{attempt},"at":{at_ms}}}'
    return Event(seq, "status", said)


def test_an_undisturbed_job_is_clean():
    verdict = judge("x", [entry()], {"job_0": record()})

    assert verdict.is_clean
    assert (verdict.accepted, verdict.completed, verdict.lost) == (1, 1, 0)


def test_a_job_that_redis_does_not_know_is_lost():
    verdict = judge("x", [entry(outcome=None)], {})

    assert (verdict.lost, verdict.is_clean) == (1, False)


def test_a_job_that_never_ended_is_lost():
    waiting = replace(record(), status="in_progress")

    verdict = judge("x", [entry(outcome=None)], {"job_0": waiting})

    assert (verdict.lost, verdict.is_clean) == (1, False)


def test_two_last_events_are_two_outcomes():
    twice = replace(record(), events=(*record().events, Event(6, "failed", "{}")))

    verdict = judge("x", [entry()], {"job_0": twice})

    assert (verdict.twice, verdict.is_clean) == (1, False)


def test_a_caller_who_was_told_another_end_than_is_stored_was_told_two():
    verdict = judge("x", [entry(outcome="failed")], {"job_0": record()})

    assert (verdict.twice, verdict.is_clean) == (1, False)


def test_a_second_job_under_one_key_is_found():
    asked_again = entry()
    asked_again.accepted("job_9")

    verdict = judge("x", [asked_again], {"job_9": record(9)})

    assert (verdict.twice, verdict.is_clean) == (1, False)


def test_a_missing_event_tears_a_stream():
    reader = Entry(0, "q", "ab", key="", is_streamed=True, has_picture=False)
    reader.accepted("job_0")
    for seq, text in ((1, ""), (2, ""), (4, "b")):
        reader.saw(seq, text)
    reader.ended("completed", "ab")

    verdict = judge("x", [reader], {"job_0": record()})

    assert verdict.torn == 2  # the number is missing, and so is the text
    assert not verdict.is_clean


def test_a_repeated_event_tears_a_stream():
    reader = entry(outcome=None)

    reader.saw(4, "b")
    reader.ended("completed", "ab")

    assert judge("x", [reader], {"job_0": record()}).torn == 2


def test_an_answer_that_is_not_the_undisturbed_one_is_torn():
    spoiled = replace(record(), text="aab")

    verdict = judge("x", [entry()], {"job_0": spoiled})

    assert (verdict.torn > 0, verdict.is_clean) == (True, False)


def test_a_job_that_nobody_was_told_of_is_counted_apart():
    verdict = judge("x", [entry()], {"job_0": record(), "job_1": record(1)})

    assert (verdict.half_accepted, verdict.is_clean) == (1, True)


def taken_over(*, again_at_ms: int) -> Record:
    """Return a job that worker `one` had from 1 000 ms on and lost, and another then claimed."""
    events = (
        claim(2, attempt=1, at_ms=1_000),
        Event(3, "delta", delta_data("a", 1)),
        claim(4, attempt=2, at_ms=again_at_ms),
        Event(5, "delta", delta_data("b", 1)),
        Event(6, "completed", "{}"),
    )
    return replace(record(), attempt=2, events=events, owners={1: "one"})


def watched(*looks: tuple[int, frozenset[str]]) -> Watch:
    """Return a watch that saw these owners ready at these moments."""
    return Watch(looks=list(looks))


def test_a_take_over_is_measured_from_the_strike_on_the_worker_that_had_the_job():
    blows = [Blow(500, BOTH), Blow(1_200, frozenset({"two"})), Blow(1_500, frozenset({"one"}))]
    watch = watched((1_100, BOTH), (1_600, BOTH), (2_100, BOTH))

    verdict = judge("x", [], {"job_0": taken_over(again_at_ms=2_200)}, blows, watch)

    assert (verdict.takeovers_s, verdict.stranded_s, verdict.more_attempts) == ([0.7], [], 1)


def test_a_strike_that_hit_no_worker_counts_from_the_first():
    watch = watched((1_100, BOTH), (2_100, BOTH))

    verdict = judge(
        "x", [], {"job_0": taken_over(again_at_ms=2_200)}, [Blow(1_200), Blow(1_500)], watch
    )

    assert verdict.takeovers_s == [1.0]


def test_a_job_for_which_nobody_lived_for_a_moment_is_counted_apart():
    watch = watched((1_100, BOTH), (1_550, frozenset({"two"})), (1_650, frozenset()), (1_750, BOTH))
    blows = [Blow(1_500, frozenset({"one"}))]

    verdict = judge("x", [], {"job_0": taken_over(again_at_ms=4_500)}, blows, watch, promised_s=2)

    assert (verdict.takeovers_s, verdict.stranded_s, verdict.late) == ([], [3.0], 0)


def test_the_worker_that_was_struck_is_not_one_that_lived():
    still_says_so = watched((1_550, frozenset({"one"})), (1_650, frozenset({"one"})))
    blows = [Blow(1_500, frozenset({"one"}))]

    verdict = judge("x", [], {"job_0": taken_over(again_at_ms=1_700)}, blows, still_says_so)

    assert verdict.stranded_s == [0.2]


def test_a_take_over_that_took_longer_than_promised_is_late():
    watch = watched((1_550, BOTH), (3_900, BOTH))
    blows = [Blow(1_500, frozenset({"one"}))]

    verdict = judge("x", [], {"job_0": taken_over(again_at_ms=4_000)}, blows, watch, promised_s=2)

    assert (verdict.takeovers_s, verdict.late) == ([2.5], 1)
