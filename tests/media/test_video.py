"""The decoder process: exact frames from good files, clean errors from bad ones and bad luck."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support import media_files as files
from tests.support.decoders import living_decoders, until
from worker.contract.errors import (
    InvalidRequest,
    JobError,
    MediaDecoderCrashed,
    MediaDecoderTimeout,
)
from worker.contract.job import MediaProfile, VideoPolicy
from worker.contract.settings import Settings
from worker.media import video
from worker.media.order import Order, Sample

EIGHT_FRAMES = VideoPolicy()
FINE = MediaProfile(frame_max_pixels=10**6)
MakeOrder = Callable[..., Order]
Greys = Callable[[list[Sample]], list[float]]


@pytest.fixture
def order(tmp_path: Path) -> MakeOrder:
    """Write a video down and return the order to sample it."""

    def make(data: bytes, demuxer: str = "mov", *, policy: VideoPolicy = EIGHT_FRAMES,
             **limits: object) -> Order:  # fmt: skip
        path = tmp_path / "video"
        path.write_bytes(data)
        return video.order_for(
            path, tmp_path, demuxer, profile=FINE, policy=policy,
            limits=Settings(_env_file=None, **limits),
        )  # fmt: skip

    return make


@pytest.fixture
def greys(tmp_path: Path) -> Greys:
    """Return the even grey of each sampled frame, which is its number."""

    def measure(samples: list[Sample]) -> list[float]:
        return [Image.open(tmp_path / s.name).convert("L").getpixel((30, 40)) for s in samples]

    return measure


@pytest.mark.parametrize(
    ("form", "codec", "demuxer"),
    [
        ("mp4", "libx264", "mov"),
        ("webm", "libvpx", "matroska"),
        ("mpegts", "libx264", "mpegts"),
        ("avi", "mpeg4", "avi"),
        ("matroska", "libx265", "matroska"),
    ],
)
async def test_the_middle_frame_of_each_segment_is_exact(
    order: MakeOrder, greys: Greys, form: str, codec: str, demuxer: str
) -> None:
    data = files.video(form, codec=codec, frames=72, fps=36)

    found = await video.sample(order(data, demuxer), 30)

    assert [s.time_s for s in found] == pytest.approx([n / 36 for n in range(4, 72, 9)], abs=1e-3)
    assert greys(found) == pytest.approx([files.grey(n) for n in range(4, 72, 9)], abs=3)


async def test_what_an_edit_list_hides_is_not_seen(order: MakeOrder, greys: Greys) -> None:
    data = files.video(frames=64, fps=32, cut_frames=16)

    found = await video.sample(order(data), 30)

    assert [s.time_s for s in found] == pytest.approx([(n - 16) / 32 for n in range(19, 64, 6)])
    assert greys(found) == pytest.approx([files.grey(n) for n in range(19, 64, 6)], abs=3)


async def test_a_phones_video_is_turned_upright(order: MakeOrder) -> None:
    found = await video.sample(order(files.lying_video()), 30)

    assert (found[0].width, found[0].height) == (48, 64)


async def test_a_clip_is_cut_before_it_is_sampled(order: MakeOrder) -> None:
    policy = VideoPolicy(frames=2, start_s=0.5, end_s=1.5)

    found = await video.sample(order(files.video(frames=64, fps=32), policy=policy), 30)

    assert [s.time_s for s in found] == [0.75, 1.25]


async def test_a_video_of_one_frame_gives_it_once(order: MakeOrder) -> None:
    found = await video.sample(order(files.video(frames=1)), 30)

    assert [s.time_s for s in found] == [0.0]


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (files.sound_only(), {}, "media_unsupported"),
        (files.frameless_video(), {}, "media_unreadable"),
        (files.streamable_video()[:7000], {}, "media_unreadable"),
        (files.video()[:1700], {}, "media_unreadable"),
        (files.video(), {"FOREBAY_VIDEO_MAX_S": 1.5}, "media_too_large"),
        (files.video(), {"FOREBAY_VIDEO_MAX_PIXELS": 64 * 47}, "media_too_large"),
    ],
    ids=["sound only", "no frames", "cut off", "no header", "too long", "too many pixels"],
)
async def test_what_cannot_be_used_is_a_clean_error(
    order: MakeOrder, data: bytes, limits: dict[str, object], code: str
) -> None:
    with pytest.raises(JobError) as caught:
        await video.sample(order(data, **limits), 30)

    assert caught.value.code == code


async def test_a_clip_behind_the_end_is_the_requests_fault(order: MakeOrder) -> None:
    with pytest.raises(InvalidRequest, match=r"the video is 2.00 s"):
        await video.sample(order(files.video(), policy=VideoPolicy(start_s=2.5)), 30)


async def test_a_decoder_that_does_not_finish_is_killed(order: MakeOrder) -> None:
    work = asyncio.create_task(video.sample(order(files.video()), 1))
    await until(living_decoders)

    os.kill(living_decoders()[0], signal.SIGSTOP)

    with pytest.raises(MediaDecoderTimeout, match="within 1 s"):
        await work
    assert living_decoders() == []


@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
async def test_a_decoder_that_dies_costs_one_clean_error(
    order: MakeOrder, death: signal.Signals
) -> None:
    work = asyncio.create_task(video.sample(order(files.video()), 30))
    await until(living_decoders)

    os.kill(living_decoders()[0], death)

    with pytest.raises(MediaDecoderCrashed):
        await work


async def test_a_decoder_without_memory_says_so(order: MakeOrder) -> None:
    data = files.video(frames=4, size=(2560, 1440))

    with pytest.raises(JobError) as caught:
        await video.sample(order(data, FOREBAY_VIDEO_DECODE_BYTES=256 * 1024 * 1024), 30)

    assert caught.value.code in {"media_too_large", "media_unreadable", "media_decoder_crashed"}


async def test_a_decoder_dies_with_its_worker(order: MakeOrder) -> None:
    asked = json.dumps(order(files.video()).as_dict())
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ABANDONED, asked, stdout=subprocess.PIPE
    )
    decoder = int(await worker.stdout.readline())

    worker.kill()
    await worker.wait()

    await until(lambda: not Path(f"/proc/{decoder}").exists())


ABANDONED = """
import asyncio, json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.support.decoders import living_decoders, until
from worker.media import video
from worker.media.order import Order

async def main():
    order = replace(Order.from_dict(json.loads(sys.argv[1])), parent_pid=os.getpid())
    work = asyncio.create_task(video.sample(order, 60))
    await until(living_decoders)
    decoder = living_decoders()[0]
    await until(lambda: "numpy" in Path(f"/proc/{decoder}/maps").read_text())
    os.kill(decoder, signal.SIGSTOP)
    print(decoder, flush=True)
    await work

asyncio.run(main())
"""
"""A worker that waits for a decoder that has bound itself to it and will not end by itself."""
