"""Attacks on the guard under which what strangers send is read: a table for each of its walls.

Names and addresses, name servers, redirects, answers, references, pictures, videos. What one
answer, picture or video may do by itself is in the tests of those modules; here is what is forged.
"""

import io
import ipaddress
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import media_files as files
from tests.support import web as answers
from tests.support.web import Web, web_server
from worker import outbound
from worker.contract import forms
from worker.contract.body import JobBody
from worker.contract.callbacks import ANSWER_CHARS, new_secret
from worker.contract.errors import (
    JobError,
    MediaError,
    MediaFetchFailed,
    MediaForbidden,
    MediaTooLarge,
    MediaUnreadable,
    MediaUnsupported,
)
from worker.contract.guard import Guard, is_public
from worker.contract.job import MediaProfile, VideoPolicy
from worker.contract.settings import Settings
from worker.media import image, sniff, video
from worker.outbound import FetchLimits, Poster, PostFailed, fetch
from worker.webhook import deliver

LIMITS = FetchLimits(100_000, total_s=5, stall_s=0.3)
LOOPBACK = Guard.from_entries(["127.0.0.1"])
PLAIN = Settings(_env_file=None)
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def get(url: str, guard: Guard = LOOPBACK) -> bytes:
    out = io.BytesIO()
    try:
        await fetch(url, out, LIMITS, guard)
    finally:
        assert len(out.getvalue()) <= LIMITS.max_bytes
    return out.getvalue()


# --- addresses and names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["0177.0.0.1", "0177.1", "0x7f000001", "127.0.0.1.", "localhost.", "LOCALHOST", "0", "0.0.0.0",
     "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127\u30020\u30020\u30021", "ⓛocalhost",
     "%31%32%37.0.0.1", "localhost%00.example", "[::]", "[::1]", "[::1%25lo]", "[::127.0.0.1]",
     "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:0:7f00:1]", "[64:ff9b::7f00:1]",
     "[2002:7f00:1::]", "[fe80::1%25lo]", "@127.0.0.1",
     "example.com@127.0.0.1", "example.com:80@127.0.0.1", "example.com%40127.0.0.1",
     "example.com\\@127.0.0.1", "127.0.0.1\t", "127.0.0.1\r\n", "127.0.0.1\u2044@example.com"],
)  # fmt: skip
async def test_no_way_to_write_the_inside_leads_there(web: Web, host: str) -> None:
    url = f"HTTP://{host}:{web.url.rpartition(':')[2]}/a"
    poster = Poster(Guard(), total_s=5, head_bytes=16)

    with pytest.raises((MediaForbidden, MediaFetchFailed)):
        await get(url, Guard())
    with pytest.raises(PostFailed):
        await poster.post(url, b"{}", {})

    assert web.connections == 0
    await poster.close()


@pytest.mark.parametrize(
    "address",
    ["0.1.2.3", "100.127.255.255", "127.255.255.255", "169.254.170.2", "192.0.0.171", "192.0.2.1",
     "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "239.255.255.250", "240.0.0.1",
     "::ffff:0:7f00:1", "64:ff9b::a9fe:a9fe", "100::1", "2001:2::1", "2001:10::1",
     "2002:a9fe:a9fe::", "4000::1", "fc00::1", "fd00:ec2::254", "fe80::1", "febf::1", "ff0e::1"],
)  # fmt: skip
def test_special_ranges_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert Guard().refusal("a.example", address, 443)


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "127.0.0.1"])
def test_a_mapped_address_is_the_one_that_it_wraps(address: str) -> None:
    assert Guard().refusal("a.example", f"::ffff:{address}%eth0", 443)


@pytest.mark.parametrize(
    "address", ["9.255.255.255", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1",
                "198.17.255.255", "198.20.0.1", "223.255.255.255"],
)  # fmt: skip
def test_their_neighbours_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("entry", "host"),
    [("a.corp", "b.a.corp"), ("a.corp", "a.corp.example"), ("corp", "a.corp"), ("*.corp", "a.corp"),
     ("a.corp:9000", "a.corp"), ("http://a.corp", "a.corp"), ("a.corp", "a.corp\0"),
     ("::/0", "a.example"), ("10.0.0.1:80", "a.example")],
)  # fmt: skip
def test_what_is_allowed_is_allowed_to_the_letter(entry: str, host: str) -> None:
    assert Guard.from_entries([entry]).refusal(host, "10.0.0.1", 80)


# --- name servers ---------------------------------------------------------------------------------


