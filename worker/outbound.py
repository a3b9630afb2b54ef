"""The one guarded HTTP client: whatever leaves this system for a URL that a user wrote.

The guard is asked about the very address that a socket is about to connect to, for names, literals
and each redirect alike. A check of the name before the request would be undone by a name server
that answers differently the second time.
"""

import asyncio
import contextlib
import hashlib
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from worker.contract.errors import MediaError, MediaFetchFailed, MediaForbidden, MediaTooLarge
from worker.contract.guard import Guard, plain_url

MAX_REDIRECTS = 3
CONNECT_S = 5.0
CHUNK_BYTES = 64 * 1024
HEAD_BYTES = 512  # what a sniffer is shown
HEAD_S = 2.0  # for the beginning of an answer's body, once its status is there
KEEP_S = 4.0  # common servers keep an idle connection for 5 s: who closes first has no race
MAX_HOSTS = 256  # whose connections are kept

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200


def parse_url(text: str) -> URL:
    """Read a URL that a user wrote. Raises MediaForbidden where `plain_url` refuses it."""
    try:
        return plain_url(text)
    except ValueError as error:
        raise MediaForbidden(str(error)) from error


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch, redirects included.

    `total_s` for everything; `stall_s` without a byte of the body, and for all that goes before it;
    after `grace_s` of a body its average must reach `min_bytes_per_s`, or a sender of one byte a
    second would hold a worker for `total_s`.
    """

    max_bytes: int
    total_s: float
    stall_s: float = 10.0
    min_bytes_per_s: int = 32 * 1024
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What arrived: size in bytes and SHA-256 (hex)."""

    size: int
    sha256: str


Sniff = Callable[[bytes], object]
"""Is shown the first `HEAD_BYTES` of a body (or all of it) and raises to refuse the rest."""


