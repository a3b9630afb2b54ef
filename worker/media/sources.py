"""Where the original bytes come from: a URL, an upload, or the originals kept by content."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from worker import outbound
from worker.contract.errors import MediaExpired, MediaForbidden, MediaTooLarge
from worker.contract.guard import Guard
from worker.contract.job import MediaRef, MediaType
from worker.contract.s3 import TENANT, ObjectStore, media_key
from worker.contract.settings import MIB, Settings
from worker.media import sniff
from worker.media.once import Memo, Once
from worker.media.scratch import Scratch
from worker.outbound import FetchLimits

KNOWN_S = 600  # a URL or upload is taken to be the same bytes for so long
FAILED_S = 5  # only so that those who waited for a dead URL need not each wait again
SMALL_BYTES = MIB  # of a picture that is read into memory: each job may hold four
INSTANT_BYTES = 64 * 1024  # of a JPEG that is proved whole within a millisecond
UPLOADS, MEDIA = (f"uploads/{TENANT}/", f"files/{TENANT}/"), f"media/{TENANT}/"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Original:
    """Bytes that are in the object store under their hash (hex), and perhaps in a file here.

    Small ones may be in memory instead of the file.
    """

    sha256: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """Return the bytes, which must be here. Blocks where they are in a file."""
        if self.data is not None:
            return self.data
        assert self.path is not None  # noqa: S101 - the caller has seen to it
        return self.path.read_bytes()


class Sources:
    """Finds out what a reference's bytes are and sees that the object store has them."""

    def __init__(self, objects: ObjectStore, memo: Memo, once: Once, limits: Settings) -> None:
        self._objects = objects
        self._memo = memo
        self._once = once
        self._limits = limits
        self._guard = Guard.from_entries(limits.allow_hosts)

    async def obtain(self, ref: MediaRef, scratch: Scratch) -> Original:
        """Return the original behind a reference; `scratch` takes its file where it had to be read.

        Raises:
            MediaFetchFailed, MediaForbidden, MediaTooLarge: from fetching, see `outbound.fetch`.
            MediaExpired: the upload is no longer there.
            MediaUnreadable, MediaUnsupported: the bytes are none of the kind that was announced.
        """
        if ref.url is not None:
            name = f"url:{ref.type}:{hashlib.sha256(ref.url.encode()).hexdigest()}"
            return await self._known(name, lambda: self._fetch(ref, scratch.folder))
        key = ref.object_key or ""
        if key.startswith(MEDIA):  # the key is the hash, and only we write there
            return Original(key.rpartition("/")[2])
        if key.startswith(UPLOADS):
            return await self._known(
                f"{ref.type}:{key}", lambda: self._take_upload(ref, scratch.folder)
            )
        raise MediaForbidden("the reference names no upload")

    async def read_small(
        self, original: Original, read: Callable[[bytes], T]
    ) -> tuple[bytes, T] | None:
        """Return a small picture's bytes and what `read` makes of them, None for a large one.

        `read` runs on a thread, but for a JPEG that takes it less than the way there and back.
        """
        max_bytes = min(SMALL_BYTES, self.limits_of("image").max_bytes)
        data = await self._small(original, max_bytes)
        if data is None:
            return None
        if len(data) <= INSTANT_BYTES and sniff.sniff(data) is sniff.JPEG:
            return data, read(data)
        return data, await asyncio.to_thread(read, data)

    async def _small(self, original: Original, max_bytes: int) -> bytes | None:
        if original.path is not None:
            return await asyncio.to_thread(_read_small, original.path, max_bytes)
        try:
            return await self._objects.get_bytes(media_key(original.sha256), max_bytes)
        except MediaTooLarge:
            return None

    async def file_of(self, original: Original, kind: MediaType, scratch: Scratch) -> Path:
        """Return a file with the original's bytes, read from the object store if need be."""
        if original.path is not None:
            return original.path
        path = scratch.folder / "original"
        with path.open("wb") as out:
            await self._objects.get_to_file(
                media_key(original.sha256), out, self.limits_of(kind).max_bytes
            )
        return path

    def limits_of(self, kind: MediaType) -> FetchLimits:
        """Return the bounds within which bytes of this kind are read."""
        if kind == "image":
            return FetchLimits(self._limits.image_max_bytes, self._limits.image_fetch_s)
        return FetchLimits(self._limits.video_max_bytes, self._limits.video_fetch_s)

    async def _known(self, name: str, read: Callable[[], Awaitable[Original]]) -> Original:
        async def ready() -> Original | None:
            sha256 = await self._memo.get(name)
            if sha256 is None or not await self._objects.exists(media_key(sha256)):
                return None
            return Original(sha256)

        async def make() -> Original:
            original = await read()
            await self._memo.put(name, original.sha256, KNOWN_S)
            return original

        patience_s = self.limits_of("video").total_s
        return await self._once.run(
            name, ready, make, patience_s=patience_s, failure_ttl_s=FAILED_S
        )

    async def _fetch(self, ref: MediaRef, folder: Path) -> Original:
        path = folder / "fetched"
        with path.open("wb") as out:
            fetched = await outbound.fetch(
                ref.url or "",
                out,
                self.limits_of(ref.type),
                self._guard,
                lambda head: sniff.require(head, ref.type),
            )
        return await self._keep(path, fetched.sha256, ref.type)

    async def _take_upload(self, ref: MediaRef, folder: Path) -> Original:
        """Read an upload for the first time; its type is what its bytes say, not what it claims."""
        path = folder / "upload"
        try:
            with path.open("wb") as out:
                await self._objects.get_to_file(
                    ref.object_key or "", out, self.limits_of(ref.type).max_bytes
                )
        except MediaExpired as error:
            raise MediaExpired("the upload is not there, or has expired; upload again") from error
        return await self._keep(path, await asyncio.to_thread(_sha256, path), ref.type)

    async def _keep(self, path: Path, sha256: str, kind: MediaType) -> Original:
        found = sniff.require(read_head(path), kind)
        await self._objects.put_file(media_key(sha256), path, found.content_type, if_absent=True)
        return Original(sha256, path)


def read_head(path: Path) -> bytes:
    """Return as much of a file's beginning as the sniffer looks at."""
    with path.open("rb") as file:
        return file.read(sniff.HEAD_BYTES)


def _read_small(path: Path, max_bytes: int) -> bytes | None:
    return path.read_bytes() if path.stat().st_size <= max_bytes else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
