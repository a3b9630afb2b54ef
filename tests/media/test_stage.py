"""The whole media stage on a real Redis, a real object store and a real web server."""

import asyncio
import hashlib
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.media.conftest import MakeSettings
from tests.support import media_files as files
from tests.support import web as answers
from tests.support.decoders import living_decoders, started_decoders, until
from tests.support.memo import RedisMemo
from tests.support.web import Web
from worker.contract.errors import (
    InvalidRequest,
    JobError,
    MediaExpired,
    MediaForbidden,
    MediaTooLarge,
)
from worker.contract.job import (
    MediaProfile,
    MediaRef,
    PreparedFrame,
    PreparedMedia,
    Stage,
    VideoPolicy,
)
from worker.contract.s3 import ObjectStore, media_key, upload_key
from worker.media import image, sources
from worker.media.scratch import FOLDER_PREFIX
from worker.media.stage import prepare_all
from worker.media.workshop import Shared

SMALL = MediaProfile(max_pixels=28 * 28 * 16, frame_max_pixels=28 * 28 * 4, multiple=28)
EIGHT_FRAMES = VideoPolicy()
Prepare = Callable[..., Awaitable[tuple[PreparedMedia, ...]]]


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep this test's temporary files where it can count them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def prepare(objects: ObjectStore, memo: RedisMemo, settings: MakeSettings) -> Prepare:
    """Run the stage for some references."""

    async def run(
        *refs: MediaRef,
        policy: VideoPolicy = EIGHT_FRAMES,
        on_progress: Callable[[Stage, int], Awaitable[None]] = ignore,
        shared: Shared | None = None,
        **limits: object,
    ) -> tuple[PreparedMedia, ...]:
        return await prepare_all(
            refs, SMALL, policy, objects, memo, settings(**limits), on_progress, shared=shared
        )

    return run


async def ignore(_: Stage, __: int) -> None:
    return


def image_at(url: str, number: int = 0) -> MediaRef:
    return MediaRef("image", f"messages[0].content[{number}]", url=url)


def video_at(url: str, number: int = 0) -> MediaRef:
    return MediaRef("video", f"messages[0].content[{number}]", url=url)


async def kept(objects: ObjectStore, data: bytes) -> MediaRef:
    """Return a picture that came in a job's body."""
    key = media_key(hashlib.sha256(data).hexdigest())
    await objects.put_bytes(key, data, "application/octet-stream")
    return MediaRef("image", "images[0]", object_key=key)


async def frame(objects: ObjectStore, media: PreparedMedia, number: int = 0) -> image.Pixels:
    return image.decode(await objects.get_bytes(media.frames[number].object_key, 10**7))


async def prepared_objects(objects: ObjectStore) -> list[str]:
    def listed() -> list[str]:
        found = objects._client.list_objects_v2(Bucket=objects.bucket, Prefix="prep/")
        return [entry["Key"] for entry in found.get("Contents", [])]

    return await asyncio.to_thread(listed)


async def test_a_large_picture_is_kept_and_shrunk(
    prepare: Prepare, objects: ObjectStore, web: Web
) -> None:
    data = files.picture(400, 300, "JPEG")
    url = web.at("/sheep.jpg", answers.body(data))

    (media,) = await prepare(image_at(url))

    assert media.sha256 == hashlib.sha256(data).hexdigest()
    assert (media.type, media.times_s) == ("image", None)
    assert (media.frames[0].width, media.frames[0].height) == (112, 84)
    assert (await frame(objects, media)).shape == (84, 112, 3)
    assert await objects.get_bytes(media_key(media.sha256), 10**6) == data


async def test_a_picture_that_fits_is_used_as_it_is(prepare: Prepare, web: Web) -> None:
    url = web.at("/small.png", answers.body(files.picture(64, 48)))

    (media,) = await prepare(image_at(url))

    assert media.frames[0].object_key == media_key(media.sha256)


async def test_a_png_under_the_name_of_a_jpeg_is_a_png(
    prepare: Prepare, objects: ObjectStore, web: Web
) -> None:
    url = web.at("/a.jpg", answers.body(files.picture(64, 48), "Content-Type: image/jpeg"))

    (media,) = await prepare(image_at(url))

    kept = await objects.head(media_key(media.sha256))
    assert kept is not None
    assert kept.content_type == "image/png"


async def test_a_video_is_sampled_in_the_middle_of_eight_segments(
    prepare: Prepare, objects: ObjectStore, web: Web
) -> None:
    url = web.at("/meadow.mp4", answers.body(files.video(frames=64, fps=32)))

    (media,) = await prepare(video_at(url))

    assert media.times_s == pytest.approx([n / 32 for n in range(4, 64, 8)])
    greys = [(await frame(objects, media, n))[30, 40].mean() for n in range(8)]
    assert greys == pytest.approx([files.grey(n) for n in range(4, 64, 8)], abs=3)


