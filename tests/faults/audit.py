"""The books: what the callers were told against what Redis holds, after everything has ended."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.faults.ledger import Entry
from tests.faults.watch import Blow, Watch
from worker.contract.door import RedisDoor
from worker.contract.events import Event, joined
from worker.contract.job import TERMINAL

_PAGE = 200
_SHORT, _LONG = ("status", "attempt"), ("attempts", "result", "error")


@dataclass(frozen=True, slots=True)
class Record:
    """One job as Redis has it after the run; `owners` are who had the attempts that did not end it,
    by the attempt's number.
    """

    job_id: str
    status: str
    attempt: int
    text: str
    code: str
    events: tuple[Event, ...]
    owners: Mapping[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Verdict:
    """What one fault did.

    `half_accepted` are jobs that exist although no caller was told 202: one whose answer was lost
    on the way. `takeovers_s` are the times from a strike on a worker to the next attempt at a job
    that it had, ascending, where another worker was ready all that time; `stranded_s` the same
    where for a moment none was. `late` counts the former that took longer than was promised.
    `refused_after_s` is how long the slowest refusal of a new job took, `longest_s` the longest
    time from a 202 to the end. `troubles` has one line per broken promise.
    """

    fault: str
    broker: str = "redis"
    strikes: int = 0
    submitted: int = 0
    accepted: int = 0
    completed: int = 0
    failed: int = 0
    lost: int = 0
    twice: int = 0
    torn: int = 0
    half_accepted: int = 0
    refusals: int = 0
    refused_after_s: float = 0.0
    cuts: int = 0
    more_attempts: int = 0
    takeovers_s: list[float] = field(default_factory=list)
    stranded_s: list[float] = field(default_factory=list)
    late: int = 0
    longest_s: float = 0.0
    wall_s: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def takeover_s(self, share: float) -> float:
        """Return the take-over time that this share of them did not exceed, 0 for none."""
        last = len(self.takeovers_s) - 1
        return self.takeovers_s[round(share * last)] if self.takeovers_s else 0.0

    @property
    def stranded(self) -> int:
        """How many jobs had to wait until a worker was there again."""
        return len(self.stranded_s)

    @property
    def longest_stranded_s(self) -> float:
        """The longest of these waits, 0 for none."""
        return max(self.stranded_s, default=0.0)

    @property
    def name(self) -> str:
        """The fault's name, marked where the broker was not Redis."""
        return self.fault if self.broker == "redis" else f"{self.broker}/{self.fault}"

    @property
    def is_clean(self) -> bool:
        """True where nothing was lost, ended twice, or was torn, and no promise was broken."""
        return not (self.lost or self.twice or self.torn or self.troubles)


async def read_records(door: RedisDoor) -> dict[str, Record]:
    """Return every job that Redis has, by id."""
    job_ids = await door.command("ZRANGE", door.key("jobs"), 0, -1)
    found: dict[str, Record] = {}
    for start in range(0, len(job_ids), _PAGE):
        for job_id in job_ids[start : start + _PAGE]:
            short = await door.command("HMGET", door.key("job", job_id), *_SHORT)
            long = await door.command("HMGET", door.key("doc", job_id), *_LONG)
            found[job_id] = _record(job_id, [*short, *long], await door.events(job_id))
    return found


def _record(job_id: str, fields: Sequence[Any], events: list[Event]) -> Record:
    status, attempt, attempts, result, error = fields
    ended = [json.loads(line) for line in attempts.split("\n")] if attempts else []
    return Record(
        job_id,
        status or "",
        int(attempt or 0),
        json.loads(result)["text"] if result else "",
        json.loads(error)["code"] if error else "",
        tuple(events),
        {said["attempt"]: said["owner"] or "" for said in ended if said["lane"] == "chat"},
    )


