"""A receiver of callbacks on loopback: keeps what it gets, answers as scripted, good and bad.

Raw sockets, since it must be able to hang, to break off and to send ten gigabytes.
"""

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.support.tcp import listening

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Got:
    """One request: header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The webhook-id."""
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Receiver:
    """Answers each path as `at` said last, 200 where nothing was said."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[Got] = []
        self.connections = 0
        self._answers: dict[str, Answer] = {}
        self._news = asyncio.Event()

    def at(self, path: str, *answers: Answer) -> str:
        """Script a path: one answer after the other, the last for ever; return its URL."""
        given = itertools.chain(answers, itertools.repeat(answers[-1]))

        async def answer(writer: asyncio.StreamWriter) -> None:
            await next(given)(writer)

        self._answers[path] = answer
        return self.url + path

    def ids(self) -> Counter[str]:
        """Return how often each event came."""
        return Counter(one.id for one in self.got)

    async def until(self, count: int, limit_s: float = 30.0) -> None:
        """Return once so many requests have come."""
        async with asyncio.timeout(limit_s):
            while len(self.got) < count:
                self._news.clear()
                await self._news.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests on one connection until it is closed."""
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                got = await _read(reader)
                self.got.append(got)
                self._news.set()
                await self._answers.get(got.path, status(200))(writer)
                await writer.drain()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Got:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in fields.items()}
    body = await reader.readexactly(int(headers["content-length"]))
    return Got(head[0].split()[1], headers, body)


@contextlib.asynccontextmanager
async def receiver(port: int = 0, made: Receiver | None = None) -> AsyncIterator[Receiver]:
    """Run one on a port of 127.0.0.1 until the block ends."""
    made = made or Receiver()
    async with listening(made.serve, port) as made.url:
        yield made


def status(code: int, *headers: str, body: bytes = b"") -> Answer:
    """Answer with a status, and keep the connection."""
    head = "\r\n".join((f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", *headers, "", ""))

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)

    return answer


def hang() -> Answer:
    """Take the request and say nothing."""

    async def answer(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return answer


def hang_up() -> Answer:
    """Take the request and close the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.close()

    return answer


def endless(code: int, total_bytes: int) -> Answer:
    """Answer with more than anybody reads."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {code} X\r\nContent-Length: {total_bytes}\r\n\r\n".encode())
        chunk = b"x" * 65_536
        for _ in range(total_bytes // len(chunk)):
            writer.write(chunk)
            await writer.drain()

    return answer


def drip(code: int) -> Answer:
    """Answer at once with a status, then with a byte now and then, for ever."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {code} X\r\nContent-Length: 100000\r\n\r\n".encode())
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    return answer
