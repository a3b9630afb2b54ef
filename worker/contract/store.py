"""The transitions of jobs: every write to a record. The rules are in `scripts`.

Every method raises StoreUnavailable when Redis does not answer. None repeats a write by itself but
`submit`, whose caller cannot: only here is the new job's id known.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from worker.contract import callbacks, keys, record, view
from worker.contract.door import RedisDoor, dump
from worker.contract.errors import (
    DeadlineOver,
    ExecutionTimeout,
    IdempotencyConflict,
    JobConflict,
    JobError,
    QueueFull,
    StoreUnavailable,
    WorkerLost,
)
from worker.contract.events import delta_data, joined
from worker.contract.job import (
    ChatRequest,
    Door,
    Hold,
    JobSpec,
    Lane,
    Outcome,
    PreparedMedia,
    Said,
    Stage,
    line_job_id,
    new_job_id,
    with_history,
)
from worker.contract.near import goes_on, near_of

_SWEEP_BATCH = 200


def _told(error: JobError) -> str:
    return dump(error.as_dict())


_DEAD = _told(WorkerLost("the job took several workers down and is not tried again"))
_KILLED = _told(WorkerLost("the worker's process ended"))
_SILENT = _told(WorkerLost("the worker's lease ran out"))
_LATE = _told(DeadlineOver("the job did not start before its start_deadline_s"))
_LONG = _told(ExecutionTimeout("the job ran longer than its timeout_s"))


@dataclass(frozen=True, slots=True)
class Submitted:
    """A durable job.

    `queue` is where its ticket goes, None where none is due (a delayed job, or one that was there
    already under the same Idempotency-Key). `job` is the job object, None where it must be read.
    """

    job_id: str
    queue: str | None
    job: dict[str, Any] | None = None


class Piece(NamedTuple):
    """What one flush writes of one job: a delta, or (`text` None) that generation began.

    `number` counts the pieces of a hold from 1; a piece sent again is not written twice. The last
    three are as in `job.Said`.
    """

    job_id: str
    fence: str
    number: int
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()

    def values(self) -> list[Any]:
        """Return its five values for the scripts."""
        count = len(self.token_ids)
        if self.text is None:
            return [self.number, "generating", "", "", 0]
        packed = "".join(f"{token_id}," for token_id in self.token_ids)
        data = delta_data(
            self.text,
            count,
            reasoning=self.reasoning,
            tool_calls=self.tool_calls,
            logprobs=self.logprobs,
        )
        return [self.number, "delta", data, packed, count]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did, and the tickets (job id, queue) that must be published now."""

    taken_back: int
    expired: int
    timed_out: int
    erased: int
    tickets: tuple[tuple[str, str], ...]


