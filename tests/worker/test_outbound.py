"""The guarded HTTP client, against a real server that behaves badly."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator

import pytest

from tests.support import web as answers
from tests.support.decoders import until
from tests.support.web import Web, web_server
from worker.contract.errors import (
    MediaFetchFailed,
    MediaForbidden,
    MediaTooLarge,
    MediaUnsupported,
)
from worker.contract.guard import Guard
from worker.outbound import (
    HEAD_BYTES,
    Fetched,
    FetchLimits,
    Sniff,
    fetch,
    parse_url,
)

LIMITS = FetchLimits(max_bytes=100_000, total_s=5)
LOOPBACK = Guard.from_entries(["127.0.0.1"])
BODY = bytes(range(256)) * 16


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with web_server() as server:
        yield server


async def get(
    url: str, limits: FetchLimits = LIMITS, guard: Guard = LOOPBACK, sniff: Sniff | None = None
) -> tuple[Fetched, bytes]:
    out = io.BytesIO()
    fetched = await fetch(url, out, limits, guard, sniff)
    return fetched, out.getvalue()


async def test_a_body_is_written_and_hashed(web: Web) -> None:
    url = web.at("/a", answers.body(BODY))

    fetched, data = await get(url)

    assert data == BODY
    assert (fetched.size, fetched.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())


async def test_a_body_of_unknown_length_ends_with_the_connection(web: Web) -> None:
    url = web.at("/a", answers.unannounced(BODY))

    _, data = await get(url)

    assert data == BODY


async def test_three_redirects_are_followed_relative_ones_as_well(web: Web) -> None:
    web.at("/1", answers.redirect("/2"))
    web.at("/2", answers.redirect(f"{web.url}/3", 307))
    web.at("/3", answers.redirect("4", 301))
    web.at("/4", answers.body(BODY))

    _, data = await get(f"{web.url}/1")

    assert data == BODY


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answers.status(404), "answered 404"),
        (answers.status(500), "answered 500"),
        (answers.status(206), "answered 206"),
        (answers.redirect("/a"), "redirected more than 3 times"),
        (answers.status(302), "without a Location"),
        (answers.gzipped(BODY), "content encoding"),
        (answers.body(BODY, length=len(BODY) + 10), "broke off"),
        (answers.hang(), "in time"),
        (answers.stall_after(BODY, 50_000), "in time"),
        (answers.drip(BODY, 50_000, 0.02), "bytes a second"),
    ],
    ids=["404", "500", "partial", "redirects for ever", "redirect to nowhere", "gzip", "short body",
         "hangs", "stalls", "drips"],
)  # fmt: skip
async def test_what_does_not_arrive_is_a_failed_fetch(
    web: Web, answer: answers.Answer, reason: str
) -> None:
    url = web.at("/a", answer)
    limits = FetchLimits(100_000, total_s=5, stall_s=0.3, min_bytes_per_s=100_000, grace_s=0.1)

    with pytest.raises(MediaFetchFailed, match=reason):
        await get(url, limits)


async def test_the_total_time_counts_all_hops_and_bytes(web: Web) -> None:
    url = web.at("/a", answers.drip(b"x" * 90_000, 99_000, 0.02))

    with pytest.raises(MediaFetchFailed, match="in time"):
        await get(url, FetchLimits(100_000, total_s=0.3))


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    ],
    ids=["a header", "news of progress", "a chunk's size"],
)
async def test_what_is_no_body_does_not_put_off_a_stall(
    web: Web, head: bytes, piece: bytes
) -> None:
    url = web.at("/a", answers.endless(head, piece, 0.01))

    async with asyncio.timeout(5):
        with pytest.raises(MediaFetchFailed, match="in time"):
            await get(url, FetchLimits(100_000, total_s=60, stall_s=0.3))


async def test_a_closed_port_and_an_unknown_name_are_failed_fetches() -> None:
    with pytest.raises(MediaFetchFailed, match="cannot be reached"):
        await get("http://127.0.0.1:1/")
    with pytest.raises(MediaFetchFailed, match="cannot be found"):
        await get("http://no-such-host.invalid/")


@pytest.mark.parametrize("announce", [True, False])
async def test_more_than_the_limit_is_refused_announced_or_not(web: Web, announce: bool) -> None:
    huge = bytes(200_000)
    url = web.at("/a", answers.body(huge) if announce else answers.unannounced(huge))

    with pytest.raises(MediaTooLarge, match="100000 bytes"):
        await get(url)


async def test_an_announced_terabyte_is_refused_before_it_is_read(web: Web) -> None:
    url = web.at("/a", answers.stall_after(b"", 10**12))

    with pytest.raises(MediaTooLarge):
        await get(url)


async def test_the_sniffer_sees_the_beginning_and_ends_the_transfer(web: Web) -> None:
    url = web.at("/a", answers.stall_after(BODY, 50_000))
    seen = []

    def refuse(head: bytes) -> None:
        seen.append(head)
        raise MediaUnsupported("no")

    with pytest.raises(MediaUnsupported):
        await get(url, sniff=refuse)

    assert seen == [BODY[:HEAD_BYTES]]


async def test_the_sniffer_sees_a_body_shorter_than_a_head_once(web: Web) -> None:
    url = web.at("/a", answers.body(b"tiny"))
    seen = []

    await get(url, sniff=seen.append)

    assert seen == [b"tiny"]


async def test_an_inside_server_never_hears_of_a_request(web: Web) -> None:
    for guard in (Guard(), Guard.from_entries(["example.com", "10.0.0.0/8"])):
        for host in (
            "127.0.0.1",
            "localhost",
            "0x7f.1",
            "2130706433",
            "127.1",
            "[::ffff:127.0.0.1]",
        ):
            url = f"http://{host}:{web.url.rpartition(':')[2]}/a"
            with pytest.raises((MediaForbidden, MediaFetchFailed)):
                await get(url, guard=guard)

    assert web.connections == 0


async def test_a_redirect_to_the_inside_is_refused(web: Web) -> None:
    async with web_server() as inside:
        port = inside.url.rpartition(":")[2]
        url = web.at("/a", answers.redirect(f"http://127.0.0.2:{port}/secret"))

        with pytest.raises(MediaForbidden, match="not public"):
            await get(url)

        assert inside.connections == 0


async def test_an_allowed_name_is_allowed_under_that_name_only(web: Web) -> None:
    port = web.url.rpartition(":")[2]
    web.at("/a", answers.body(BODY))
    guard = Guard.from_entries(["localhost"])

    _, data = await get(f"http://localhost:{port}/a", guard=guard)

    assert data == BODY
    with pytest.raises(MediaForbidden):
        await get(f"http://127.0.0.1:{port}/a", guard=guard)


async def test_messages_carry_neither_path_nor_query(web: Web) -> None:
    url = web.at("/private", answers.status(403)) + "?token=secret"

    with pytest.raises(MediaFetchFailed) as caught:
        await get(url)

    assert caught.value.message == "127.0.0.1: answered 403"


async def test_cancelling_closes_the_connection(web: Web) -> None:
    url = web.at("/a", answers.hang())
    work = asyncio.create_task(get(url))
    await until(lambda: web.requests)

    work.cancel()

    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/a", "file:///etc/passwd", "gopher://example.com", "/etc/passwd", "",
     "http://", "http:///a", "http://user:pass@example.com/", "http://user@example.com/",
     "http://example.com\\@127.0.0.1/", "http://exam ple.com/", "http://example.com/\r\nHost: x",
     "http://example.com:99999/", "http://[::1/", "http://xn--/"],
)  # fmt: skip
def test_urls_that_two_parsers_may_read_differently_are_refused(url: str) -> None:
    with pytest.raises(MediaForbidden, match=r"^the URL "):
        parse_url(url)
