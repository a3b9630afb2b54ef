"""Any order of transitions against a real Redis and a model of the rules.

Two workers claim, write, finish and give back; their supervisor hands back what they held; a caller
submits in three classes, cancels and retries; a sweeper finds leases and start deadlines over. Time
does not pass by itself: a rule moves the moment in question into the past.
"""

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import MakeSettings
from tests.support.factories import LOST, MODEL, ended, question, said
from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.errors import JobConflict
from worker.contract.events import Event, joined
from worker.contract.job import Hold, JobSpec, JobStatus, Lane, Priority
from worker.contract.reader import JobReader
from worker.contract.settings import Settings
from worker.contract.store import JobStore

OWNERS = st.sampled_from(["worker-1", "worker-2"])
TEXTS = st.text('ab四只羊\n"\\ ', max_size=4)
HOUR_S = 3600.0
MAX_JOBS = 4  # few, so that much happens to each
ENDS = st.sampled_from([JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED])


@dataclass
class Expected:
    """What must be true of a job: its status, who may write, and all that was written.

    `base` is the number of the event that is not stored, before all others.
    """

    priority: Priority = Priority.NORMAL
    has_deadline: bool = False
    base: int = 1
    status: str = "queued"
    fence: str | None = None
    owner: str = ""
    crashes: int = 0
    is_cancelling: bool = False
    pieces: int = 0
    texts: list[str] = field(default_factory=list)


Look = tuple[Expected, dict[str, Any], list[Event]]


def is_waiting(expected: Expected) -> bool:
    return expected.status == "queued"


def _check(expected: Expected, job: dict[str, Any], events: list[Event]) -> None:
    numbers = [event.seq for event in events]
    ends = [event for event in events if event.is_last]
    assert job["status"] == expected.status
    assert numbers == list(range(expected.base + 1, expected.base + 1 + len(events)))
    assert ends == (events[-1:] if expected.status not in {"queued", "in_progress"} else [])
    assert joined(events).text == "".join(expected.texts) == job["output"]["text"]


