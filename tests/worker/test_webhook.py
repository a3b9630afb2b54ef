"""One delivery: verified by the public libraries, and every answer classified."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import openai
import pytest
from standardwebhooks import Webhook

from tests.support import receiver as answers
from tests.support.receiver import Answer, Receiver, receiver
from worker import outbound
from worker.contract.callbacks import ANSWER_CHARS
from worker.contract.guard import Guard
from worker.outbound import Poster
from worker.webhook import (
    UnverifiedError,
    classify,
    deliver,
    headers,
    retry_after_s,
    verify,
)

BODY = '{"type":"job.completed","data":{"text":"四只"}}'.encode()
SECRET, OTHER = "whsec_" + "QUJD" * 8, "whsec_" + "REVG" * 8
LOOPBACK = Guard.from_entries(["127.0.0.1"])
NOW_S = 1_790_000_000.0
NOW = datetime.fromtimestamp(NOW_S, UTC)
TEN_GB = 10_000_000_000


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def poster() -> AsyncIterator[Poster]:
    made = Poster(LOOPBACK, total_s=1.0, head_bytes=2048)
    yield made
    await made.close()


# --- signatures -----------------------------------------------------------------------------------


async def test_the_public_library_verifies_what_arrives(web: Receiver, poster: Poster):
    tried = await deliver(poster, web.url + "/hook", "msg_1", BODY, [SECRET])

    (got,) = web.got
    assert tried.result == "delivered"
    assert Webhook(SECRET).verify(got.body, got.headers)["data"] == {"text": "四只"}
    assert (got.id, got.headers["content-type"]) == ("msg_1", "application/json")


async def test_openais_client_unwraps_what_arrives(web: Receiver, poster: Poster):
    body = (
        b'{"id":"msg_1","object":"event","created_at":1,"type":"response.completed",'
        b'"data":{"id":"resp_1"}}'
    )

    await deliver(poster, web.url, "msg_1", body, [SECRET])

    (got,) = web.got
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    event = client.webhooks.unwrap(got.body, got.headers)
    assert (event.type, event.data.id) == ("response.completed", "resp_1")
    client.close()


@pytest.mark.parametrize("wanted", [0, 1])
def test_while_secrets_overlap_each_verifies(wanted: int):
    secrets = [SECRET, OTHER]

    sent = headers("msg_1", int(time.time()), BODY, secrets)

    assert Webhook(secrets[wanted]).verify(BODY, sent)
    verify(secrets[wanted], sent, BODY, time.time())


@pytest.mark.parametrize(
    ("changed", "body", "secret", "later_s", "reason"),
    [
        ({}, BODY + b" ", SECRET, 0, "no signature"),
        ({}, BODY, OTHER, 0, "no signature"),
        ({"webhook-id": "msg_2"}, BODY, SECRET, 0, "no signature"),
        ({"webhook-signature": "v1,"}, BODY, SECRET, 0, "no signature"),
        ({"webhook-timestamp": "soon"}, BODY, SECRET, 0, "no number"),
        ({}, BODY, SECRET, 301, "301 s off"),
        ({}, BODY, SECRET, -301, "-301 s off"),
    ],
    ids=["body", "secret", "id", "signature", "timestamp", "old", "of the future"],
)
def test_what_was_changed_on_the_way_or_is_old_is_not_verified(
    changed: dict[str, str], body: bytes, secret: str, later_s: float, reason: str
):
    sent = headers("msg_1", int(NOW_S), BODY, [SECRET]) | changed

    with pytest.raises(UnverifiedError, match=reason):
        verify(secret, sent, body, NOW_S + later_s)


def test_a_missing_header_is_named():
    with pytest.raises(UnverifiedError, match="webhook-id"):
        verify(SECRET, {}, BODY, NOW_S)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((200, 201, 204, 299), "delivered"),
        ((410,), "gone"),
        ((101, 199, 300, 301, 302, 307, 400, 401, 404, 408, 429, 500, 502, 503, 504), "failed"),
    ],
)
def test_every_status_is_one_of_three_results(codes: tuple[int, ...], expected: str):
    assert {classify(code) for code in codes} == {expected}


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("", 0), ("0", 0), ("120", 120), (" 7 ", 7), ("-5", 0), ("1.5", 0), ("soon", 0),
        ("9" * 300, 999_999_999_999),
        (format_datetime(NOW + timedelta(hours=1), usegmt=True), 3600),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0),
        ("Mon, 21 Sep 2026 14:13:20", 0), ("Mon, 99 Foo 2026 99:99:99 GMT", 0),
        (f"Mon, 21 Sep 2026 14:13:20 +{'9' * 20}", 0), (f"Mon, 21 Sep {'9' * 20} 14:13:20 GMT", 0),
    ],
)  # fmt: skip
def test_a_retry_after_is_a_number_or_a_date_and_anything_else_is_none(
    text: str, expected_s: float
):
    assert retry_after_s(text, NOW_S) == expected_s


@pytest.mark.parametrize(
    ("answer", "result", "status", "said"),
    [
        (answers.status(204), "delivered", 204, ""),
        (answers.status(200, body="好".encode()), "delivered", 200, "好"),
        (answers.status(500, body=b"\xff\x00no"), "failed", 500, "��no"),
        (answers.status(410), "gone", 410, ""),
        (answers.status(302, "Location: /other"), "failed", 302, ""),
        (answers.hang(), "failed", None, "127.0.0.1: did not answer within 1 s"),
        (answers.hang_up(), "failed", None, "127.0.0.1: did not answer as an HTTP server does"),
    ],
    ids=["204", "200", "500", "410", "redirect", "hangs", "hangs up"],
)
async def test_each_answer_becomes_one_outcome(  # noqa: PLR0917 - two fixtures and a row
    web: Receiver, poster: Poster, answer: Answer, result: str, status: int | None, said: str
):
    url = web.at("/hook", answer)

    tried = await deliver(poster, url, "msg_1", BODY, [SECRET])

    assert (tried.result, tried.status, tried.answer) == (result, status, said)
    assert [got.path for got in web.got] == ["/hook"]


async def test_a_retry_after_is_handed_on(web: Receiver, poster: Poster):
    url = web.at("/hook", answers.status(429, "Retry-After: 120"))

    tried = await deliver(poster, url, "msg_1", BODY, [SECRET])

    assert (tried.result, tried.retry_after_s) == ("failed", 120)


@pytest.mark.parametrize(("code", "result"), [(200, "delivered"), (500, "failed")])
async def test_of_ten_gigabytes_only_the_beginning_is_read(
    web: Receiver, poster: Poster, code: int, result: str
):
    url = web.at("/hook", answers.endless(code, TEN_GB))

    tried = await deliver(poster, url, "msg_1", BODY, [SECRET])

    assert (tried.result, tried.answer) == (result, "x" * ANSWER_CHARS)


async def test_a_body_that_never_ends_does_not_undo_the_status(
    web: Receiver, poster: Poster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbound, "HEAD_S", 0.1)
    url = web.at("/hook", answers.drip(200))

    tried = await deliver(poster, url, "msg_1", BODY, [SECRET])

    assert (tried.result, tried.status) == ("delivered", 200)


# --- where it may go ------------------------------------------------------------------------------


async def test_an_inside_receiver_never_hears_of_it(web: Receiver):
    poster = Poster(Guard(), total_s=1.0, head_bytes=16)
    port = web.url.rpartition(":")[2]

    tries = [
        await deliver(poster, f"http://{host}:{port}/", "msg_1", BODY, [SECRET])
        for host in ("127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]")
    ]

    assert {one.result for one in tries} == {"failed"}
    assert any("not public" in one.answer for one in tries)
    assert web.connections == 0
    await poster.close()


async def test_what_cannot_be_posted_to_is_an_outcome_too(poster: Poster):
    for url in ("http://127.0.0.1:1/", "http://no-such-host.invalid/", "ftp://x/", "http://a b/"):
        tried = await deliver(poster, url, "msg_1", BODY, [SECRET])

        assert (tried.result, tried.status) == ("failed", None)
        assert tried.answer


async def test_connections_are_kept(web: Receiver, poster: Poster):
    for n in range(5):
        await deliver(poster, web.url, f"msg_{n}", BODY, [SECRET])

    assert (len(web.got), web.connections) == (5, 1)


async def test_no_more_hosts_than_the_limit_are_kept(
    web: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbound, "MAX_HOSTS", 1)
    port = web.url.rpartition(":")[2]
    poster = Poster(Guard.from_entries(["127.0.0.0/8"]), total_s=1.0, head_bytes=16)

    for host in ("127.0.0.1", "localhost", "127.0.0.1"):
        await poster.post(f"http://{host}:{port}/", BODY, {})

    assert web.connections == 3
    assert len(poster._lines) == 1
    await poster.close()


async def test_a_cancelled_delivery_closes_its_connection(web: Receiver, poster: Poster):
    url = web.at("/hook", answers.hang())
    work = asyncio.create_task(deliver(poster, url, "msg_1", BODY, [SECRET]))
    await web.until(1)

    work.cancel()

    with pytest.raises(asyncio.CancelledError):
        await work
