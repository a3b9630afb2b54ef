"""One delivery: sign, POST, classify the answer. No schedule, no Redis.

Signatures are the Standard Webhooks specification's (v1, HMAC-SHA256): see `sign`.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from worker.contract.callbacks import ANSWER_CHARS, key_of
from worker.outbound import Poster, PostFailed

TIMEOUT_S = 15.0  # the specification: 15 to 30 s
TOLERANCE_S = 300  # how far a receiver lets the timestamp be off, in the public libraries

ANSWER_BYTES = 4 * ANSWER_CHARS  # that many characters, in any language

_GONE = 410

Result = Literal["delivered", "failed", "gone"]


class UnverifiedError(Exception):
    """A delivery is not signed with the secret, or not now; the message says which."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How a try ended.

    `status` is None where there was no answer, and `answer` is then the reason; else it is the
    beginning of the body. `retry_after_s` is 0 where none was asked for.
    """

    result: Result
    status: int | None
    answer: str
    at_s: float
    took_s: float
    retry_after_s: float = 0.0


def sign(secret: str, event_id: str, at_s: int, body: bytes) -> str:
    """Return one signature: `v1,` and the base64 of the HMAC over `<id>.<timestamp>.<body>`."""
    signed = f"{event_id}.{at_s}.".encode() + body
    digest = hmac.digest(key_of(secret), signed, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def headers(event_id: str, at_s: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """Return a delivery's headers; every secret signs, so that one can be changed for another."""
    return {
        "Content-Type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(sign(secret, event_id, at_s, body) for secret in secrets),
    }


def verify(secret: str, given: Mapping[str, str], body: bytes, now_s: float) -> None:
    """Check a delivery as a receiver does. `given` has its header names in lower case.

    Raises:
        UnverifiedError: a header is missing, the time is off by more than 5 minutes, or no
            signature is the secret's.
    """
    try:
        event_id, at, signatures = (
            given[f"webhook-{name}"] for name in ("id", "timestamp", "signature")
        )
        at_s = int(at)
    except KeyError as error:
        raise UnverifiedError(f"the header {error} is missing") from error
    except ValueError as error:
        raise UnverifiedError("the webhook-timestamp is no number of seconds") from error
    if abs(now_s - at_s) > TOLERANCE_S:
        raise UnverifiedError(f"the webhook-timestamp is {now_s - at_s:.0f} s off")
    expected = sign(secret, event_id, at_s, body).encode()
    if not any(hmac.compare_digest(one.encode(), expected) for one in signatures.split()):
        raise UnverifiedError("no signature is this secret's")


def classify(status: int) -> Result:
    """Return what a status means: 2xx delivered, 410 gone for good, all else (3xx too) failed."""
    if status // 100 == 2:  # noqa: PLR2004 - HTTP's own number
        return "delivered"
    return "gone" if status == _GONE else "failed"


def retry_after_s(text: str, now_s: float) -> float:
    """Return the seconds that a `Retry-After` asks for: a number or an HTTP date; 0 for none."""
    if text.strip().isdecimal():
        return float(text.strip()[:12])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the receiver wrote it
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.fromtimestamp(now_s, UTC)).total_seconds())


async def deliver(
    poster: Poster, url: str, event_id: str, body: bytes, secrets: Sequence[str]
) -> Tried:
    """Try once. Whatever happens is an outcome; nothing is raised."""
    at_s, began = time.time(), time.monotonic()
    try:
        reply = await poster.post(url, body, headers(event_id, int(at_s), body, secrets))
    except PostFailed as error:
        return Tried("failed", None, str(error), at_s, time.monotonic() - began)
    return Tried(
        classify(reply.status),
        reply.status,
        _readable(reply.head),
        at_s,
        time.monotonic() - began,
        retry_after_s(reply.retry_after, time.time()),
    )


def _readable(head: bytes) -> str:
    """Return an answer's beginning as text that any terminal and any JSON takes."""
    text = head.decode("utf-8", "replace")[:ANSWER_CHARS]
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