class JobStore:
    """Writes job records. Safe for many tasks at once."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door

    async def submit(
        self, request: ChatRequest, spec: JobSpec, *, idempotency: str = "", body_hash: str = ""
    ) -> Submitted:
        """Make a job durable. Returns once it is in Redis; the caller then publishes its ticket.

        `idempotency` is the caller's key with its tenant; the same key with the same `body_hash`
        returns the first job, with another one raises IdempotencyConflict. Raises QueueFull, and
        JobConflict for a line of a batch that is not open.

        Where Redis does not answer, it asks once more: a first call whose answer was lost has made
        the job, and a caller who is told "not accepted" would hand it in a second time.
        """
        job_id, new = _job_id(spec), _new_record(request, spec, self._door.settings.retention_s)
        fields = new | {"request": dump(request.as_dict())}
        short, long = record.split({n: v for n, v in fields.items() if n not in _SCRIPT_FIELDS})
        counted = (*keys.chat_queues(request.model), keys.MEDIA_QUEUE)
        answer = await self._ask_twice(
            "submit",
            job_id,
            *(new[name] for name in _SCRIPT_FIELDS),
            idempotency,
            body_hash,
            keys.IDEMPOTENCY_S,
            self._door.settings.queue_max_jobs,
            spec.not_before_ms,
            int((spec.start_deadline_s or 0) * 1000),
            len(counted),
            *counted,
            len(short),
            *short,
            *long,
        )
        match answer:
            case ["replay", old_id, old_hash]:
                if old_hash != body_hash:
                    raise IdempotencyConflict("this Idempotency-Key was used with another body")
                return Submitted(old_id, None)
            case ["full", waiting, gap_ms]:
                raise QueueFull(
                    f"{waiting} jobs wait for this model already; try again later",
                    retry_after_s=view.eta_s(gap_ms),
                )
            case ["closed"]:
                raise JobConflict("the batch takes no more lines, or has had this one")
            case ["ok", at, ahead, eta_ms, queue]:
                eta_s = view.eta_s(eta_ms)
                job = view.public(job_id, _queued(new, at), position=ahead, eta_s=eta_s)
                return Submitted(job_id, queue, job)
            case _:  # later
                return Submitted(job_id, None)

    async def _ask_twice(self, name: str, *args: Any) -> Any:
        try:
            return await self._door.call(name, *args)
        except StoreUnavailable as error:
            if not error.was_asked:
                raise
            return await self._door.call(name, *args, insist=True)

    async def published(self, tickets: Sequence[tuple[str, str]]) -> None:
        """Note that these tickets (job id, queue) are with the broker."""
        if tickets:
            sent = [keys.ticket(job_id, queue) for job_id, queue in tickets]
            await self._door.command("ZREM", self._door.key("outbox"), *sent)

    # --- hold -------------------------------------------------------------------------------------

    async def claim(self, job_id: str, lane: Lane, owner: str, nonce: str) -> Hold | None:
        """Take a waiting job under a lease; None when somebody has it or it is over.

        `nonce` is fresh per wish: asking again with it after StoreUnavailable gives the same hold.
        """
        answer = await self._door.call("claim", job_id, lane, owner, nonce, self._door.lease_ms)
        if answer is None:
            return None
        fence, attempt, ran_ms, crashes, tokens, request, spec, media = answer
        ids, said = await self._emitted(job_id) if int(tokens or 0) else ((), Said())
        return Hold(
            job_id=job_id,
            fence=fence,
            attempt=int(attempt),
            lane=lane,
            request=ChatRequest.from_dict(json.loads(request)),
            spec=JobSpec.from_dict(json.loads(spec)),
            crashes=int(crashes),
            ran_s=ran_ms / 1000,
            media=tuple(PreparedMedia.from_dict(m) for m in json.loads(media or "[]")),
            emitted_ids=ids,
            emitted_text=said.text,
            emitted_reasoning=said.reasoning,
            emitted_tool_calls=said.tool_calls,
        )

    async def _emitted(self, job_id: str) -> tuple[tuple[int, ...], Said]:
        packed = await self._door.command("GET", self._door.key("tok", job_id))
        ids = tuple(int(n) for n in (packed or "").split(",") if n)
        return ids, joined(await self._door.events(job_id))

    async def renew(self, holds: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Prolong the leases of (job id, fence) pairs; return (ids lost, ids to cancel)."""
        flat = [value for pair in holds for value in pair]
        lost, cancel = await self._door.call("renew", self._door.lease_ms, *flat)
        return lost, cancel

    async def append(self, pieces: Sequence[Piece]) -> list[str]:
        """Write one flush of many jobs; return the ids whose writer must stop."""
        flat: list[Any] = []
        for piece in pieces:
            flat += [piece.job_id, piece.fence, *piece.values()]
        refused: list[str] = await self._door.call("append", *flat)
        return refused

    async def stage(self, hold: Hold, stage: Stage, media_done: int) -> bool:
        """Say how far the media stage is; False when the hold is lost."""
        done = await self._door.call("stage", hold.job_id, hold.fence, stage, media_done)
        return bool(done)

    async def media_ready(self, hold: Hold, media: Sequence[PreparedMedia]) -> str | None:
        """End the media stage; return the queue for the ticket, None when refused."""
        queue = keys.chat_queue(hold.request.model, hold.spec.priority)
        goes_to: str | None = await self._door.call(
            "media_ready", hold.job_id, hold.fence, queue, dump([asdict(item) for item in media])
        )
        return goes_to

    async def finish(self, hold: Hold, outcome: Outcome, last: Sequence[Piece] = ()) -> bool:
        """End a job with its outcome and what is not yet streamed, in one step; False if refused.

        Safe to repeat after StoreUnavailable: the same end said twice is one end.
        """
        pieces = [value for piece in last for value in piece.values()]
        return bool(
            await self._door.call(
                "finish",
                hold.job_id,
                hold.fence,
                outcome.status,
                len(last),
                *pieces,
                *record.split(_end_of(hold, outcome))[1],
            )
        )

    async def release(self, hold: Hold, crash: JobError | None = None) -> bool:
        """Give a job back to its queue; False when refused.

        A `crash` counts against the job and stands in its `attempts`; None is good order.
        """
        why = _told(crash) if crash else ""
        return bool(
            await self._door.call("release", hold.job_id, hold.fence, why, keys.MAX_CRASHES, _DEAD)
        )

    async def hand_back(self, owner: str) -> tuple[tuple[str, str], ...]:
        """Give back everything that a dead process held; return the tickets (job id, queue).

        They stand in the outbox: whoever publishes them at once spares the jobs a sweep's wait.
        """
        given = await self._door.call("hand_back", owner, keys.MAX_CRASHES, _DEAD, _KILLED)
        return tuple((job_id, queue) for job_id, queue in given)

    async def cancel(self, job_id: str) -> str:
        """Ask for the end of a job.

        Returns its terminal status where it is over, `cancelled` where nobody held it, `requested`
        where a worker does: it then ends as cancelled once that worker has dropped it.
        """
        answer = str(await self._door.call("cancel", job_id))
        if answer == "missing":
            await self._door.missing(job_id)
        return answer

    async def retry(self, job_id: str) -> Submitted:
        """Queue an ended job again. Raises JobConflict where it runs or completed."""
        answer = str(await self._door.call("retry", job_id))
        if answer == "missing":
            await self._door.missing(job_id)
        if answer != "ok":
            raise JobConflict(
                f"the job is {answer}; only a job that failed, expired or was "
                "cancelled can be retried"
            )
        queue = await self._door.command("HGET", self._door.key("job", job_id), "queue")
        return Submitted(job_id, queue)

    async def erase(self, job_id: str) -> None:
        """Delete an ended job and all it left. Raises JobConflict while it runs."""
        answer = str(await self._door.call("erase", job_id, keys.TOMBSTONE_S))
        if answer == "missing":
            await self._door.missing(job_id)
        if answer != "ok":
            raise JobConflict(f"the job is {answer}; cancel it first, then delete it")

    async def sweep(self, *, silent_too: bool = True) -> Swept:
        """Do everything that is due; the caller publishes the tickets, then calls `published`.

        Without `silent_too` nothing is done to jobs whose worker should have spoken by now: leases
        that ran out, jobs over their timeout.
        """
        lost, late, long, old, *tickets = await self._door.call(
            "sweep",
            keys.MAX_CRASHES,
            _DEAD,
            _SILENT,
            _LATE,
            _LONG,
            keys.TOMBSTONE_S,
            _SWEEP_BATCH,
            int(silent_too),
        )
        return Swept(lost, late, long, old, tuple(keys.ticket_parts(ticket) for ticket in tickets))

    async def stalled_queues(self, age_s: float) -> list[str]:
        """Return queues in which a job has waited for longer than `age_s`."""
        queues: list[str] = await self._door.call("stalled", int(age_s * 1000))
        return queues

    async def reissue(self, queue: str, age_s: float) -> int:
        """Give jobs that wait there for longer than `age_s` a new ticket at the next sweep."""
        return int(await self._door.call("reissue", queue, int(age_s * 1000), _SWEEP_BATCH))


