"""A web server on loopback whose answers are scripted, good ones and bad ones.

It speaks raw HTTP where aiohttp would be too honest to lie about a length.
"""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.support.tcp import listening

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Web:
    """Paths and their answers; counts the requests for each, and all connections."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: dict[str, int] = {}
        self.connections = 0
        self._answers: dict[str, Answer] = {}

    def at(self, path: str, answer: Answer) -> str:
        """Script a path; return its URL."""
        self._answers[path] = answer
        return self.url + path

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode().partition("?")[0]
            self.requests[path] = self.requests.get(path, 0) + 1
            await self._answers.get(path, status(404))(writer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def web_server() -> AsyncIterator[Web]:
    """Yield a server on a free port of 127.0.0.1."""
    web = Web()
    async with listening(web.serve) as web.url:
        yield web


def body(data: bytes, *headers: str, length: int | None = None, code: int = 200) -> Answer:
    """Answer with bytes; `length` is what is announced where that is a lie."""
    announced = len(data) if length is None else length
    return _raw(code, (f"Content-Length: {announced}", *headers), data)


def gzipped(data: bytes) -> Answer:
    """Answer with packed bytes although nobody asked for it."""
    return body(gzip.compress(data), "Content-Encoding: gzip")


def unannounced(data: bytes) -> Answer:
    """Answer with bytes that end when the connection does."""
    return _raw(200, (), data)


def status(code: int) -> Answer:
    """Answer with a status and nothing else."""
    return body(b"", code=code)


def redirect(location: str, code: int = 302) -> Answer:
    """Answer that it is elsewhere."""
    return body(b"", f"Location: {location}", code=code)


def hang() -> Answer:
    """Take the request and say nothing."""

    async def answer(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return answer


def stall_after(data: bytes, length: int) -> Answer:
    """Send a beginning, then nothing more."""
    return _then(data, length, lambda _: asyncio.Event().wait())


def drip(data: bytes, length: int, pause_s: float) -> Answer:
    """Send a beginning, then a byte now and then, for ever."""

    async def go_on(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"\0")
            await writer.drain()
            await asyncio.sleep(pause_s)

    return _then(data, length, go_on)


def endless(head: bytes, piece: bytes, pause_s: float = 0.0) -> Answer:
    """Answer with these very bytes, a beginning and then the same piece for ever."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


def raw(data: bytes) -> Answer:
    """Answer with these very bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


def held(data: bytes, gate: asyncio.Event) -> Answer:
    """Answer with bytes once the gate is open."""
    whole = body(data)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await whole(writer)

    return answer


def _then(data: bytes, length: int, go_on: Callable[..., Awaitable[object]]) -> Answer:
    start = body(data, length=length)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await start(writer)
        await writer.drain()
        await go_on(writer)

    return answer


def _raw(code: int, headers: tuple[str, ...], data: bytes) -> Answer:
    head = "\r\n".join((f"HTTP/1.1 {code} X", *headers, "Connection: close", "", ""))

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + data)

    return answer
