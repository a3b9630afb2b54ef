"""When an engine has died too often."""

import pytest

from worker.runtime.deaths import Deaths

NOBODY: frozenset[str] = frozenset()


def verdicts(*deaths: tuple[float, set[str] | frozenset[str]]) -> list[bool]:
    counted = Deaths()
    return [counted.are_too_many(inside, now_s) for now_s, inside in deaths]


@pytest.mark.parametrize("inside", [NOBODY, {"a", "b"}])
def test_the_third_death_within_ten_minutes_is_one_too_many(inside: frozenset[str]):
    assert verdicts((0, inside), (300, inside), (600, inside)) == [False, False, True]


def test_deaths_older_than_ten_minutes_are_forgotten():
    assert not any(verdicts(*((n * 301, NOBODY) for n in range(9))))


def test_a_job_that_dies_alone_with_the_engine_is_to_blame():
    assert not any(verdicts(*((n, {"a"}) for n in range(9))))


def test_who_is_to_blame_explains_the_deaths_at_which_others_were_there_too():
    deaths = [(n, {culprit, "other"}) for culprit in "abc" for n in range(2)]
    alone = [(9, {culprit}) for culprit in "abc"]

    told = verdicts(*deaths[:2], alone[0], *deaths[2:4], alone[1], *deaths[4:], alone[2])

    assert not any(told)


def test_who_is_to_blame_explains_no_death_of_others():
    assert verdicts((0, NOBODY), (1, {"b", "c"}), (2, {"a"}), (3, NOBODY)) == [
        False, False, False, True,
    ]  # fmt: skip