Answered = Callable[..., list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Answered:
    """Have a name server answer `a.example` with these lists of addresses, one after the other."""

    def script(*lists: list[str]) -> list[str]:
        asked: list[str] = []

        def answer(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            asked.append(host)
            addresses = lists[min(len(asked), len(lists)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        return asked

    return script


@pytest.mark.parametrize("addresses", [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]])
async def test_one_bad_address_among_good_ones_refuses_a_name(
    web: Web, names: Answered, addresses: list[str]
) -> None:
    names(addresses)

    with pytest.raises(MediaForbidden, match="not public"):
        await get(f"http://a.example:{web.url.rpartition(':')[2]}/a")

    assert web.connections == 0


async def test_a_name_is_looked_up_once_for_check_and_connection(web: Web, names: Answered) -> None:
    asked = names(["127.0.0.1"], ["127.0.0.2"])
    web.at("/a", answers.body(b"good"))

    assert await get(f"http://a.example:{web.url.rpartition(':')[2]}/a") == b"good"
    assert asked == ["a.example"]


async def test_a_name_that_turns_inwards_between_two_hops_is_refused(
    web: Web, names: Answered
) -> None:
    names(["127.0.0.1"], ["127.0.0.2"])
    web.at("/a", answers.redirect("/b"))

    with pytest.raises(MediaForbidden, match="not public"):
        await get(f"http://a.example:{web.url.rpartition(':')[2]}/a")

    assert web.requests == {"/a": 1}


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "data:image/png;base64,AAAA", "gopher://127.0.0.1:6379/_FLUSHALL",
     "ftp://127.0.0.1/", "javascript:1", "s3://bucket/key", "//169.254.169.254/meta",
     "http://127.0.0.2/", "HTTP://[::]/", "http:/\\169.254.169.254/", "\\\\169.254.169.254\\x",
     "http://example.com@169.254.169.254/", "http://a b/", "http://\u0661/", "http://xn--/",
     "http://[::1%25lo]/", "http://\udcff\udcfe/"],
)  # fmt: skip
async def test_a_redirect_to_what_is_forbidden_is_refused(web: Web, location: str) -> None:
    head = b"HTTP/1.1 302 X\r\nLocation: " + location.encode(errors="surrogateescape")
    url = web.at("/a", answers.raw(head + b"\r\nContent-Length: 0\r\n\r\n"))

    with pytest.raises((MediaForbidden, MediaFetchFailed)):
        await get(url)

    assert web.connections == 1


# --- answers --------------------------------------------------------------------------------------


ANSWERS = {
    "endless headers": (OK, b"A: b\r\n" * 1000),
    "a header without end": (OK + b"A: ", b"b" * 9000),
    "a name without end": (OK, b"a" * 9000),
    "a status line without end": (b"HTTP/1.1 200 ", b"a" * 9000),
    "a header folded without end": (OK + b"A: b\r\n", b" " + b"c" * 99 + b"\r\n"),
    "1xx without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 9),
    "103 with headers": (b"", b"HTTP/1.1 103 X\r\nA: " + b"b" * 7000 + b"\r\n\r\n"),
    "switches protocols": (b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", b"x"),
    "HTTP/0.9": (b"\x89PNG\r\n\x1a\n", b"\0"),
    "HTTP/9.9": (b"HTTP/9.9 200 OK\r\n\r\n", b"x"),
    "a status of five digits": (b"HTTP/1.1 20000 OK\r\n\r\n", b"x"),
    "a negative length": (OK + b"Content-Length: -5\r\n\r\n", b"x"),
    "two lengths": (OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n", b"x"),
    "a length and chunks": (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    "a length in words": (OK + b"Content-Length: 0x10\r\n\r\n", b"x"),
    "a length of 30 digits": (OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", b"x"),
    "chunks without end": (CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    "chunks of a byte": (CHUNKED, b"1\r\nx\r\n" * 999),
    "a chunk of 2^72": (CHUNKED + b"f" * 18 + b"\r\n", b"x"),
    "a negative chunk": (CHUNKED + b"-1\r\n", b"x"),
    "a chunk's size without end": (CHUNKED, b"0" * 9000),
    "a chunk's extension without end": (CHUNKED + b"1;", b"a" * 9000),
    "trailers without end": (CHUNKED + b"1\r\nx\r\n0\r\n", b"A: b\r\n" * 1000),
    "br": (OK + b"Content-Encoding: br\r\n\r\n", b"x"),
    "zstd": (OK + b"Content-Encoding: zstd\r\n\r\n", b"x"),
    "two encodings": (OK + b"Content-Encoding: identity, gzip\r\n\r\n", b"x"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_is_none_ends_the_fetch(web: Web, name: str) -> None:
    url = web.at("/a", answers.endless(*ANSWERS[name]))

    with pytest.raises((MediaFetchFailed, MediaTooLarge)):
        await get(url)


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_is_none_is_the_outcome_of_a_delivery(
    web: Web, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(outbound, "HEAD_S", 0.1)
    url = web.at("/a", answers.endless(*ANSWERS[name]))
    poster = Poster(LOOPBACK, total_s=0.3, head_bytes=2048)

    tried = await deliver(poster, url, "msg_1", b"{}", [new_secret()])

    assert (tried.status is None) == ("127.0.0.1: did not answer" in tried.answer)
    assert len(tried.answer) <= ANSWER_CHARS
    await poster.close()


async def test_proxies_of_the_environment_are_not_used(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with web_server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)

        assert await get(web.at("/a", answers.body(b"good"))) == b"good"
        with pytest.raises(MediaForbidden):
            await get("http://169.254.169.254/")

        assert proxy.connections == 0


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    ["file:///etc/passwd", "FILE:/etc/passwd", "s3://bucket/key", "/etc/passwd", "../../etc/passwd",
     "C:\\secret.png", "\\\\host\\share", "media/default/sha256/00/00", "file_../../secret",
     "file_" + "0" * 31 + "/", " http://127.0.0.1/", "http:/127.0.0.1/", "//127.0.0.1/",
     "data:image/png,AAAA", "data:;base32,AAAA", 'data:image/png;base64;x=",AAAA',
     "data:image/png;base64,AA\nAA", "data:image/png;base64,AAA", "data:image/png;base64,_-_-",
     "data:image/png" + ";a=b" * 100 + ";base64,AAAA", "data:image/png;base64,", "data:"],
)  # fmt: skip
@pytest.mark.parametrize("by", ["url", "file_id"])
def test_what_is_no_reference_is_refused_before_it_is_opened(reference: str, by: str) -> None:
    link = {"type": "image_url", "image_url": {by: reference}}
    body = JobBody.model_validate({"messages": [{"role": "user", "content": [link]}]})

    with pytest.raises(JobError) as caught:
        forms.parse(body, PLAIN)

    assert caught.value.param == "messages[0].content[0]"


# --- pictures -------------------------------------------------------------------------------------


def png(*chunks: tuple[bytes, bytes], side: int = 64) -> bytes:
    rows = zlib.compress(bytes((1 + 3 * 64) * 64))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(files.chunk(*part) for part in parts)


def tags(count: int, size: int) -> bytes:
    """Return a directory of fields that all have the same bytes."""
    fields = (struct.pack("<HHLL", 300 + n, 7, size, 8) for n in range(count))
    return b"II*\0" + struct.pack("<LH", 8, count) + b"".join(fields) + bytes(4)


def webp(width: int, height: int) -> bytes:
    """Return an animation that claims a canvas around a small picture."""
    inner = files.picture(64, 48, "WEBP")[12:]
    canvas = b"\2\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(6) + b"\x3f\0\0\x2f\0\0" + bytes(4) + inner
    chunks = ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))
    body = b"WEBP" + b"".join(
        k + struct.pack("<L", len(v)) + v + bytes(len(v) % 2) for k, v in chunks
    )
    return b"RIFF" + struct.pack("<L", len(body)) + body


ZEROS = zlib.compress(bytes(50_000_000), 9)
GIF = files.animated_gif(1)
GIF_FRAME = GIF.index(b"\x2c")
PICTURES: dict[str, tuple[bytes, type[MediaError]]] = {
    "a picture of 2^31": (png(side=2**31 - 1), MediaTooLarge),
    "50 MB in a zTXt": (png((b"zTXt", b"a\0\0" + ZEROS)), MediaUnreadable),
    "50 MB in an iTXt": (png((b"iTXt", b"a\0\1\0\0\0" + ZEROS)), MediaUnreadable),
    "50 MB in a profile": (png((b"iCCP", b"a\0\0" + ZEROS)), MediaUnreadable),
    "80 MB in many texts": (
        png(*[(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(10**6))) for n in range(80)]),
        MediaUnreadable,
    ),
    "a frame larger than its GIF": (
        GIF[: GIF_FRAME + 5] + b"\xff" * 4 + GIF[GIF_FRAME + 9 :], MediaTooLarge,
    ),
    "a GIF of 65535 × 65535": (GIF[:6] + b"\xff" * 4 + GIF[10:], MediaTooLarge),
    "a WebP of 2^24 × 256": (webp(2**24, 256), MediaTooLarge),
    "a WebP of 16383 × 16383": (webp(16_383, 16_383), MediaTooLarge),
    "a BMP of 2^31": (
        files.picture(form="BMP")[:18] + b"\xff\xff\xff\x7f" * 2 + files.picture(form="BMP")[26:],
        MediaTooLarge,
    ),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", MediaUnsupported),
    "EPS behind a header": (b"\xc5\xd0\xd3\xc6" + bytes(600), MediaUnsupported),
    "PDF": (b"%PDF-1.7\n", MediaUnsupported),
    "PSD": (b"8BPS\0\1" + bytes(600), MediaUnsupported),
    "ICO": (b"\0\0\1\0\1\0" + bytes(600), MediaUnsupported),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(600), MediaUnsupported),
    "its codestream": (b"\xff\x4f\xff\x51" + bytes(600), MediaUnsupported),
    "JPEG XL": (b"\xff\x0a" + bytes(600), MediaUnsupported),
    "SVG": (b"<?xml version='1.0'?><svg><image href='file:///etc/passwd'/>", MediaUnsupported),
    "WMF": (b"\xd7\xcd\xc6\x9a" + bytes(600), MediaUnsupported),
    "BigTIFF": (b"II+\0\x08\0\0\0" + bytes(600), MediaUnsupported),
}  # fmt: skip


def look(data: bytes) -> image.Prepared:
    sniff.require(data[: sniff.HEAD_BYTES], "image")
    image.size_if_fit(data, MediaProfile(), PLAIN.image_max_pixels)
    return image.prepare(data, MediaProfile(), PLAIN.image_max_pixels)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_claims_too_much_is_refused(name: str) -> None:
    data, kind = PICTURES[name]

    with pytest.raises(kind):
        look(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as worker.media.image has it
@pytest.mark.parametrize(
    "data",
    [
        png((b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        png((b"eXIf", tags(20_000, 200_000))),
        png((b"eXIf", tags(0, 0)[:8] + struct.pack("<HHHLLL", 1, 0x8769, 4, 1, 8, 8))),
        GIF[:-1] + GIF[GIF_FRAME:-1] * 20_000 + b";",
        files.picture(64, 64, "JPEG")[:2]
        + struct.pack(">BBH", 0xFF, 0xE2, 6 + len(tags(0, 0)))
        + b"MPF\0"
        + tags(0, 0)
        + files.picture(64, 64, "JPEG")[2:],
    ],
    ids=["frames that are not there", "4 GB of tags in 240 kB", "tags that hold themselves",
         "a GIF of 20 001 frames", "an MPO of none"],
)  # fmt: skip
def test_what_a_picture_has_beside_itself_is_not_gone_into(data: bytes) -> None:
    assert look(data).width == 64


# --- videos ---------------------------------------------------------------------------------------


Sample = Callable[[bytes, str], Awaitable[object]]


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    async def run(data: bytes, demuxer: str) -> object:
        path = tmp_path / "video"
        path.write_bytes(data)
        order = video.order_for(
            path, tmp_path, demuxer, profile=MediaProfile(), policy=VideoPolicy(), limits=PLAIN
        )
        return await video.sample(order, 30)

    return run


@pytest.mark.parametrize("demuxer", ["mov", "mpegts", "avi"])
@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}/a.ts\n#EXT-X-ENDLIST\n",
     "ffconcat version 1.0\nfile '{0}/a.ts'\n",
     "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"],
    ids=["HLS", "concat", "SDP"],
)  # fmt: skip
async def test_a_playlist_is_no_video_and_nothing_in_it_is_opened(
    web: Web, sample: Sample, playlist: str, demuxer: str
) -> None:
    data = playlist.format(web.url).encode()

    with pytest.raises(MediaUnsupported):
        sniff.require(data, "video")
    with pytest.raises((MediaUnreadable, MediaUnsupported)):
        await sample(data, demuxer)

    assert web.connections == 0


def with_field(box: bytes, at: int, value: bytes) -> bytes:
    """Return a video of which one header field is another."""
    data = files.video()
    at += data.index(box) + 4
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    "data",
    [
        with_field(b"mdhd", 12, bytes(4)),
        with_field(b"stts", 8, b"\x7f\xff\xff\xff"),
        with_field(b"stsz", 4, struct.pack(">II", 1, 2**31 - 1)),
        with_field(b"stsz", 4, struct.pack(">II", 1, 2**28)),
        b"\0\0\0\x10ftypisom\0\0\0\0"
        + b"".join(struct.pack(">I", 8 * (50_000 - n)) + b"moov" for n in range(50_000)),
    ],
    ids=["no seconds", "2^31 of a length", "2^31 frames", "2^28 frames", "50 000 boxes deep"],
)
async def test_a_video_whose_header_claims_too_much_is_refused(sample: Sample, data: bytes) -> None:
    with pytest.raises(MediaError):
        await sample(data, "mov")
