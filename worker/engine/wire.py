"""Frames between a worker and the engine process that it started: 4 bytes of length, then a pickle.

Pickle is fit for this socket and no other: a socketpair of a parent and its own child, which run
the same code. What is sent within one turn of the event loop travels in one frame: with hundreds of
prompts inside, the price of a write is paid per turn and not per token.
"""

import asyncio
import pickle
import struct
from collections.abc import AsyncIterator
from typing import Any

_LENGTH = struct.Struct("!I")


class Outbox:
    """Collects messages and writes them once per turn of the loop."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: list[Any] = []

    def post(self, message: Any) -> None:
        """Send a message soon. To an end that is gone, nothing is sent and nothing is raised."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(message)

    async def drain(self) -> None:
        """Wait until the operating system has taken what was posted."""
        self._flush()
        await self._writer.drain()

    def close(self) -> None:
        """Give the socket back; what is posted from here on is not sent."""
        self._writer.close()

    def _flush(self) -> None:
        messages, self._waiting = self._waiting, []
        if not messages or self._writer.is_closing():
            return
        body = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
        self._writer.write(_LENGTH.pack(len(body)) + body)


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[list[Any]]:
    """Yield each frame's messages, in order, until the other end is gone."""
    try:
        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            yield pickle.loads(await reader.readexactly(length))  # noqa: S301 - our own child
    except (asyncio.IncompleteReadError, ConnectionError):
        return
