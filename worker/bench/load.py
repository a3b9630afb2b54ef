"""What a bench asks, how often, and what it makes of the answers."""

import base64
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.demo.scenes import draw, make_scene

QUESTION = "Describe the picture in detail. Photo number {number} of the set."
_JPEG_URL = "data:image/jpeg;base64,"
PLAIN_QUESTION = "Write a long story about the sheep number {number} of a large flock."


@dataclass(frozen=True, slots=True)
class Load:
    """A load, the same for every server.

    `api` is chat (/v1/chat/completions) or jobs (/v1/jobs). Either `jobs` at once, or `seconds` of
    steady load: `rate` arrivals a second, or `inside` requests always under way. `pixels` is each
    picture's side, 0 for text only. Answers have `max_tokens` tokens, also past the text's end
    where `ignore_eos`.
    """

    url: str
    api: str = "chat"
    model: str = ""
    stream: bool = True
    jobs: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    inside: int = 0
    pixels: int = 448
    max_tokens: int = 128
    ignore_eos: bool = True
    prompt: str = ""
    key: str = field(default="", repr=False)
    timeout_s: float = 600.0


@dataclass(slots=True)
class Sample:
    """One request: monotonic moments, None for what did not happen; `error` is a code or status."""

    sent_at: float
    first_at: float | None = None
    ended_at: float | None = None
    pieces: int = 0
    tokens: int = 0
    queue_s: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of one run. Times in seconds; `pieces` are texts that arrived apart."""

    jobs: int
    failed: int
    seconds: float
    jobs_per_s: float
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    total_p50_s: float | None
    total_p99_s: float | None
    queue_p50_s: float | None
    queue_p99_s: float | None
    pieces_p50: float | None
    pieces_min: int | None
    errors: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def body(load: Load, number: int, url: str = "") -> dict[str, Any]:
    """Return one request's body; requests of different numbers have different pictures.

    `url`: that of its picture, where it was drawn before.
    """
    question = (load.prompt or (QUESTION if load.pixels else PLAIN_QUESTION)).format(number=number)
    content: Any = question
    if load.pixels:
        url = url or picture_url(load.pixels, number)
        picture = {"type": "image_url", "image_url": {"url": url}}
        content = [picture, {"type": "text", "text": question}]
    return {
        "model": load.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "ignore_eos": load.ignore_eos,
    }


def picture_url(pixels: int, number: int) -> str:
    """Return a cartoon meadow as a JPEG data URL; the number decides what is on it."""
    file = io.BytesIO()
    draw(make_scene(number, pixels, pixels)).save(file, "JPEG", quality=90)
    return _JPEG_URL + base64.b64encode(file.getvalue()).decode()


def another(url: str, number: int) -> str:
    """Return the same JPEG as another file, with a number in a comment: no server has seen it."""
    start = len(_JPEG_URL) + 4  # of base64 after the three bytes with which every JPEG begins
    comment = b"\xff\xd8\xff\xfe\x00\x10%014d\xff" % number
    return _JPEG_URL + base64.b64encode(comment).decode() + url[start:]


def report(samples: Sequence[Sample], window: tuple[float, float] | None = None) -> Report:
    """Sum up. With a `window` of monotonic moments, rates count what ended within it."""
    done = [s for s in samples if s.error is None and s.ended_at is not None]
    begin, end = window or _span(samples)
    counted = [s for s in done if begin <= (s.ended_at or 0.0) <= end]
    seconds = max(end - begin, 1e-9)
    firsts = [s.first_at - s.sent_at for s in done if s.first_at is not None]
    totals = [s.ended_at - s.sent_at for s in done if s.ended_at is not None]
    queued = [s.queue_s for s in done if s.queue_s is not None]
    pieces = [s.pieces for s in done if s.pieces]
    return Report(
        jobs=len(done),
        failed=len(samples) - len(done),
        seconds=round(seconds, 3),
        jobs_per_s=round(len(counted) / seconds, 2),
        tokens_per_s=round(sum(s.tokens for s in counted) / seconds, 1),
        ttft_p50_s=_percentile(firsts, 50),
        ttft_p99_s=_percentile(firsts, 99),
        total_p50_s=_percentile(totals, 50),
        total_p99_s=_percentile(totals, 99),
        queue_p50_s=_percentile(queued, 50),
        queue_p99_s=_percentile(queued, 99),
        pieces_p50=_percentile(pieces, 50),
        pieces_min=min(pieces, default=None),
        errors=dict(Counter(s.error for s in samples if s.error is not None)),
    )


def _span(samples: Sequence[Sample]) -> tuple[float, float]:
    ended = [s.ended_at for s in samples if s.ended_at is not None]
    begin = min((s.sent_at for s in samples), default=0.0)
    return begin, max(ended, default=begin)


def _percentile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:  # noqa: PLR2004 - quantiles need two
        return round(values[0], 4) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 4)
