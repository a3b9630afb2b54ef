"""Files: a record in Redis, the bytes in the object store. Uploads of clients, results of batches.

Every file has an end: its own `expires_after`, else the server's retention.
"""

import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self

from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.errors import FileGone, UnknownFile
from worker.contract.s3 import READ_BYTES, ObjectStore

BATCH, RESULTS = "batch", "batch_output"
PURPOSES = (BATCH, "vision", "user_data")  # those that a client may give
_FIELDS = (
    "bytes", "created_at", "expires_at", "filename", "purpose", "content_type", "object_key",
    "sha256",
)  # fmt: skip
_SWEEP_BATCH = 100

Order = Literal["asc", "desc"]


def new_file_id() -> str:
    """Return a fresh id: `file_` and 128 random bits, not guessable."""
    return f"file_{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file. Moments are ms since the epoch; `sha256` is '' where nobody has hashed it."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    content_type: str
    object_key: str
    sha256: str

    def public(self) -> dict[str, Any]:
        """Return OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at // 1000,
            "expires_at": self.expires_at // 1000,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }

    @classmethod
    def from_record(cls, file_id: str, values: list[str]) -> Self:
        """Read a record's `_FIELDS`."""
        size, created_at, expires_at, *texts = values
        return cls(file_id, int(size), int(created_at), int(expires_at), *texts)


class Files:
    """Keeps and finds files. Every method raises StoreUnavailable where a store does not answer."""

    def __init__(self, door: RedisDoor, objects: ObjectStore) -> None:
        self._door = door
        self._objects = objects

    async def add(  # noqa: PLR0917 - the record, in the order of its fields
        self,
        file_id: str,
        size: int,
        filename: str,
        purpose: str,
        content_type: str,
        object_key: str,
        *,
        sha256: str = "",
        life_s: float | None = None,
    ) -> StoredFile:
        """Keep a file whose bytes are in the object store; saying it twice is fine.

        `life_s` None means the server's retention.
        """
        life_ms = int((life_s or self._door.settings.file_retention_s) * 1000)
        fields = {
            "bytes": size,
            "filename": filename,
            "content_type": content_type,
            "object_key": object_key,
            "sha256": sha256,
        }
        flat = [value for pair in fields.items() for value in pair]
        at = int(await self._door.call("add_file", file_id, purpose, life_ms, *flat))
        return StoredFile(
            file_id, size, at, at + life_ms, filename, purpose, content_type, object_key, sha256
        )

    async def find(self, file_id: str) -> StoredFile | None:
        """Return a file, None where none is known by that id, or no longer."""
        file, now_ms = (await self._read([file_id]))[0], await self._now_ms()
        return file if file is not None and file.expires_at > now_ms else None

    async def get(self, file_id: str) -> StoredFile:
        """Return a file. Raises UnknownFile, or FileGone for one that was there."""
        return await self.find(file_id) or await self._missing(file_id)

    async def _missing(self, file_id: str) -> NoReturn:
        exist = await self._door.command(
            "EXISTS", self._door.key("gone", file_id), self._door.key("file", file_id)
        )
        if exist:
            raise FileGone(f"file {file_id} existed; it has expired or was deleted")
        raise UnknownFile(f"there is no file {file_id}")

    async def list_files(
        self, *, purpose: str | None, after: str | None, limit: int, order: Order
    ) -> tuple[list[StoredFile], bool]:
        """Return a page of files in the order of their creation, and whether there are more.

        Raises UnknownFile or FileGone for a cursor that is not there.
        """
        index = self._door.key("files", purpose or "")
        is_newest_first = order == "desc"
        start = 0
        if after is not None:
            rank = "ZREVRANK" if is_newest_first else "ZRANK"
            found = await self._door.command(rank, index, after)
            start = int(found) + 1 if found is not None else await self._missing(after)
        page = "ZREVRANGE" if is_newest_first else "ZRANGE"
        ids = await self._door.command(page, index, start, start + limit)
        files = await self._read(ids[:limit])
        now_ms = await self._now_ms()
        return [f for f in files if f is not None and f.expires_at > now_ms], len(ids) > limit

    async def delete(self, file_id: str) -> None:
        """Delete a file and its bytes. Raises UnknownFile or FileGone."""
        await self._erase(await self.get(file_id))

    async def sweep(self) -> int:
        """Delete files that are over, a hundred at most; return how many these were."""
        due = await self._door.call("expired_files", _SWEEP_BATCH)
        for file in await self._read(due):
            if file is not None:
                await self._erase(file)
        return len(due)

    async def content(
        self, file: StoredFile, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a file's bytes from `start` up to `end`, 1 MiB at a time.

        Each piece is a request of its own: a slow reader holds no connection to the store. Raises
        FileGone where the bytes are away.
        """
        end = file.bytes if end is None else end
        while start < end:
            data = await self._objects.get_range(
                file.object_key, start, min(READ_BYTES, end - start)
            )
            if not data:
                raise FileGone(f"the bytes of file {file.id} end at {start}")
            start += len(data)
            yield data

    async def _erase(self, file: StoredFile) -> None:
        # The bytes first: a record without them can be erased again, bytes without one never.
        await self._objects.delete(file.object_key)
        await self._door.call("drop_file", file.id, keys.TOMBSTONE_S)

    async def _read(self, ids: list[str]) -> list[StoredFile | None]:
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for file_id in ids:
                pipe.hmget(self._door.key("file", file_id), list(_FIELDS))
            rows = await self._door.guard(pipe.execute()) if ids else []
        return [
            StoredFile.from_record(file_id, row) if row[0] is not None else None
            for file_id, row in zip(ids, rows, strict=True)
        ]

    async def _now_ms(self) -> int:
        seconds, micros = await self._door.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000
