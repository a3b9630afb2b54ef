"""Turns an original into prepared pictures in the object store, once per profile.

The frames are kept first and a manifest last: whoever finds the manifest finds all of it. A small
picture that a model takes as it is has neither: the original is all there is.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Coroutine, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from worker.contract.errors import MediaExpired
from worker.contract.job import (
    MediaProfile,
    MediaType,
    PreparedFrame,
    PreparedMedia,
    VideoPolicy,
)
from worker.contract.s3 import TENANT, ObjectStore, media_key, prepared_key
from worker.contract.settings import MIB, Settings
from worker.media import image, sniff, video
from worker.media.once import Locks, Once
from worker.media.order import Order, Sample
from worker.media.scratch import Scratch
from worker.media.sources import Original, Sources, read_head

CODE_VERSION = 1  # part of every profile's id: raise it when the same bytes give other pictures
FAILED_S = 60  # how long a file that cannot be prepared is not tried again
SPARE_S = 60.0  # to read and store, on top of decoding, before who waits loses patience
MANIFEST = "manifest.json"
MANIFEST_BYTES = MIB
FRAME_TYPE = "image/jpeg"

T = TypeVar("T")


def _cores() -> int:
    return os.cpu_count() or 1


@dataclass(slots=True)
class Shared:
    """What all jobs of one process share. Make one per event loop.

    Pictures are decoded one per core; videos, with two threads each, half as many. `locks` keeps
    jobs of this process from polling for each other.
    """

    pictures: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_cores()))
    videos: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(max(1, _cores() // 2))
    )
    locks: Locks = field(default_factory=Locks)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Prepares originals for one model, within one job's policy."""

    profile: MediaProfile
    policy: VideoPolicy
    objects: ObjectStore
    sources: Sources
    once: Once
    shared: Shared
    limits: Settings

    async def prepared(
        self, original: Original, kind: MediaType, scratch: Scratch
    ) -> PreparedMedia:
        """Return what was made of an original, making it in `scratch` if nobody has yet.

        Raises:
            MediaError: the bytes cannot be used, or are no longer there.
            InvalidRequest: the policy's clip is empty for this video.
        """
        if kind == "image":
            original, frame = await self._looked_at(original)
            if frame is not None:
                return PreparedMedia(kind, original.sha256, (frame,))
        return await self._once(original, kind, scratch)

    async def _looked_at(self, original: Original) -> tuple[Original, PreparedFrame | None]:
        """Return the original as far as it was read, and a picture's frame where it is one as is.

        To look takes less than to find out whether somebody else has looked: so no lock is taken
        and nothing is noted down. Large ones go the long way, through a file and under a lock.
        """

        def look(data: bytes) -> tuple[int, int] | None:
            sniff.require(data[: sniff.HEAD_BYTES], "image")
            return image.size_if_fit(data, self.profile, self.limits.image_max_pixels)

        read = await self.sources.read_small(original, look)
        if read is None:
            return original, None
        data, size = read
        frame = PreparedFrame(media_key(original.sha256), *size) if size else None
        return replace(original, data=data), frame

    async def _once(self, original: Original, kind: MediaType, scratch: Scratch) -> PreparedMedia:
        """Return what is in the object store already, or make it there under a lock."""
        name = profile_id(kind, self.profile, self.policy, self.limits)
        manifest = prepared_key(name, original.sha256, MANIFEST)

        async def make() -> PreparedMedia:
            media = await self._make(original, kind, name, scratch)
            data = json.dumps(asdict(media)).encode()
            await self.objects.put_bytes(manifest, data, "application/json")
            return media

        return await self.once.run(
            f"prepare:{name}:{original.sha256}",
            lambda: self._made(manifest),
            make,
            patience_s=self.limits.video_decode_s + SPARE_S,
            failure_ttl_s=FAILED_S,
        )

    async def _made(self, manifest: str) -> PreparedMedia | None:
        try:
            data = await self.objects.get_bytes(manifest, MANIFEST_BYTES)
        except MediaExpired:
            return None
        return PreparedMedia.from_dict(json.loads(data))

    async def _make(
        self, original: Original, kind: MediaType, name: str, scratch: Scratch
    ) -> PreparedMedia:
        if kind == "image":
            frame = await self._picture(original, name, scratch)
            return PreparedMedia(kind, original.sha256, (frame,))
        path = await self.sources.file_of(original, kind, scratch)
        form = sniff.require(read_head(path), kind)
        samples = await self._sampled(path, form.demuxer, scratch.folder)
        frames = await self._keep_frames(samples, original.sha256, name, scratch.folder)
        return PreparedMedia(kind, original.sha256, frames, tuple(s.time_s for s in samples))

    async def _picture(self, original: Original, name: str, scratch: Scratch) -> PreparedFrame:
        if original.data is None:
            path = await self.sources.file_of(original, "image", scratch)
            sniff.require(read_head(path), "image")
            original = replace(original, path=path)

        def prepare() -> image.Prepared:
            return image.prepare(original.read(), self.profile, self.limits.image_max_pixels)

        async with self.shared.pictures:
            made = await asyncio.to_thread(prepare)
        key = media_key(original.sha256)
        if not made.is_original:
            key = prepared_key(name, original.sha256, frame_name(0))
            await self.objects.put_bytes(key, made.data, made.content_type)
        return PreparedFrame(key, made.width, made.height)

    async def _sampled(self, path: Path, demuxer: str, folder: Path) -> list[Sample]:
        order: Order = video.order_for(
            path,
            folder,
            demuxer,
            profile=self.profile,
            policy=self.policy,
            limits=self.limits,
        )
        async with self.shared.videos:
            return await video.sample(order, self.limits.video_decode_s)

    async def _keep_frames(
        self, samples: Iterable[Sample], sha256: str, name: str, folder: Path
    ) -> tuple[PreparedFrame, ...]:
        async def keep(sample: Sample) -> PreparedFrame:
            key = prepared_key(name, sha256, sample.name)
            await self.objects.put_file(key, folder / sample.name, FRAME_TYPE)
            return PreparedFrame(key, sample.width, sample.height)

        return tuple(await together(keep(sample) for sample in samples))


def profile_id(
    kind: MediaType, profile: MediaProfile, policy: VideoPolicy, limits: Settings
) -> str:
    """Name whatever decides about the pictures: 16 hex digits, part of their keys.

    A picture's name leaves out what concerns videos only, so that all jobs share it.
    """
    facts: list[Any] = [CODE_VERSION, TENANT, kind, profile.multiple]
    if kind == "image":
        facts += [profile.max_pixels]
    else:
        frame_max_pixels = video.frame_max_pixels(profile, policy)
        facts += [frame_max_pixels, policy.frames, policy.fps, policy.start_s, policy.end_s]
        facts += [limits.video_max_frames]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do everything at the same time; the first failure ends the rest and is raised by itself.

    Not a TaskGroup: before Python 3.13 that leaves the caller's task marked as being cancelled.
    """
    parts = list(work)
    if len(parts) == 1:
        return [await parts[0]]  # most jobs have one picture, which needs no task of its own
    tasks = [asyncio.create_task(each) for each in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def frame_name(number: int) -> str:
    """Return what frame `number` (from 0) is called, in a folder and in a key."""
    return f"{number:04}.jpg"
