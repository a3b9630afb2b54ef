"""Which frames of a video a model sees: pure arithmetic, no file and no decoder."""

from bisect import bisect_right
from collections.abc import Sequence

from worker.contract.errors import InvalidRequest, MediaTooLarge, MediaUnreadable
from worker.contract.job import VideoPolicy

DEFAULT_FRAMES = 8  # the guide's


def moments(duration_s: float, policy: VideoPolicy, max_frames: int) -> list[float]:
    """Return when to look, in seconds from the start of the video.

    The clip (`start_s` to `end_s`, cut to the video) is divided into equal segments and each is
    looked at in its middle: `policy.frames` segments, or `policy.fps` a second (at least one, at
    most `max_frames`), or `DEFAULT_FRAMES`.

    Raises:
        InvalidRequest: a clip without length, or one that begins after the video has ended.
        MediaTooLarge: more `frames` than `max_frames`.

    Source: the middle of each of N segments is how the guide's InternVL2 samples.
    """
    start_s, end_s = _clip(duration_s, policy)
    count = _count(end_s - start_s, policy, max_frames)
    segment_s = (end_s - start_s) / count
    return [start_s + (number + 0.5) * segment_s for number in range(count)]


def frames_at(wanted_s: Sequence[float], starts_s: Sequence[float]) -> list[int]:
    """Return the indexes of the frames that are on screen at the wanted moments, each once.

    `starts_s` is when each frame appears, ascending, from the first frame's 0. A video with fewer
    frames than moments gives fewer.
    """
    return sorted({max(0, bisect_right(starts_s, moment) - 1) for moment in wanted_s})


def length(starts_s: Sequence[float]) -> float:
    """Return how long a video plays, in seconds, its last frame as long as the average one.

    Raises:
        MediaUnreadable: it has no frames.
    """
    if not starts_s:
        raise MediaUnreadable("the video has no frames")
    if len(starts_s) == 1:
        return STILL_S
    return starts_s[-1] * len(starts_s) / (len(starts_s) - 1)


STILL_S = 0.04
"""How long a video of one frame is taken to play: a frame at 25 a second."""


def check_length(duration_s: float, max_s: float) -> None:
    """Raise MediaTooLarge for a video that is longer than `max_s`."""
    if duration_s > max_s:
        raise MediaTooLarge(f"the video is {duration_s:.1f} s long; the limit is {max_s:g} s")


def _clip(duration_s: float, policy: VideoPolicy) -> tuple[float, float]:
    start_s = policy.start_s or 0.0
    end_s = duration_s if policy.end_s is None else min(policy.end_s, duration_s)
    if start_s < 0 or not start_s < end_s:
        raise InvalidRequest(
            f"the clip from {start_s:g} s to {end_s:g} s is empty; the video is {duration_s:.2f} s"
        )
    return start_s, end_s


def _count(clip_s: float, policy: VideoPolicy, max_frames: int) -> int:
    if policy.fps is not None:
        return max(1, min(round(clip_s * policy.fps), max_frames))
    count = policy.frames or min(DEFAULT_FRAMES, max_frames)
    if count > max_frames:
        raise MediaTooLarge(f"{count} frames were asked for; the limit is {max_frames}")
    return count
