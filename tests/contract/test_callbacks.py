"""The plain rules of callbacks: where they may go, when they are tried again, what signs them."""

import pytest

from worker.contract.callbacks import (
    ENDINGS,
    SCHEDULE_S,
    EventType,
    check_url,
    filter_of,
    key_of,
    lane_of,
    new_secret,
    wait_s,
)
from worker.contract.errors import WebhookUrlInvalid
from worker.contract.guard import Guard

HOURS_75_S = 75 * 3600 + 35 * 60 + 5


@pytest.mark.parametrize(("step", "expected_s"), list(enumerate(SCHEDULE_S))[1:])
def test_each_step_waits_as_the_specification_says_give_or_take_a_tenth(
    step: int, expected_s: float
):
    shortest, middle, longest = (wait_s(step, chance=chance) for chance in (0, 0.5, 1))

    assert (shortest, middle, longest) == pytest.approx(
        (expected_s * 0.9, expected_s, expected_s * 1.1)
    )


def test_the_dice_stay_within_the_jitter():
    waits = [wait_s(2) for _ in range(500)]

    assert all(270 <= (wait or 0) <= 330 for wait in waits)
    assert len(set(waits)) > 400


def test_the_schedule_ends_after_ten_tries_and_seventy_five_hours():
    waits = [wait_s(step, chance=0.5) for step in range(1, 11)]

    assert waits[-1] is None
    assert sum(wait or 0 for wait in waits) == HOURS_75_S


@pytest.mark.parametrize(
    ("retry_after_s", "expected_s"),
    [(0, 5), (3, 5), (60, 60), (86_400, 86_400), (10**9, 86_400)],
)
def test_a_receiver_that_names_a_time_is_not_asked_sooner_nor_believed_for_ever(
    retry_after_s: float, expected_s: float
):
    assert wait_s(1, retry_after_s, chance=0.5) == expected_s


@pytest.mark.parametrize(
    "url",
    ["", "example.com/x", "ftp://example.com/x", "http://user:pass@example.com/", "http:///x",
     "http://exa mple.com/", "https://example.com/" + "x" * 2048, "http://127.0.0.1/",
     "http://169.254.169.254/latest", "http://[::1]/", "http://10.0.0.1:80/x",
     "http://[::ffff:10.0.0.1]/", "https://1.1.1.1:22/"],
)  # fmt: skip
def test_a_receiver_that_can_never_be_told_is_refused_at_once(url: str):
    with pytest.raises(WebhookUrlInvalid) as caught:
        check_url(url, Guard(), https_only=False, param="webhook_url")

    assert caught.value.param == "webhook_url"


@pytest.mark.parametrize(
    "url", ["http://example.com/", "https://example.com:443/a?b=c", "https://1.1.1.1/hook"]
)
def test_a_public_receiver_is_taken(url: str):
    assert check_url(url, Guard(), https_only=False, param="url").host in url


def test_a_receiver_inside_is_taken_once_it_is_allowed():
    guard = Guard.from_entries(["10.0.0.0/8", "hooks.internal"])

    for url in ("http://10.1.2.3:9000/x", "http://hooks.internal:9000/x"):
        assert check_url(url, guard, https_only=False, param="url")


def test_where_tls_is_wanted_a_plain_receiver_is_refused():
    with pytest.raises(WebhookUrlInvalid, match="https"):
        check_url("http://example.com/", Guard(), https_only=True, param="url")


def test_urls_of_one_origin_share_a_lane():
    lanes = {lane_of(url) for url in ("https://A.example/1?x=2", "https://a.example.:443/2")}

    assert lanes == {"https://a.example:443"}
    assert lane_of("http://a.example/") not in lanes


def test_who_does_not_say_what_it_wants_is_told_how_things_end():
    assert filter_of(()) == f" {' '.join(ENDINGS)} "
    assert EventType.JOB_STARTED not in ENDINGS
    assert len(ENDINGS) == len(EventType) - 1


def test_a_fresh_secret_is_one():
    assert len(key_of(new_secret())) == 32
    assert new_secret() != new_secret()
