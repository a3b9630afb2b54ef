"""The object store's door, on a real S3 server."""

import asyncio
import hashlib
import io
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support import servers
from tests.support.web import Answer, body, web_server
from worker.contract import s3
from worker.contract.errors import MediaExpired, MediaTooLarge, StoreUnavailable
from worker.contract.s3 import ObjectStore, media_key, prepared_key, upload_key
from worker.contract.settings import Settings

DATA = b"some bytes" * 100
HASH = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with servers.s3_server() as settings:
        yield settings


@pytest.fixture
async def store(server: dict[str, str]) -> AsyncIterator[ObjectStore]:
    settings = Settings(_env_file=None, **server, S3_BUCKET=f"test-{secrets.token_hex(6)}")
    store = ObjectStore(settings)
    await store.ensure_bucket()
    yield store
    await store.close()


async def put(url: str, data: bytes, headers: dict[str, str]) -> int:
    async with aiohttp.ClientSession() as session, session.put(
        url, data=data, headers=headers
    ) as answer:  # fmt: skip
        return answer.status


def test_keys_say_what_is_behind_them() -> None:
    assert media_key(HASH) == f"media/default/sha256/{HASH[:2]}/{HASH}"
    assert upload_key("upload_1") == "uploads/default/upload_1"
    assert prepared_key("p1", HASH, "0000.jpg") == f"prep/v1/p1/{HASH}/0000.jpg"


async def test_what_was_put_is_got(store: ObjectStore) -> None:
    await store.put_bytes("a/b", DATA, "image/png")

    found = await store.head("a/b")

    assert await store.get_bytes("a/b", 10**6) == DATA
    assert (found.size, found.content_type) == (len(DATA), "image/png")


async def test_a_conditional_put_overwrites_nothing(store: ObjectStore) -> None:
    first = await store.put_bytes("a", DATA, "text/plain", if_absent=True)
    second = await store.put_bytes("a", b"other", "text/plain", if_absent=True)

    assert (first, second) == (True, False)
    assert await store.get_bytes("a", 10**6) == DATA


@pytest.mark.parametrize("multipart_above", [s3.MULTIPART_BYTES, 100])
async def test_files_go_up_whole_or_in_parts_and_come_back(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multipart_above: int
) -> None:
    monkeypatch.setattr(s3, "MULTIPART_BYTES", multipart_above)
    (tmp_path / "file").write_bytes(DATA)
    out = io.BytesIO()

    first = await store.put_file("a", tmp_path / "file", "image/png", if_absent=True)
    second = await store.put_file("a", tmp_path / "file", "image/png", if_absent=True)
    size = await store.get_to_file("a", out, 10**6)

    assert (first, second) == (True, False)
    assert (size, out.getvalue()) == (len(DATA), DATA)


async def test_more_than_the_limit_is_not_read(store: ObjectStore) -> None:
    await store.put_bytes("a", DATA, "text/plain")

    with pytest.raises(MediaTooLarge, match="limit is 999"):
        await store.get_bytes("a", 999)