async def test_the_bound_of_a_frame_is_the_smaller_of_the_models_and_the_jobs(
    prepare: Prepare, web: Web
) -> None:
    url = web.at("/meadow.mp4", answers.body(files.video(size=(160, 120))))

    (models,) = await prepare(video_at(url))
    (jobs,) = await prepare(video_at(url), policy=VideoPolicy(max_pixels=28 * 28))

    assert (models.frames[0].width, models.frames[0].height) == (56, 28)
    assert (jobs.frames[0].width, jobs.frames[0].height) == (28, 28)


async def test_a_gif_is_one_picture_or_a_video_as_the_sender_says(
    prepare: Prepare, web: Web
) -> None:
    url = web.at("/a.gif", answers.body(files.animated_gif(10)))

    still, moving = await prepare(image_at(url, 0), video_at(url, 1))

    assert (still.type, len(still.frames)) == ("image", 1)
    assert (moving.type, len(moving.frames)) == ("video", 8)


async def test_parts_come_back_in_their_order_with_progress(prepare: Prepare, web: Web) -> None:
    sizes = [(40, 30), (30, 40), (36, 36)]
    refs = [
        image_at(web.at(f"/{n}.png", answers.body(files.picture(*size))), n)
        for n, size in enumerate(sizes)
    ]
    told: list[tuple[Stage, int]] = []

    async def on_progress(stage: Stage, done: int) -> None:
        told.append((stage, done))

    media = await prepare(*refs, on_progress=on_progress)

    assert [(m.frames[0].width, m.frames[0].height) for m in media] == sizes
    assert told[0] == (Stage.FETCHING, 0)
    assert told[-1] == (Stage.PREPARING, 3)
    assert [done for _, done in told] == sorted(done for _, done in told)


async def test_an_upload_is_kept_by_its_content_whatever_it_claimed_to_be(
    prepare: Prepare, objects: ObjectStore
) -> None:
    data = files.picture(64, 48)
    key = upload_key("upload_1")
    await objects.put_bytes(key, data, "video/mp4")

    (media,) = await prepare(MediaRef("image", "images[0]", object_key=key))

    kept = await objects.head(media_key(media.sha256))
    assert kept is not None
    assert (kept.size, kept.content_type) == (len(data), "image/png")


async def test_bytes_already_kept_by_content_are_prepared_from_there(
    prepare: Prepare, objects: ObjectStore
) -> None:
    ref = await kept(objects, files.picture(400, 300, "JPEG"))

    (media,) = await prepare(ref)

    assert media.frames[0].width == 112


async def test_a_small_picture_that_fits_costs_no_file_no_lock_and_no_note(
    prepare: Prepare,
    objects: ObjectStore,
    memo: RedisMemo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref = await kept(objects, files.picture(64, 48))
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")

    (media,) = await prepare(ref)

    assert media.frames == (PreparedFrame(media_key(media.sha256), 64, 48),)
    assert await prepared_objects(objects) == []
    assert await memo.keys() == []


@pytest.mark.parametrize("size", [(64, 48), (400, 300)], ids=["fits", "shrunk"])
@pytest.mark.parametrize("small_bytes", [10, 10**6], ids=["in a file", "in memory"])
async def test_a_picture_comes_out_the_same_in_memory_and_in_a_file(
    prepare: Prepare,
    objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    small_bytes: int,
) -> None:
    monkeypatch.setattr(sources, "SMALL_BYTES", small_bytes)
    ref = await kept(objects, files.picture(*size, "JPEG"))

    (first,) = await prepare(ref)
    (again,) = await prepare(ref)

    expected = (64, 48) if size == (64, 48) else (112, 84)
    assert first == again
    assert (first.frames[0].width, first.frames[0].height) == expected
    assert (await frame(objects, first)).shape == (*expected[::-1], 3)


@pytest.mark.parametrize("small_bytes", [10, 10**6], ids=["in a file", "in memory"])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (files.picture(64, 48)[:-60], "media_unreadable"),
        (files.picture(400, 300, "JPEG")[:-900], "media_unreadable"),
        (b"", "media_unreadable"),
        (b"<html>no picture</html>", "media_unsupported"),
        (files.bomb_png(), "media_too_large"),
    ],
    ids=["cut off", "cut off, to be shrunk", "empty", "no picture", "bomb"],
)
async def test_a_bad_picture_is_found_in_memory_and_in_a_file(  # noqa: PLR0917 - two tables
    prepare: Prepare,
    objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    code: str,
    small_bytes: int,
) -> None:
    monkeypatch.setattr(sources, "SMALL_BYTES", small_bytes)
    ref = await kept(objects, data)

    with pytest.raises(JobError) as caught:
        await prepare(ref)

    assert (caught.value.code, caught.value.param) == (code, "images[0]")


async def test_a_small_picture_over_the_limit_is_refused(
    prepare: Prepare, objects: ObjectStore
) -> None:
    ref = await kept(objects, files.picture(64, 48))

    with pytest.raises(MediaTooLarge):
        await prepare(ref, FOREBAY_IMAGE_MAX_BYTES=20)