async def fetch(
    url: str, out: BinaryIO, limits: FetchLimits, guard: Guard, sniff: Sniff | None = None
) -> Fetched:
    """Write the body behind `url` into an open file, following at most `MAX_REDIRECTS` redirects.

    Raises:
        MediaForbidden: the URL, or one it redirects to, leads where the guard does not allow.
        MediaTooLarge: more than `limits.max_bytes`, announced or sent.
        MediaFetchFailed: any other status than 200, a timeout, a broken or too slow transfer, a
            content encoding. Messages name the host and nothing else of the URL.
        MediaError: whatever `sniff` raises.
    """
    target = parse_url(url)
    try:
        async with asyncio.timeout(limits.total_s):
            for _ in range(MAX_REDIRECTS + 1):
                async with _response(target, limits, guard) as response:
                    if response.status not in _REDIRECTS:
                        return await _receive(response, out, limits, sniff)
                    target = _redirected(target, response)
    except TimeoutError as error:
        raise _failed(target, "did not answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _untangled(target, error) from error
    raise _failed(target, f"redirected more than {MAX_REDIRECTS} times")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a POST was answered: its status, `Retry-After` as sent ('' for none), a body's start."""

    status: int
    retry_after: str
    head: bytes


class PostFailed(Exception):
    """There was no answer; the message says why, and names the host and nothing else of the URL."""


@dataclass(slots=True, eq=False)
class _Line:
    """The connections to one host, and how many requests are on them."""

    session: aiohttp.ClientSession
    requests: int = 0


class Poster:
    """Posts to URLs that users wrote, over connections that are kept for a while. Follows nothing.

    `total_s` bounds one request; of an answer's body `head_bytes` are read, whatever is sent. Make
    it on the loop that uses it, and close it.
    """

    def __init__(self, guard: Guard, *, total_s: float, head_bytes: int) -> None:
        self._guard = guard
        self._total_s = total_s
        self._head_bytes = head_bytes
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a body; return what is answered, any status. Raises PostFailed."""
        target = _target(url)
        line = self._line(target)
        line.requests += 1
        try:
            async with asyncio.timeout(self._total_s):
                return await self._exchange(line.session, target, body, headers)
        except TimeoutError as error:
            raise PostFailed(f"{target.host}: did not answer within {self._total_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PostFailed(_untangled(target, error).message) from error
        finally:
            line.requests -= 1

    async def _exchange(
        self, session: aiohttp.ClientSession, url: URL, body: bytes, headers: Mapping[str, str]
    ) -> Reply:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            head = await self._head(response)
            return Reply(response.status, response.headers.get("Retry-After", ""), head)

    async def _head(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body's beginning. The status has come: what goes wrong now undoes it not."""
        head = b""
        try:
            async with asyncio.timeout(HEAD_S):
                while len(head) < self._head_bytes and not response.content.at_eof():
                    head += await response.content.read(self._head_bytes - len(head))
        except (aiohttp.ClientError, OSError):
            pass  # TimeoutError is one: what came is enough
        if not response.content.at_eof():
            response.close()  # ends the connection, and with it a body without end
        return head

    def _line(self, url: URL) -> _Line:
        """Return the connections to a host; the one not used for longest gives way to a new one."""
        host = url.host or ""
        line = self._lines.pop(host, None)
        if line is None:
            line = _Line(_session(url, self._guard, keep_s=KEEP_S))
        self._lines[host] = line
        while len(self._lines) > MAX_HOSTS and (idle := self._idle()) is not None:
            self._closing.add(task := asyncio.create_task(self._lines.pop(idle).session.close()))
            task.add_done_callback(self._closing.discard)
        return line

    def _idle(self) -> str | None:
        return next((host for host, line in self._lines.items() if not line.requests), None)

    async def close(self) -> None:
        """Close every connection."""
        lines, self._lines = self._lines, OrderedDict()
        await asyncio.gather(*(line.session.close() for line in lines.values()), *self._closing)


def _target(url: str) -> URL:
    try:
        return plain_url(url)
    except ValueError as error:
        raise PostFailed(str(error)) from error


@contextlib.asynccontextmanager
async def _response(
    url: URL, limits: FetchLimits, guard: Guard
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send one GET and follow nothing. The connection serves this one request."""
    async with _session(url, guard) as session:
        async with asyncio.timeout(limits.stall_s):  # a header of one byte a second is no answer
            response = await session.get(url, allow_redirects=False)
        async with response:
            yield response


def _session(url: URL, guard: Guard, *, keep_s: float = 0.0) -> aiohttp.ClientSession:
    """Return a client that can reach `url`'s host and nothing that the guard refuses.

    `keep_s`: how long a connection without work is kept, 0 for one that serves a single request. A
    kept one leads to the address that was checked.

    One per host: an allowed name allows its addresses under that name only, and `socket_factory` is
    not told for which name it is asked.
    """
    host = url.host or ""

    def refuse(address: str, port: int) -> None:
        reason = guard.refusal(host, address, port)
        if reason:
            raise _RefusedError(reason)

    connector = aiohttp.TCPConnector(
        resolver=_AllOrNothing(refuse),
        socket_factory=_guarded_socket(refuse),
        use_dns_cache=False,
        limit=0,  # the callers have their own
        **({"keepalive_timeout": keep_s} if keep_s else {"force_close": True}),
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        trust_env=False,  # a proxy would connect for us, past the guard
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "forebay"},
    )


Refuse = Callable[[str, int], None]
"""Raises _RefusedError for an address and port that must not be connected to."""


class _RefusedError(OSError):
    """The guard said no. An OSError, because aiohttp carries those through as they are."""


class _AllOrNothing(AbstractResolver):
    """Resolves names; one bad address among the answers refuses the name."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        for *_, address in found:
            self._refuse(str(address[0]), port)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Hold nothing."""


def _guarded_socket(refuse: Refuse) -> Callable[[Any], socket.socket]:
    def make(info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, proto, _, address = info
        refuse(str(address[0]), int(address[1]))
        return socket.socket(family=family, type=kind, proto=proto)

    return make


def _redirected(source: URL, response: aiohttp.ClientResponse) -> URL:
    location = response.headers.get("Location")
    if not location:
        raise _failed(source, f"answered {response.status} without a Location")
    target = parse_url(urljoin(str(source), location))
    if source.scheme == "https" and target.scheme == "http":
        raise MediaForbidden(f"{source.host}: redirects from https to http")
    return target


async def _receive(
    response: aiohttp.ClientResponse, out: BinaryIO, limits: FetchLimits, sniff: Sniff | None
) -> Fetched:
    _check_headers(response, limits.max_bytes)
    digest, size, head = hashlib.sha256(), 0, b""
    started = time.monotonic()
    async for chunk in _chunks(response, limits.stall_s):
        size += len(chunk)
        if size > limits.max_bytes:
            raise _too_large(response.url, limits.max_bytes)
        _check_rate(response.url, size, time.monotonic() - started, limits)
        if len(head) < HEAD_BYTES:
            head = _grown(head, chunk, sniff)
        digest.update(chunk)
        out.write(chunk)
    if sniff and len(head) < HEAD_BYTES:
        sniff(head)
    return Fetched(size, digest.hexdigest())


async def _chunks(response: aiohttp.ClientResponse, stall_s: float) -> AsyncIterator[bytes]:
    """Yield the body. What frames it is none of it: who sends nothing else has stalled."""
    while True:
        async with asyncio.timeout(stall_s):
            chunk = await response.content.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _check_headers(response: aiohttp.ClientResponse, max_bytes: int) -> None:
    if response.status != _OK:
        raise _failed(response.url, f"answered {response.status}")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        # Inflating would hand the size limit to whoever packed it.
        raise _failed(response.url, "sent a content encoding although none was accepted")
    if (response.content_length or 0) > max_bytes:
        raise _too_large(response.url, max_bytes)


def _check_rate(url: URL, size: int, elapsed_s: float, limits: FetchLimits) -> None:
    if elapsed_s > limits.grace_s and size / elapsed_s < limits.min_bytes_per_s:
        raise _failed(url, f"sent less than {limits.min_bytes_per_s} bytes a second")


def _grown(head: bytes, chunk: bytes, sniff: Sniff | None) -> bytes:
    """Return the head with this chunk's share, shown to the sniffer once it is whole."""
    head += chunk[: HEAD_BYTES - len(head)]
    if sniff and len(head) == HEAD_BYTES:
        sniff(head)
    return head


def _untangled(url: URL, error: Exception) -> MediaError:
    """Translate what aiohttp made of a failure; it wraps the guard's refusal as well."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, _RefusedError):
        return MediaForbidden(f"{url.host}: {cause}")
    match error:
        case aiohttp.ClientConnectorDNSError():
            return _failed(url, "cannot be found")
        case aiohttp.ClientSSLError():
            return _failed(url, "has no valid certificate")
        case aiohttp.ClientConnectorError():
            return _failed(url, "cannot be reached")
        case aiohttp.ClientPayloadError():
            return _failed(url, "broke off in the middle of the body")
        case _:
            return _failed(url, "did not answer as an HTTP server does")


def _failed(url: URL, reason: str) -> MediaFetchFailed:
    return MediaFetchFailed(f"{url.host}: {reason}")


def _too_large(url: URL, max_bytes: int) -> MediaTooLarge:
    return MediaTooLarge(f"{url.host}: more than the limit of {max_bytes} bytes")