async def _reset(writer: asyncio.StreamWriter) -> None:
    """Begin to answer, then have the connection reset, not closed."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome")
    await writer.drain()
    writer.transport.abort()


@pytest.mark.parametrize(
    "first",
    [body(DATA, code=503), body(DATA[:-1], length=len(DATA)), _reset],
    ids=["busy", "torn", "reset"],
)
async def test_what_did_not_come_whole_is_asked_for_again(first: Answer) -> None:
    answers = iter([first, body(DATA)])

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(answers)(writer)

    async with web_server() as web:
        web.at("/bucket/a", answer)
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
        settings = Settings(_env_file=None, S3_ENDPOINT_URL=web.url, S3_BUCKET="bucket", **keys)
        store = ObjectStore(settings)
        got = await store.get_bytes("a", 10**6)
        await store.close()

    assert got == DATA
    assert web.requests == {"/bucket/a": 2}


async def test_a_bucket_that_is_missing_is_no_lost_object(server: dict[str, str]) -> None:
    store = ObjectStore(Settings(_env_file=None, **server, S3_BUCKET="never-made"))

    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        await store.get_bytes("a", 10)

    await store.close()


async def test_what_is_not_there_has_expired(store: ObjectStore) -> None:
    assert await store.head("never") is None
    assert not await store.exists("never")
    with pytest.raises(MediaExpired):
        await store.get_bytes("never", 10)


async def test_deleting_is_fine_twice(store: ObjectStore) -> None:
    await store.put_bytes("a", DATA, "text/plain")

    await store.delete("a")
    await store.delete("a")

    assert not await store.exists("a")


async def test_a_copy_has_the_type_that_we_give_it(store: ObjectStore) -> None:
    await store.put_bytes("uploads/default/u", DATA, "video/mp4")

    await store.copy("uploads/default/u", media_key(HASH), "image/png")

    assert (await store.head(media_key(HASH))).content_type == "image/png"


async def test_a_presigned_upload_takes_what_was_announced_once(store: ObjectStore) -> None:
    signed = await store.presign_put("uploads/default/u", len(DATA), "image/png", HASH, 60)

    first = await put(signed.url, DATA, signed.headers)
    second = await put(signed.url, DATA, signed.headers)

    assert (first, second) == (200, 412)
    assert await store.get_bytes("uploads/default/u", 10**6) == DATA


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        (b"x" * len(DATA), {}),
        (DATA + b"more", {"Content-Length": str(len(DATA) + 4)}),
        (DATA, {"Content-Type": "text/html"}),
        (DATA, {"x-amz-checksum-sha256": ""}),
    ],
    ids=["other bytes", "more bytes", "other type", "no checksum"],
)
async def test_a_presigned_upload_takes_nothing_else(
    store: ObjectStore, data: bytes, changed: dict[str, str]
) -> None:
    signed = await store.presign_put("uploads/default/u", len(DATA), "image/png", HASH, 60)

    status = await put(signed.url, data, signed.headers | changed)

    assert 400 <= status < 500
    assert not await store.exists("uploads/default/u")


async def test_a_presigned_url_carries_the_host_that_clients_see(server: dict[str, str]) -> None:
    settings = Settings(
        _env_file=None, **server, S3_PUBLIC_ENDPOINT_URL="https://media.example.com"
    )
    store = ObjectStore(settings)

    signed = await store.presign_put("uploads/default/u", 1, "image/png", HASH, 60)
    await store.close()

    assert signed.url.startswith("https://media.example.com/forebay/uploads/default/u?")


async def test_a_bucket_is_made_once_with_its_rules(store: ObjectStore) -> None:
    await store.ensure_bucket()

    rules = store._client.get_bucket_lifecycle_configuration(Bucket=store.bucket)["Rules"]
    cors = store._client.get_bucket_cors(Bucket=store.bucket)["CORSRules"]

    days = {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in rules}
    assert days == {"uploads/": 1, "media/": 7, "prep/": 2, "files/": 31, "results/": 31}
    assert "PUT" in cors[0]["AllowedMethods"]


async def test_a_store_that_is_down_is_told_from_one_that_lost_something(
    server: dict[str, str],
) -> None:
    settings = Settings(_env_file=None, **(server | {"S3_ENDPOINT_URL": "http://127.0.0.1:1"}))
    store = ObjectStore(settings)

    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.get_bytes("a", 10)
    await store.close()


async def test_a_wrong_key_is_the_stores_refusal_and_no_lost_object(server: dict[str, str]) -> None:
    settings = Settings(_env_file=None, **(server | {"AWS_SECRET_ACCESS_KEY": "wrong"}))
    store = ObjectStore(settings)

    with pytest.raises(StoreUnavailable, match="refused"):
        await store.put_bytes("a", DATA, "text/plain")
    await store.close()