async def test_an_upload_that_is_gone_is_named(prepare: Prepare) -> None:
    ref = MediaRef("image", "images[3]", object_key=upload_key("never"))

    with pytest.raises(MediaExpired) as caught:
        await prepare(ref)

    assert caught.value.param == "images[3]"


@pytest.mark.parametrize("key", ["prep/v1/x/y/0000.jpg", "media/other/sha256/00/00", ""])
async def test_a_reference_into_another_part_of_the_store_is_refused(
    prepare: Prepare, key: str
) -> None:
    with pytest.raises(MediaForbidden):
        await prepare(MediaRef("image", "images[0]", object_key=key))


async def test_two_jobs_with_the_same_video_decode_it_once(prepare: Prepare, web: Web) -> None:
    url = web.at("/meadow.mp4", answers.body(files.video()))

    with started_decoders() as started:
        first, second = await asyncio.gather(prepare(video_at(url)), prepare(video_at(url)))

    assert first == second
    assert len(started) == 1
    assert web.requests["/meadow.mp4"] == 1


async def test_jobs_of_one_process_wait_for_each_other_without_polling(
    prepare: Prepare, web: Web
) -> None:
    url, shared = web.at("/a.mp4", answers.body(files.video())), Shared()

    with started_decoders() as started:
        await asyncio.gather(*(prepare(video_at(url), shared=shared) for _ in range(5)))

    assert len(started) == 1


async def test_another_policy_is_another_decode(prepare: Prepare, web: Web) -> None:
    url = web.at("/a.mp4", answers.body(files.video()))

    (eight,) = await prepare(video_at(url))
    (three,) = await prepare(video_at(url), policy=VideoPolicy(frames=3))

    assert (len(eight.frames), len(three.frames)) == (8, 3)


async def test_a_broken_video_is_not_decoded_again_by_those_who_waited(
    prepare: Prepare, web: Web
) -> None:
    data = files.video()
    url = web.at("/half.mp4", answers.body(data[: len(data) // 2]))

    with started_decoders() as started:
        ends = await asyncio.gather(
            *(prepare(video_at(url, n)) for n in range(3)), return_exceptions=True
        )

    assert [(e.code, e.param) for e in ends] == [
        ("media_unreadable", f"messages[0].content[{n}]") for n in range(3)
    ]
    assert len(started) == 1


async def test_a_part_that_fails_ends_the_others_and_leaves_nothing(
    prepare: Prepare, web: Web, temp_dir: Path
) -> None:
    gate = asyncio.Event()
    slow = web.at("/slow.jpg", answers.hang())
    bad = web.at("/bad.jpg", answers.held(b"no picture at all", gate))

    job = asyncio.create_task(prepare(image_at(slow, 0), image_at(bad, 1)))
    await until(lambda: len(web.requests) == 2)
    gate.set()
    with pytest.raises(JobError) as caught:
        await job

    assert (caught.value.code, caught.value.param) == (
        "media_unsupported",
        "messages[0].content[1]",
    )
    assert left_in(temp_dir) == []


async def test_cancelling_kills_the_decoder_and_leaves_no_file(
    prepare: Prepare, objects: ObjectStore, web: Web, temp_dir: Path
) -> None:
    url = web.at("/long.mp4", answers.body(files.video()))
    with started_decoders() as started:
        job = asyncio.create_task(prepare(video_at(url)))
        await until(lambda: started and living_decoders())
        os.kill(living_decoders()[0], signal.SIGSTOP)  # it will not end by itself

        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    assert living_decoders() == []
    assert left_in(temp_dir) == []
    assert await prepared_objects(objects) == []


async def test_a_job_that_was_cancelled_leaves_its_work_to_the_next(
    prepare: Prepare, web: Web
) -> None:
    gate = asyncio.Event()
    url = web.at("/a.png", answers.held(files.picture(64, 48), gate))
    first = asyncio.create_task(prepare(image_at(url)))
    await until(lambda: web.requests)
    second = asyncio.create_task(prepare(image_at(url)))

    first.cancel()
    gate.set()

    assert len(await second) == 1


async def test_an_empty_clip_is_the_requests_fault_and_names_the_part(
    prepare: Prepare, web: Web
) -> None:
    url = web.at("/a.mp4", answers.body(files.video(frames=60, fps=30)))

    with pytest.raises(InvalidRequest) as caught:
        await prepare(video_at(url), policy=VideoPolicy(start_s=5))

    assert caught.value.param == "messages[0].content[0]"
    assert "2.00 s" in caught.value.message


async def test_more_parts_than_the_limit_are_refused_before_any_is_read(
    prepare: Prepare, web: Web
) -> None:
    url = web.at("/a.png", answers.body(files.picture()))

    with pytest.raises(JobError) as caught:
        await prepare(*(image_at(url, n) for n in range(3)), FOREBAY_MEDIA_MAX_PARTS=2)

    assert (caught.value.code, caught.value.param) == ("media_too_large", "messages[0].content[2]")
    assert web.connections == 0


def left_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.glob(f"{FOLDER_PREFIX}*")]
