"""HTTP/1.1 with one server over connections that are kept: what a small object needs, no more.

httptools reads the answers. Nothing is followed, unpacked or asked again here, and what looks odd
counts as no answer: the caller has a slower way that knows all of HTTP.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

_OK, _FIRST_FINAL = 200, 200
_ERROR_BYTES = 65_536  # S3 says what is wrong in a few hundred


class NoAnswerError(Exception):
    """Nothing came, or not all of it, or nothing that is understood here."""


class TooLongError(Exception):
    """The body of a 200 has more bytes than wanted, `size`; none of them was read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


class Wires:
    """Connections to the host of `url`, at most so many at a time. For one event loop."""

    def __init__(
        self, url: str, tls: ssl.SSLContext, *, connections: int, connect_s: float, answer_s: float
    ) -> None:
        """`connect_s` bounds a connection's making, `answer_s` the whole of an answer."""
        where = urlsplit(url)
        self._tls = tls if where.scheme == "https" else None
        self._host = where.hostname or ""
        self._port = where.port or (443 if self._tls else 80)
        self._connect_s, self._answer_s = connect_s, answer_s
        self._room = asyncio.Semaphore(connections)
        self._idle: list[_Wire] = []
        self._is_closed = False

    async def ask(self, request: Sequence[bytes], max_bytes: int) -> Answer:
        """Send a request's bytes and return the answer.

        Raises:
            NoAnswerError: it may have arrived and been carried out nevertheless.
            TooLongError: a 200 has more than `max_bytes`.
        """
        async with self._room:
            wire = await self._connected()
            try:
                async with asyncio.timeout(self._answer_s):
                    answer = await wire.ask(request, max_bytes)
            except TimeoutError as error:
                raise NoAnswerError from error
            finally:
                self._keep(wire)
        return answer

    def close(self) -> None:
        """Close the connections, those in use after their answer."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _keep(self, wire: "_Wire") -> None:
        if wire.is_usable and not self._is_closed:
            self._idle.append(wire)
        else:
            wire.close()

    async def _connected(self) -> "_Wire":
        while self._idle:  # the youngest first: the others may be closed by the server meanwhile
            wire = self._idle.pop()
            if wire.is_usable:
                return wire
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, wire = await loop.create_connection(_Wire, self._host, self._port, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            raise NoAnswerError from error
        return wire


class _Wire(asyncio.Protocol):
    """One connection and the answer that comes over it; httptools calls the `on_…` methods."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._max_bytes = self._size = 0
        self._body = bytearray()

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent."""
        return self._answered is None and not (self._transport and self._transport.is_closing())

    async def ask(self, request: Sequence[bytes], max_bytes: int) -> Answer:
        """Send a request and return its answer. Where that fails the wire is of no more use."""
        assert self._transport is not None  # noqa: S101 - made by create_connection
        self._parser = httptools.HttpResponseParser(self)
        self._max_bytes, self._size, self._body = max_bytes, 0, bytearray()
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        answer = await self._answered
        self._answered = None  # not after a cancel: the answer that nobody awaits is still to come
        return answer

    def close(self) -> None:
        """Drop the connection with all that is on its way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """Read on; what was not asked for ends the connection."""
        if self._answered is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(NoAnswerError())

    def connection_lost(self, _: Exception | None) -> None:
        """Tell who waits. A body that ends with the connection counts as cut off."""
        self._fail(NoAnswerError())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note how long the body is going to be."""
        if name.lower() == b"content-length":
            with contextlib.suppress(ValueError):
                self._size = int(value)

    def on_headers_complete(self) -> None:
        """Refuse what is too long before it comes."""
        if self._parser.get_status_code() == _OK and self._size > self._max_bytes:
            self._fail(TooLongError(self._size))

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body; one that was not announced must not be endless either."""
        self._body += data
        if len(self._body) > max(self._max_bytes, _ERROR_BYTES):
            self._fail(NoAnswerError())

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        status = self._parser.get_status_code()
        if self._answered is None or self._answered.done() or status < _FIRST_FINAL:
            self._fail(NoAnswerError())
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._answered.set_result(Answer(status, bytes(self._body)))

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