def judge(
    fault: str,
    entries: Iterable[Entry],
    records: dict[str, Record],
    blows: Sequence[Blow] = (),
    watch: Watch | None = None,
    *,
    promised_s: float | None = None,
) -> Verdict:
    """Compare; `blows` are the strikes, in their order, and `promised_s` bounds a take-over."""
    verdict = Verdict(fault, strikes=len(blows))
    entries = list(entries)
    for entry in entries:
        _count(verdict, entry)
        if entry.job_id is not None:
            _compare(verdict, entry, records.get(entry.job_id))
    told = {entry.job_id for entry in entries}
    verdict.half_accepted = len(records.keys() - told)
    for record in records.values():
        _examine(verdict, record)
        _time(verdict, record, blows, watch or Watch())
    verdict.takeovers_s.sort()
    verdict.late = sum(s > promised_s for s in verdict.takeovers_s) if promised_s else 0
    return verdict


def _count(verdict: Verdict, entry: Entry) -> None:
    verdict.submitted += 1
    verdict.accepted += entry.job_id is not None
    verdict.refusals += entry.refusals
    verdict.refused_after_s = max(verdict.refused_after_s, entry.refused_after_s)
    verdict.cuts += entry.cuts
    verdict.longest_s = max(verdict.longest_s, entry.took_s or 0.0)
    for trouble in entry.troubles:
        verdict.torn += trouble.startswith(("event", "streamed"))
        verdict.twice += trouble.startswith(("ended twice", "two jobs"))
        verdict.troubles.append(f"#{entry.number} {entry.job_id}: {trouble}")


def _compare(verdict: Verdict, entry: Entry, record: Record | None) -> None:
    """Hold what one caller saw against the record."""
    if record is None or record.status not in TERMINAL or entry.outcome is None:
        verdict.lost += 1
        state = f"{record.status}, attempt {record.attempt}" if record else "not in Redis"
        verdict.troubles.append(f"#{entry.number} {entry.job_id}: lost ({state})")
        return
    verdict.completed += record.status == "completed"
    verdict.failed += record.status != "completed"
    if record.status != "completed":
        verdict.codes[record.code] = verdict.codes.get(record.code, 0) + 1
    if entry.outcome != record.status:
        verdict.twice += 1
        verdict.troubles.append(f"{entry.job_id}: told {entry.outcome}, is {record.status}")
    if record.status == "completed" and record.text != entry.answer:
        verdict.torn += 1
        verdict.troubles.append(f"{entry.job_id}: the answer is {record.text!r:.120}")


def _examine(verdict: Verdict, record: Record) -> None:
    """Check one stored stream by itself."""
    ends = [event for event in record.events if event.is_last]
    if len(ends) > 1:
        verdict.twice += 1
        verdict.troubles.append(f"{record.job_id}: {len(ends)} last events")
    numbers = [event.seq for event in record.events]
    if numbers != list(range(2, len(numbers) + 2)):
        verdict.torn += 1
        verdict.troubles.append(f"{record.job_id}: events are numbered {numbers}")
    if record.status == "completed" and joined(record.events).text != record.text:
        verdict.torn += 1
        verdict.troubles.append(f"{record.job_id}: the stream is not the answer")
    verdict.more_attempts += max(0, record.attempt - 1)


def _time(verdict: Verdict, record: Record, blows: Sequence[Blow], watch: Watch) -> None:
    """Note how long each next attempt at a job was in coming."""
    claims: dict[int, int] = {}
    for event in record.events:
        if event.kind == "status":
            said = json.loads(event.data)
            if said["status"] == "in_progress":
                claims.setdefault(said["attempt"], said["at"])
    for (attempt, before), (_, after) in pairwise(sorted(claims.items())):
        between = [blow for blow in blows if before <= blow.at_ms <= after]
        blow = _cause(between, record.owners.get(attempt, ""))
        if blow is not None:
            is_served = watch.is_served(blow, after)
            found = verdict.takeovers_s if is_served else verdict.stranded_s
            found.append((after - blow.at_ms) / 1000)


def _cause(between: Sequence[Blow], owner: str) -> Blow | None:
    """Return the strike that ended an attempt: the first at its owner, else the first of all."""
    at_owner = (blow for blow in between if owner in blow.owners)
    return next(at_owner, between[0] if between else None)