def _end_of(hold: Hold, outcome: Outcome) -> view.Record:
    fields: view.Record = {}
    if hold.lane is Lane.CHAT:
        history = with_history(hold.request.history, hold.request.query, outcome.text)
        result = asdict(outcome) | {"history": history}
        del result["error"], result["status"]
        fields["result"] = dump(result)
    if outcome.error is not None:
        fields["error"] = dump(outcome.error)
    return fields


# SUBMIT takes these by place, and writes what is kept of them itself.
_SCRIPT_FIELDS = ("queue", "lane", "stage", "near", "goes_on")


def _job_id(spec: JobSpec) -> str:
    """Return a fresh id; a line of a batch has one of its own, so that it is one job for ever."""
    if spec.door is Door.BATCH:
        return line_job_id(spec.envelope["batch"], spec.envelope["line"])
    return new_job_id()


def _new_record(request: ChatRequest, spec: JobSpec, retention_s: float) -> view.Record:
    lane = keys.first_lane(has_media=bool(request.media))
    is_media = lane is Lane.MEDIA
    # The script looks for `batch` in the first place.
    line_of = {"batch": spec.envelope["batch"]} if spec.door is Door.BATCH else {}
    return line_of | {
        "queue": keys.MEDIA_QUEUE if is_media else keys.chat_queue(request.model, spec.priority),
        "lane": str(lane),
        "stage": str(Stage.WAITING_MEDIA if is_media else Stage.WAITING_ENGINE),
        "near": near_of(request),
        "goes_on": "1" if goes_on(request) else "",
        "model": request.model,
        "priority": str(spec.priority),
        "spec": dump(spec.as_dict()),
        "media_total": str(len(request.media)),
        "retention_ms": str(int((spec.retention_s or retention_s) * 1000)),
        "timeout_ms": str(int((spec.timeout_s or 0) * 1000)),
        "door": str(spec.door),
        **_receiver(spec),
    }


def _receiver(spec: JobSpec) -> view.Record:
    if not spec.webhook_url:
        return {}
    return {
        "is_hooked": "1",  # so that the others' long fields need not be looked at
        "hook_url": spec.webhook_url,
        "hook_lane": callbacks.lane_of(spec.webhook_url),
        "hook_filter": callbacks.filter_of(spec.webhook_events),
    }


def _queued(new: view.Record, at: int) -> view.Record:
    """Return a new record as Redis now has it, for the view."""
    moment = str(at)
    start = {"status": "queued", "attempt": "0", "created_at": moment, "queued_at": moment}
    return new | start