class StoreMachine(RuleBasedStateMachine):
    """Rules act on the store and on the model; the invariant compares them."""

    jobs = Bundle("jobs")
    holds = Bundle("holds")

    def __init__(self, config: Settings) -> None:
        super().__init__()
        prefix = f"{config.key_prefix}{secrets.token_hex(4)}:"
        self.runner = asyncio.Runner()
        self.door = RedisDoor(config.model_copy(update={"key_prefix": prefix}))
        self.store, self.reader = JobStore(self.door), JobReader(self.door)
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        self.runner.run(self.door.close())
        self.runner.close()

    @precondition(lambda self: len(self.expected) < MAX_JOBS)
    @rule(target=jobs, priority=st.sampled_from(Priority), has_deadline=st.booleans())
    def submit(self, priority: Priority, has_deadline: bool) -> str:
        spec = JobSpec(priority=priority, start_deadline_s=HOUR_S if has_deadline else None)
        made = self.runner.run(self.store.submit(question(), spec))
        self.expected[made.job_id] = Expected(priority, has_deadline)
        return made.job_id

    @rule(target=holds, job_id=jobs, owner=OWNERS)
    def claim(self, job_id: str, owner: str) -> object:
        job = self.expected[job_id]

        hold = self.runner.run(self.store.claim(job_id, Lane.CHAT, owner, secrets.token_hex(4)))

        assert (hold is not None) == (job.status == "queued")
        if hold is None:
            return multiple()
        assert hold.emitted_text == "".join(job.texts)
        assert hold.emitted_ids == tuple(map(ord, "".join(job.texts)))
        assert hold.crashes == job.crashes
        job.status, job.fence, job.owner, job.pieces = "in_progress", hold.fence, owner, 0
        job.has_deadline = False  # it has started
        return hold

    @rule(hold=holds, text=TEXTS, is_repeated=st.booleans())
    def append(self, hold: Hold, text: str, is_repeated: bool) -> None:
        job = self.expected[hold.job_id]
        number = job.pieces if is_repeated and job.pieces else job.pieces + 1

        refused = self.runner.run(self.store.append([said(hold, number, text)]))

        assert (refused == []) == (job.fence == hold.fence)
        if not refused and number > job.pieces:
            job.pieces = number
            job.texts.append(text)

    @rule(hold=holds, status=ENDS, text=TEXTS)
    def finish(self, hold: Hold, status: JobStatus, text: str) -> None:
        job = self.expected[hold.job_id]
        is_ours = job.fence == hold.fence
        whole = "".join([*job.texts, text])

        last = [said(hold, job.pieces + 1, text)]
        is_done = self.runner.run(self.store.finish(hold, ended(whole, status), last))

        if is_ours:
            assert is_done
            job.texts.append(text)
            job.status, job.fence = str(status), None
        elif is_done:  # said again by the one who ended it
            assert job.status == str(status)

    @rule(hold=holds, crashed=st.booleans())
    def release(self, hold: Hold, crashed: bool) -> None:
        is_done = self.runner.run(self.store.release(hold, LOST if crashed else None))

        job = self.expected[hold.job_id]
        assert is_done == (job.fence == hold.fence)
        if is_done:
            self._goes_back(job, crashed=crashed)

    @rule(owner=OWNERS)
    def hand_back(self, owner: str) -> None:
        tickets = self.runner.run(self.store.hand_back(owner))

        lost = {id_: j for id_, j in self.expected.items() if j.fence and j.owner == owner}
        assert {job_id for job_id, _ in tickets} == lost.keys()
        for job in lost.values():
            self._goes_back(job, crashed=True)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.expected[job_id]

        answer = self.runner.run(self.store.cancel(job_id))

        if job.status == "queued":
            job.status = "cancelled"
        job.is_cancelling = job.is_cancelling or job.status == "in_progress"
        assert answer == ("requested" if job.status == "in_progress" else job.status)

    @rule(job_id=jobs)
    def retry(self, job_id: str) -> None:
        job = self.expected[job_id]
        events = self.runner.run(self.door.events(job_id))
        is_allowed = job.status in {"failed", "cancelled", "expired"}

        try:
            made = self.runner.run(self.store.retry(job_id))
        except JobConflict:
            assert not is_allowed
            return

        assert is_allowed
        assert made.queue == keys.chat_queue(MODEL, job.priority)
        base = job.base + len(events) + 1
        self.expected[job_id] = Expected(job.priority, base=base)

    @rule(job_id=jobs)
    def let_the_lease_run_out(self, job_id: str) -> None:
        self.runner.run(self._make_due("leases", job_id))

        self.sweep()

        job = self.expected[job_id]
        if job.fence is not None:
            self._goes_back(job, crashed=True)

    @rule(job_id=jobs)
    def let_the_start_deadline_pass(self, job_id: str) -> None:
        job = self.expected[job_id]
        was_due = self.runner.run(self._make_due("start_by", job_id))

        self.sweep()

        assert was_due == (job.has_deadline and job.status == "queued")
        if was_due:
            job.status = "expired"

    @rule()
    def sweep(self) -> None:
        swept = self.runner.run(self.store.sweep())

        for job_id, queue in swept.tickets:
            assert queue == keys.chat_queue(MODEL, self.expected[job_id].priority)

    async def _make_due(self, index: str, job_id: str) -> bool:
        """Move a job's moment in an index into the past; False where it stands in none."""
        key = self.door.key(index)
        return bool(await self.door.command("ZADD", key, "XX", "CH", 1, job_id))

    @invariant()
    def everything_is_as_expected(self) -> None:
        looks = self.runner.run(self._look_at_all())
        for expected, job, events in looks:
            _check(expected, job, events)
        waiting = [(job["queue_position"], e.priority) for e, job, _ in looks if is_waiting(e)]
        by_class = [list(Priority).index(priority) for _, priority in sorted(waiting)]
        assert sorted(place for place, _ in waiting) == list(range(len(waiting)))
        assert by_class == sorted(by_class)

    async def _look_at_all(self) -> list[Look]:
        return await asyncio.gather(*map(self._look, self.expected))

    async def _look(self, job_id: str) -> Look:
        job, events = await asyncio.gather(self.reader.get(job_id), self.door.events(job_id))
        return self.expected[job_id], job, events

    def _goes_back(self, job: Expected, *, crashed: bool) -> None:
        job.fence, job.status = None, "queued"
        job.crashes += crashed
        if crashed and job.crashes >= keys.MAX_CRASHES:
            job.status = "failed"
        elif job.is_cancelling:
            job.status = "cancelled"


@pytest.mark.timeout(150)
def test_no_order_of_transitions_breaks_the_rules(make_settings: MakeSettings):
    run_state_machine_as_test(
        lambda: StoreMachine(make_settings()),
        settings=settings(
            max_examples=15,
            stateful_step_count=50,
            derandomize=False,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
