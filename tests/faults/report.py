"""The report: one table for the terminal and one for the reader of the repository."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.faults.audit import Verdict
from tests.faults.strikes import FAULTS

COLUMNS = (
    ("fault", "fault"),
    ("strikes", "strikes"),
    ("submitted", "submitted"),
    ("answered 202", "accepted"),
    ("completed", "completed"),
    ("failed", "failed"),
    ("**lost**", "lost"),
    ("**twice**", "twice"),
    ("**gaps or repeats**", "torn"),
    ("no 202, ran", "half_accepted"),
    ("refused or 503", "refusals"),
    ("slowest 503 s", "refused_after_s"),
    ("streams resumed", "cuts"),
    ("attempts beyond 1st", "more_attempts"),
    ("take-over p50 s", "takeover_p50_s"),
    ("p99 s", "takeover_p99_s"),
    ("worst s", "takeover_max_s"),
    ("late", "late"),
    ("none lived", "stranded"),
    ("worst s", "longest_stranded_s"),
    ("202 to end max s", "longest_s"),
)
TAKEOVERS = {"takeover_p50_s": 0.5, "takeover_p99_s": 0.99, "takeover_max_s": 1.0}
TROUBLES_SHOWN = 10


def cells(verdict: Verdict) -> list[str]:
    """Return one row of the table."""
    percentiles = {name: verdict.takeover_s(share) for name, share in TAKEOVERS.items()}
    values = [percentiles.get(name, getattr(verdict, name, "")) for _, name in COLUMNS]
    return [f"{value:.1f}" if isinstance(value, float) else str(value) for value in values]


def line(verdict: Verdict) -> str:
    """Return a row for the terminal."""
    named = zip((title.strip("*") for title, _ in COLUMNS), cells(verdict), strict=True)
    return " · ".join(f"{title} {cell}" for title, cell in named)


def markdown(verdicts: Sequence[Verdict], *, jobs: int, rate: float, seed: int) -> str:
    """Return the whole report."""
    return "\n".join((_HEAD.format(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        jobs=jobs,
        rate=rate,
        seed=seed,
        total=sum(verdict.accepted for verdict in verdicts),
        result="Nothing was lost, nothing ended twice, no stream had a gap or a repeat."
        if all(verdict.is_clean for verdict in verdicts)
        else "NOT CLEAN: see below.",
    ), *_tables(verdicts), _legend(verdicts), *_troubles(verdicts)))  # fmt: skip


def _tables(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one table for each broker."""
    with_redis = [verdict for verdict in verdicts if verdict.broker == "redis"]
    others = [verdict for verdict in verdicts if verdict.broker != "redis"]
    second = ["", "With RabbitMQ as broker:", "", _table(others)] if others else []
    return [_table(with_redis), *second]


def _table(verdicts: Sequence[Verdict]) -> str:
    rule = "|".join("---" if name == "fault" else "---:" for _, name in COLUMNS)
    titles = "|".join(title for title, _ in COLUMNS)
    rows = [titles, rule, *("|".join(cells(verdict)) for verdict in verdicts)]
    return "\n".join(f"|{row}|" for row in rows)


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def _legend(verdicts: Sequence[Verdict]) -> str:
    lines = dict.fromkeys(f"- `{v.fault}`: {FAULTS[v.fault].about}{_codes(v)}" for v in verdicts)
    return "\n".join(("", "## The faults", "", *lines, ""))


def _codes(verdict: Verdict) -> str:
    failed = ", ".join(f"{count} {code}" for code, count in verdict.codes.items())
    return f" (failed: {failed})" if failed else ""


def _troubles(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        shown = verdict.troubles[:TROUBLES_SHOWN]
        lines += [f"- `{verdict.name}` {trouble}" for trouble in shown]
    return ["## Broken promises", "", *lines, ""] if lines else []


_HEAD = """\
# What is left when things die

{result} {total} jobs were accepted in all.

- Measured {date} on {machine}; everything, the callers included, shares this one machine.
- {jobs} jobs per fault, {rate:g} per second, seed {seed}; two chat workers (echo engine), one
  media worker with the sweeper, one API, Redis with `appendfsync everysec`, one S3 server.
- Answers of 20, 40 or 60 tokens at 40 per second; two of three jobs are streamed, the others
  polled; every fifth has a picture of its own; every other one has an Idempotency-Key.
- Run it: `python -m tests.faults`, or some of it: `python -m tests.faults --jobs 300 --only
  kill-chat kill-redis`. It needs nothing but the development environment.

**lost**: answered 202 and not ended, or not told. **twice**: two ends, two different ends, or two
jobs for one Idempotency-Key. **gaps or repeats**: a stream whose numbers or text are not exactly
the stored ones, or an answer that is not what an undisturbed run gives. **answered 202** is less
than submitted where a connection broke under a POST without an Idempotency-Key: such a caller
cannot ask again. **no 202, ran**: the part of those whose job was in Redis already.
**take-over**: from a strike on a worker to the next attempt at a job that it had, where the other
one was ready all that time; **late** are those over the promise: 2 s where the supervisor lives,
12 s where the host is gone. **none lived**: jobs for which there was a moment without any worker,
as when the second is struck while the first one starts; their worst includes that start.
**slowest 503**: from handing a job in to the refusal.
"""
