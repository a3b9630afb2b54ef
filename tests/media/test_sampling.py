"""Which moments of a video are looked at."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.contract.errors import InvalidRequest, MediaTooLarge, MediaUnreadable
from worker.contract.job import VideoPolicy
from worker.media.sampling import check_length, frames_at, length, moments


def test_by_default_the_middle_of_each_of_eight_segments_is_taken() -> None:
    found = moments(16.0, VideoPolicy(), 64)

    assert found == [1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VideoPolicy(frames=1), [5]),
        (VideoPolicy(frames=2), [2.5, 7.5]),
        (VideoPolicy(fps=0.5), [1, 3, 5, 7, 9]),
        (VideoPolicy(fps=0.01), [5]),
        (VideoPolicy(frames=2, start_s=2, end_s=6), [3, 5]),
        (VideoPolicy(frames=1, start_s=8), [9]),
        (VideoPolicy(frames=1, end_s=99), [5]),
    ],
)
def test_a_policy_says_how_many_and_from_where(
    policy: VideoPolicy, expected: Sequence[float]
) -> None:
    found = moments(10.0, policy, 64)

    assert found == pytest.approx(expected)


def test_frames_per_second_are_capped_by_the_limit() -> None:
    found = moments(10.0, VideoPolicy(fps=30), 16)

    assert len(found) == 16


def test_a_limit_below_the_default_lowers_the_default() -> None:
    found = moments(10.0, VideoPolicy(), 4)

    assert len(found) == 4


def test_more_frames_than_the_limit_are_refused() -> None:
    with pytest.raises(MediaTooLarge, match="limit is 64"):
        moments(10.0, VideoPolicy(frames=65), 64)


@pytest.mark.parametrize(
    "policy",
    [VideoPolicy(start_s=10), VideoPolicy(start_s=3, end_s=3), VideoPolicy(start_s=4, end_s=3),
     VideoPolicy(start_s=-1), VideoPolicy(end_s=0)],
)  # fmt: skip
def test_a_clip_without_length_is_refused(policy: VideoPolicy) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        moments(10.0, policy, 64)


@given(st.floats(0.1, 1000), st.integers(1, 64))
def test_moments_lie_inside_the_video_and_grow(duration_s: float, frames: int) -> None:
    found = moments(duration_s, VideoPolicy(frames=frames), 64)

    assert found == sorted(found)
    assert 0 < found[0] <= found[-1] < duration_s


def test_a_moment_shows_the_frame_that_is_on_screen_then() -> None:
    uneven = [0.0, 0.1, 2.0, 2.1]

    assert frames_at([0.05, 1.9, 2.05, 9.0], uneven) == [0, 1, 2, 3]


def test_a_short_video_gives_each_of_its_frames_once() -> None:
    starts_s = [0.0, 0.5]

    assert frames_at(moments(length(starts_s), VideoPolicy(), 64), starts_s) == [0, 1]


def test_the_last_frame_counts_into_the_length() -> None:
    assert length([0.0, 0.5, 1.0, 1.5]) == pytest.approx(2.0)
    assert length([0.0]) > 0


def test_a_video_of_no_frames_is_unreadable() -> None:
    with pytest.raises(MediaUnreadable):
        length([])


def test_a_video_over_the_limit_is_refused() -> None:
    check_length(600, 600)
    with pytest.raises(MediaTooLarge, match=r"600.1 s"):
        check_length(600.1, 600)
