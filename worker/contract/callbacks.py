"""Callbacks by the Standard Webhooks specification: event types, URLs, secrets, the schedule.

Plain values and rules. What is owed to whom is in `debts`, who is registered in `endpoints`.
"""

import base64
import binascii
import random
import secrets
from collections.abc import Collection
from enum import StrEnum

from yarl import URL

from worker.contract.errors import WebhookUrlInvalid
from worker.contract.guard import Guard, plain_url

MAX_URL_CHARS = 2048
MAX_TYPES = 32  # in one filter
SECRET_PREFIX = "whsec_"  # noqa: S105 - every secret begins with it, by the specification
ANSWER_CHARS = 512  # of an answer's body that the log keeps
ENDPOINT_PREFIX = "we_"

SCHEDULE_S = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The specification's: seconds from the transition, or a try that failed, to the next; 75.6 h."""

JITTER = 0.1
MAX_RETRY_AFTER_S = 86_400.0

_KEY_BYTES = range(24, 65)  # the specification's bounds
_NEW_KEY_BYTES = 32


class EventType(StrEnum):
    """Everything that a receiver can be told of. `response.*` and `batch.*` are OpenAI's."""

    JOB_STARTED = "job.started"  # an engine worker took it, for the first time
    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    RESPONSE_COMPLETED = "response.completed"
    RESPONSE_FAILED = "response.failed"
    RESPONSE_CANCELLED = "response.cancelled"
    RESPONSE_INCOMPLETE = "response.incomplete"  # the answer ran into max_output_tokens
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"


ENDINGS = tuple(kind for kind in EventType if kind is not EventType.JOB_STARTED)
"""What a receiver is told of that does not say what it wants."""


def filter_of(types: Collection[str]) -> str:
    """Return a filter as the scripts search it: every type between two spaces."""
    return f" {' '.join(map(str, types or ENDINGS))} "


def check_url(text: str, guard: Guard, *, https_only: bool, param: str) -> URL:
    """Return a receiver's URL.

    What its name resolves to is checked at each connection; here is refused what can never work.

    Raises:
        WebhookUrlInvalid: too long, not plain http(s), or an address that the guard refuses.
    """
    if len(text) > MAX_URL_CHARS:
        raise WebhookUrlInvalid(f"the URL is longer than {MAX_URL_CHARS} characters", param=param)
    try:
        url = plain_url(text)
    except ValueError as error:
        raise WebhookUrlInvalid(str(error), param=param) from error
    if https_only and url.scheme != "https":
        raise WebhookUrlInvalid("the URL must begin with https://", param=param)
    refusal = guard.refusal_of_literal(url.host or "", url.port or 0)
    if refusal is not None:
        raise WebhookUrlInvalid(f"{url.host}: {refusal}", param=param)
    return url


def lane_of(url: str) -> str:
    """Return the lane of a URL's events, its origin: one slow host holds up nobody else."""
    parsed = URL(url)
    return f"{parsed.scheme}://{(parsed.host or '').lower().rstrip('.')}:{parsed.port}"


def new_secret() -> str:
    """Return a fresh signing secret, `whsec_` and 32 random bytes in base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_NEW_KEY_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """Return a secret's key. Raises ValueError with a sentence where it is none."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a signing secret is whsec_ and base64") from error
    if not secret.startswith(SECRET_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError(
            f"a signing secret is whsec_ and {_KEY_BYTES.start} to {_KEY_BYTES.stop - 1} bytes "
            f"in base64"
        )
    return key


def wait_s(step: int, retry_after_s: float = 0.0, chance: float | None = None) -> float | None:
    """Return the seconds from the `step`-th try, which failed, to the next; None: it was the last.

    That is SCHEDULE_S[step] × (1 ± JITTER), so that receivers that fell over together are not hit
    together; never sooner than the receiver asked for, which is believed up to a day. `chance` 0 to
    1 takes the place of the dice.
    """
    if step >= len(SCHEDULE_S):
        return None
    chance = random.random() if chance is None else chance
    planned_s = SCHEDULE_S[step] * (1 - JITTER + 2 * JITTER * chance)
    return max(planned_s, min(retry_after_s, MAX_RETRY_AFTER_S))
