"""The table of bad media: each with its code, naming its part, and nothing left behind."""

import asyncio
from collections.abc import Callable

import pytest

from tests.media.conftest import MakeSettings
from tests.support import media_files as files
from tests.support import web as answers
from tests.support.decoders import living_decoders
from tests.support.memo import RedisMemo
from tests.support.web import Web
from worker.contract.errors import JobError
from worker.contract.job import MediaProfile, MediaRef, MediaType, Stage, VideoPolicy
from worker.contract.s3 import ObjectStore
from worker.media.stage import prepare_all

PART = "messages[1].content[2]"
JPEG = files.picture(400, 300, "JPEG")
VIDEO = files.video()
CASES: dict[str, tuple[MediaType, Callable[[], answers.Answer], str]] = {
    "truncated JPEG": ("image", lambda: answers.body(JPEG[:3000]), "media_unreadable"),
    "pixel bomb": ("image", lambda: answers.body(files.bomb_png()), "media_too_large"),
    "zero bytes": ("image", lambda: answers.body(b""), "media_unreadable"),
    "zero bytes of video": ("video", lambda: answers.body(b""), "media_unreadable"),
    "a web page": ("image", lambda: answers.body(b"<html>" * 99), "media_unsupported"),
    "text named .mp4": ("video", lambda: answers.body(b"hello\n" * 99), "media_unsupported"),
    "video sent as a picture": ("image", lambda: answers.body(VIDEO), "media_unsupported"),
    "picture sent as a video": ("video", lambda: answers.body(JPEG), "media_unsupported"),
    "no frames": ("video", lambda: answers.body(files.frameless_video()), "media_unreadable"),
    "sound only": ("video", lambda: answers.body(files.sound_only()), "media_unsupported"),
    "half a video": ("video", lambda: answers.body(VIDEO[:1700]), "media_unreadable"),
    "1 × 10000": ("image", lambda: answers.body(files.picture(1, 10_000)), "media_unsupported"),
    "404": ("image", lambda: answers.status(404), "media_fetch_failed"),
    "hangs": ("image", answers.hang, "media_fetch_failed"),
    "redirects for ever": ("image", lambda: answers.redirect("/part"), "media_fetch_failed"),
    "redirects inside": (
        "image", lambda: answers.redirect("http://169.254.169.254/meta"), "media_forbidden",
    ),
    "announces too much": (
        "image", lambda: answers.body(JPEG, length=len(JPEG) + 1), "media_fetch_failed",
    ),
    "announces too little": (
        "image", lambda: answers.body(JPEG, length=900), "media_fetch_failed",
    ),
    "announces a terabyte": (
        "image", lambda: answers.stall_after(JPEG, 10**12), "media_too_large",
    ),
    "gzip": ("image", lambda: answers.gzipped(JPEG), "media_fetch_failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_bad_media_has_its_code_and_names_its_part(
    name: str, objects: ObjectStore, memo: RedisMemo, settings: MakeSettings, web: Web
) -> None:
    kind, answer, code = CASES[name]
    good = MediaRef("image", "messages[1].content[1]", url=web.at("/good.png", GOOD))
    bad = MediaRef(kind, PART, url=web.at("/part", answer()))
    limits = settings(FOREBAY_IMAGE_FETCH_S=5)

    with pytest.raises(JobError) as caught:
        await prepare_all((good, bad), MediaProfile(), VideoPolicy(), objects, memo, limits, quiet)

    assert (caught.value.code, caught.value.param) == (code, PART)
    assert living_decoders() == []
    assert asyncio.current_task().cancelling() == 0  # the caller may go on


GOOD = answers.body(files.picture())


async def quiet(_: Stage, __: int) -> None:
    return
