"""A file on its way in: hashed and handed on to the object store while it comes."""

import hashlib

from worker.contract.errors import BodyTooLarge
from worker.contract.s3 import ObjectStore
from worker.contract.settings import MIB

PART_BYTES = 8 * MIB  # what an upload in progress may hold in memory


class IncomingFile:
    """Bytes of unknown number for one key. `write` them, then `close`; or `drop` what there is.

    Small files are one PUT, larger ones come in parts: a file is never whole in memory.
    """

    def __init__(
        self, objects: ObjectStore, key: str, content_type: str, *, max_bytes: int
    ) -> None:
        self._objects = objects
        self._key = key
        self._content_type = content_type
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self._upload_id = ""
        self._parts: list[tuple[int, str]] = []
        self.size = 0

    @property
    def sha256(self) -> str:
        """The hash (hex) of what was written so far."""
        return self._hash.hexdigest()

    async def write(self, data: bytes) -> None:
        """Take bytes. Raises BodyTooLarge over `max_bytes`, StoreUnavailable."""
        self.size += len(data)
        if self.size > self._max_bytes:
            raise BodyTooLarge(f"the file is over {self._max_bytes} bytes", param="file")
        self._hash.update(data)
        self._waiting += data
        if len(self._waiting) >= PART_BYTES:
            await self._send_part()

    async def close(self) -> None:
        """Store what waits and make the object. Raises StoreUnavailable."""
        if not self._upload_id:
            await self._objects.put_bytes(self._key, bytes(self._waiting), self._content_type)
            return
        if self._waiting:
            await self._send_part()
        await self._objects.join_parts(self._key, self._upload_id, self._parts)

    async def drop(self) -> None:
        """Leave nothing behind."""
        if self._upload_id:
            await self._objects.drop_parts(self._key, self._upload_id)

    async def _send_part(self) -> None:
        if not self._upload_id:
            self._upload_id = await self._objects.begin_parts(self._key, self._content_type)
        number, data = len(self._parts) + 1, bytes(self._waiting)
        self._waiting.clear()
        etag = await self._objects.put_part(self._key, self._upload_id, number, data)
        self._parts.append((number, etag))
