"""A TCP proxy that fails on purpose: what stands between our processes and Redis or S3.

It takes a chunk that a client sends as one call. That is exact for the small calls of a queue and
near enough for the others: what is cut in the middle of a large one has failed as well.
"""

import asyncio
import contextlib
from collections.abc import Callable
from enum import StrEnum
from urllib.parse import urlsplit

CHUNK_BYTES = 256 * 1024
HOST = "127.0.0.1"


class Fate(StrEnum):
    """What becomes of one call."""

    PASS = "pass"
    CUT = "cut"  # the connection ends before the call is forwarded
    LOSE = "lose"  # it is executed, and the connection ends instead of the answer
    REFUSE = "refuse"  # answered by the proxy itself, the server never sees it
    DELAY = "delay"  # forwarded after `Proxy.delay_s`


def through(url: str, port: int) -> str:
    """Return a server's URL as it is reached through a proxy that listens on a port."""
    parts = urlsplit(url)
    name, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{name}{at}{HOST}:{port}").geturl()


class Proxy:
    """Forwards to `port`; `judge` says what becomes of each call, `refusal` are REFUSE's bytes.

    While `is_closed`, new connections end at once. `hush` is a network that swallows everything:
    nobody is told, and what was under way arrives once it is over, as TCP has it.
    """

    def __init__(self, port: int, judge: Callable[[], Fate], *, refusal: bytes = b"") -> None:
        self._target = port
        self._judge = judge
        self._refusal = refusal
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.failed_calls = 0
        self.delay_s = 2.0
        self.is_closed = False

    async def start(self) -> int:
        """Listen on a free port and return it."""
        self._server = await asyncio.start_server(self._take, HOST, 0, limit=CHUNK_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """End every connection and listen no more."""
        if self._server is not None:
            self._server.close()
        self.speak()
        self.cut_all()
        if self._serving:
            await asyncio.wait(self._serving)

    def cut_all(self) -> None:
        """End every connection now, whatever is under way."""
        for writer in self._writers:
            writer.transport.abort()

    def hush(self) -> None:
        """Let nothing pass from now on."""
        self._flows.clear()

    def speak(self) -> None:
        """Let everything pass again, what has waited first."""
        self._flows.set()

    async def flows(self) -> None:
        """Return once there is no silence."""
        await self._flows.wait()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_closed:
            writer.transport.abort()
            return
        await self.flows()
        try:
            there, back = await asyncio.open_connection(HOST, self._target, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, reader, writer, there, back)
        self._writers |= {writer, back}
        try:
            await connection.run()
        finally:
            self._writers -= {writer, back}

    def fate(self) -> Fate:
        """Judge one call."""
        fate = self._judge()
        self.failed_calls += fate is not Fate.PASS
        return fate

    @property
    def refusal(self) -> bytes:
        """What a refused call is answered with."""
        return self._refusal


class _Connection:
    """One client's connection and the one behind it."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client, self._to_client = client, to_client
        self._server, self._to_server = server, to_server
        self._loses_answer = False

    async def run(self) -> None:
        """Forward both ways until one side ends; then both end."""
        ways = {asyncio.create_task(self._calls()), asyncio.create_task(self._answers())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (self._to_server, self._to_client):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _calls(self) -> None:
        with contextlib.suppress(OSError):
            while call := await self._client.read(CHUNK_BYTES):
                match self._proxy.fate():
                    case Fate.CUT:
                        return
                    case Fate.REFUSE:
                        self._to_client.write(self._proxy.refusal)
                        await self._to_client.drain()
                        return
                    case Fate.LOSE:
                        self._loses_answer = True
                    case Fate.DELAY:
                        await asyncio.sleep(self._proxy.delay_s)
                await self._proxy.flows()
                self._to_server.write(call)
                await self._to_server.drain()

    async def _answers(self) -> None:
        with contextlib.suppress(OSError):
            while answer := await self._server.read(CHUNK_BYTES):
                if self._loses_answer:
                    return
                await self._proxy.flows()
                self._to_client.write(answer)
                await self._to_client.drain()
