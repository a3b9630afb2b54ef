"""Every transition of a job on a real Redis: what each state allows, what changes nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import pytest

from tests.support.factories import (
    LOST,
    MODEL,
    PICTURE,
    claim,
    completed,
    ended,
    failed,
    kinds,
    question,
    running,
    said,
    submit,
)
from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.errors import (
    EngineDied,
    IdempotencyConflict,
    JobConflict,
    JobError,
    JobGone,
    JobNotFound,
    QueueFull,
)
from worker.contract.job import Hold, JobSpec, JobStatus, Lane, Priority, Stage
from worker.contract.reader import JobReader
from worker.contract.store import JobStore, Piece

QUEUE = keys.chat_queue(MODEL, Priority.NORMAL)


@dataclass(frozen=True)
class Scene:
    """A job in some state, and a hold on it, by now stale in most of them."""

    job_id: str
    hold: Hold


async def _queued(store: JobStore) -> Scene:
    hold = await running(store)
    await store.release(hold)
    return Scene(hold.job_id, hold)


async def _running(store: JobStore) -> Scene:
    hold = await running(store)
    return Scene(hold.job_id, hold)


async def _taken(store: JobStore) -> Scene:
    scene = await _queued(store)
    await claim(store, scene.job_id, "worker-2")
    return scene


async def _cancelling(store: JobStore) -> Scene:
    scene = await _running(store)
    await store.cancel(scene.job_id)
    return scene


def _ended_as(status: JobStatus) -> Callable[[JobStore], Awaitable[Scene]]:
    async def make(store: JobStore) -> Scene:
        scene = await _running(store)
        await store.finish(scene.hold, ended(status=status))
        return scene

    return make


async def _expired(store: JobStore) -> Scene:
    hold = await running(store)
    job_id = await submit(store, start_deadline_s=0.001)
    await until_swept(store, lambda swept: swept.expired)
    return Scene(job_id, replace(hold, job_id=job_id))


async def _missing(store: JobStore) -> Scene:
    hold = await running(store)
    return Scene("job_none", replace(hold, job_id="job_none"))


async def _deleted(store: JobStore) -> Scene:
    scene = await _ended_as(JobStatus.COMPLETED)(store)
    await store.erase(scene.job_id)
    return scene


STATES = {
    "queued": _queued,
    "running": _running,
    "taken": _taken,
    "cancelling": _cancelling,
    "completed": _ended_as(JobStatus.COMPLETED),
    "failed": _ended_as(JobStatus.FAILED),
    "cancelled": _ended_as(JobStatus.CANCELLED),
    "expired": _expired,
    "missing": _missing,
    "deleted": _deleted,
}


async def _append(store: JobStore, scene: Scene) -> str:
    return "refused" if await store.append([said(scene.hold, 1, "x")]) else "done"


async def _finish(store: JobStore, scene: Scene) -> str:
    return "done" if await store.finish(scene.hold, ended("x")) else "refused"


async def _release(store: JobStore, scene: Scene) -> str:
    return "done" if await store.release(scene.hold) else "refused"


async def _stage(store: JobStore, scene: Scene) -> str:
    return "done" if await store.stage(scene.hold, Stage.LOADING_MODEL, 0) else "refused"


async def _media_ready(store: JobStore, scene: Scene) -> str:
    return "done" if await store.media_ready(scene.hold, [PICTURE]) else "refused"


async def _renew(store: JobStore, scene: Scene) -> str:
    lost, _ = await store.renew([(scene.job_id, scene.hold.fence)])
    return "refused" if lost else "done"


async def _claim(store: JobStore, scene: Scene) -> str:
    hold = await store.claim(scene.job_id, Lane.CHAT, "worker-3", "nonce")
    return "done" if hold else "refused"


async def _cancel(store: JobStore, scene: Scene) -> str:
    return await store.cancel(scene.job_id)


async def _retry(store: JobStore, scene: Scene) -> str:
    await store.retry(scene.job_id)
    return "done"


async def _erase(store: JobStore, scene: Scene) -> str:
    await store.erase(scene.job_id)
    return "done"


OPERATIONS = {
    "append": _append,
    "finish": _finish,
    "release": _release,
    "stage": _stage,
    "media_ready": _media_ready,
    "renew": _renew,
    "claim": _claim,
    "cancel": _cancel,
    "retry": _retry,
    "erase": _erase,
}

YES, NO = "done", "refused"
BUSY, NONE, GONE = "job_conflict", "job_not_found", "job_gone"

TABLE = {
    # state: append, finish, release, stage, media_ready, renew, claim, cancel, retry, erase
    "queued": (NO, NO, NO, NO, NO, NO, YES, "cancelled", BUSY, BUSY),
    "running": (YES, YES, YES, YES, YES, YES, NO, "requested", BUSY, BUSY),
    "taken": (NO, NO, NO, NO, NO, NO, NO, "requested", BUSY, BUSY),
    "cancelling": (YES, YES, YES, YES, YES, YES, NO, "requested", BUSY, BUSY),
    # An end that is said again, after a lost answer, is the same end.
    "completed": (NO, "done again", NO, NO, NO, NO, NO, "completed", BUSY, YES),
    "failed": (NO, NO, NO, NO, NO, NO, NO, "failed", YES, YES),
    "cancelled": (NO, NO, NO, NO, NO, NO, NO, "cancelled already", YES, YES),
    "expired": (NO, NO, NO, NO, NO, NO, NO, "expired", YES, YES),
    "missing": (NO, NO, NO, NO, NO, NO, NO, NONE, NONE, NONE),
    "deleted": (NO, NO, NO, NO, NO, NO, NO, GONE, GONE, GONE),
}

CHANGES = {YES, "cancelled", "requested"}

ROWS = [
    (state, operation, expected)
    for state, row in TABLE.items()
    for operation, expected in zip(OPERATIONS, row, strict=True)
]


async def until_swept(store: JobStore, is_so: Callable[[Any], object], limit_s: float = 5) -> None:
    """Sweep until a sweep did something."""
    async with asyncio.timeout(limit_s):
        while not is_so(await store.sweep()):  # noqa: ASYNC110 - Redis's clock is waited for
            await asyncio.sleep(0.02)


async def move_back(door: RedisDoor, index: str, job_id: str, ms: int) -> None:
    """Let an index look as if so much time had passed."""
    await door.redis.zincrby(door.key(index), -ms, job_id)


async def shift(door: RedisDoor, job_ids: list[str], ms: int) -> None:
    """Let waiting jobs look as if they had been handed in so much earlier."""
    for job_id in job_ids:
        await move_back(door, f"queued:{QUEUE}", job_id, ms)
        await door.redis.hincrby(door.key("job", job_id), "queued_at", -ms)


async def pass_ms(reader: JobReader, job_id: str, ms: int) -> None:
    """Wait until Redis's clock is so far past a job's making."""
    created_ms = (await reader.get(job_id))["created_at"] * 1000
    async with asyncio.timeout(5):
        while time.time() * 1000 < created_ms + ms:  # noqa: ASYNC110 - a clock is waited for
            await asyncio.sleep(0.001)


async def snapshot(door: RedisDoor, job_id: str) -> tuple[Any, ...]:
    """Return everything that is stored of a job and its place in the indexes."""
    keys_of_it = ("job", "doc")
    record = [await door.redis.hgetall(door.key(name, job_id)) for name in keys_of_it]
    indexes = ("leases", "delayed", "retention", "jobs", "start_by", "run_by", "dead")
    places = [await door.redis.zscore(door.key(name), job_id) for name in indexes]
    places.append(await door.redis.zscore(door.key("outbox"), keys.ticket(job_id, QUEUE)))
    return record, await door.events(job_id), places


@pytest.mark.parametrize(("state", "operation", "expected"), ROWS)
async def test_each_state_allows_what_the_table_says(
    store: JobStore, door: RedisDoor, state: str, operation: str, expected: str
):
    scene = await STATES[state](store)
    before = await snapshot(door, scene.job_id)

    try:
        answer = await OPERATIONS[operation](store, scene)
    except JobError as error:
        answer = error.code

    is_changed = await snapshot(door, scene.job_id) != before
    assert answer == expected.removesuffix(" again").removesuffix(" already")
    assert is_changed == (expected in CHANGES and (state, operation) != ("cancelling", "cancel"))


# --- claims ---------------------------------------------------------------------------------------


async def test_of_two_claims_at_once_one_gets_the_job(store: JobStore):
    job_id = await submit(store)

    holds = await asyncio.gather(
        *(store.claim(job_id, Lane.CHAT, f"worker-{n}", f"nonce-{n}") for n in range(8))
    )

    assert len([hold for hold in holds if hold]) == 1


async def test_a_claim_asked_again_with_its_nonce_gives_the_same_hold(
    store: JobStore, door: RedisDoor
):
    job_id = await submit(store)

    first = await store.claim(job_id, Lane.CHAT, "worker-1", "nonce")
    again = await store.claim(job_id, Lane.CHAT, "worker-1", "nonce")

    assert first == again
    assert kinds(await door.events(job_id)) == ["status"]


async def test_a_claim_in_the_other_lane_is_refused(store: JobStore):
    job_id = await submit(store, pictures=1)

    assert await store.claim(job_id, Lane.CHAT, "worker-1", "n") is None
    assert await store.claim(job_id, Lane.MEDIA, "worker-1", "n") is not None


async def test_every_claim_has_a_greater_fence_and_attempt(store: JobStore):
    job_id = await submit(store)

    fences, attempts = [], []
    for _ in range(3):
        hold = await claim(store, job_id)
        fences.append(int(hold.fence))
        attempts.append(hold.attempt)
        await store.release(hold)

    assert fences == sorted(set(fences))
    assert attempts == [1, 2, 3]


# --- pieces ---------------------------------------------------------------------------------------


async def test_a_piece_sent_again_is_not_written_twice(store: JobStore, door: RedisDoor):
    hold = await running(store)

    await store.append([said(hold, 1, "四"), said(hold, 2, "只")])
    await store.append([said(hold, 2, "只"), said(hold, 3, "羊")])

    texts = [event.text for event in await door.events(hold.job_id) if event.kind == "delta"]
    assert texts == ["四", "只", "羊"]


async def test_one_flush_writes_many_jobs_and_names_those_that_are_lost(
    store: JobStore, reader: JobReader
):
    good, lost = await running(store), await running(store)
    await store.release(lost)

    refused = await store.append([said(good, 1, "a"), said(lost, 1, "b")])

    assert refused == [lost.job_id]
    assert (await reader.get(good.job_id))["output"]["text"] == "a"
    assert (await reader.get(lost.job_id))["output"]["text"] == ""


async def test_the_end_carries_the_last_pieces_in_the_same_step(store: JobStore, door: RedisDoor):
    hold = await running(store)
    await store.append([said(hold, 1, "四")])

    await store.finish(hold, ended("四只"), [said(hold, 1, "四"), said(hold, 2, "只")])

    events = await door.events(hold.job_id)
    assert [e.text for e in events if e.kind == "delta"] == ["四", "只"]
    assert events[-1].kind == "completed"


async def test_an_end_said_twice_is_one_end(store: JobStore, door: RedisDoor):
    hold = await running(store)

    answers = [await store.finish(hold, ended("a")) for _ in range(2)]
    other = await store.finish(hold, ended(status=JobStatus.FAILED))

    assert answers == [True, True]
    assert other is False
    assert kinds(await door.events(hold.job_id)).count("completed") == 1


async def test_an_ended_job_keeps_no_token_ids(store: JobStore, door: RedisDoor):
    hold = await running(store)
    await store.append([said(hold, 1, "四只")])
    during = await door.redis.exists(door.key("tok", hold.job_id))

    await store.finish(hold, ended("四只"))

    assert (during, await door.redis.exists(door.key("tok", hold.job_id))) == (1, 0)


# --- cancelling -----------------------------------------------------------------------------------


async def test_a_job_that_ends_after_a_cancel_request_keeps_its_answer(
    store: JobStore, reader: JobReader
):
    hold = await running(store)

    asked = await store.cancel(hold.job_id)
    _, to_cancel = await store.renew([(hold.job_id, hold.fence)])
    is_finished = await store.finish(hold, ended("四只"))

    job = await reader.get(hold.job_id)
    assert (asked, to_cancel, is_finished) == ("requested", [hold.job_id], True)
    assert (job["status"], job["output"]["text"]) == ("completed", "四只")
    assert await store.cancel(hold.job_id) == "completed"


async def test_of_a_cancel_and_an_end_in_the_same_moment_both_sides_hear_which_won(
    store: JobStore, reader: JobReader
):
    for _ in range(20):
        hold = await running(store)

        asked, is_finished = await asyncio.gather(
            store.cancel(hold.job_id), store.finish(hold, ended("四只"))
        )

        job = await reader.get(hold.job_id)
        assert is_finished
        assert asked in {"requested", "completed"}
        assert (job["status"], job["output"]["text"]) == ("completed", "四只")


async def test_of_a_cancel_and_a_claim_in_the_same_moment_exactly_one_has_the_job(
    store: JobStore, reader: JobReader
):
    for _ in range(20):
        job_id = await submit(store)

        asked, hold = await asyncio.gather(
            store.cancel(job_id), store.claim(job_id, Lane.CHAT, "worker", "ticket")
        )

        status = (await reader.get(job_id))["status"]
        assert (asked, hold is None, status) in {
            ("cancelled", True, "cancelled"),
            ("requested", False, "in_progress"),
        }


async def test_a_job_given_back_after_a_cancel_request_is_cancelled(
    store: JobStore, reader: JobReader
):
    hold = await running(store)
    await store.append([said(hold, 1, "四")])
    await store.cancel(hold.job_id)

    await store.release(hold)

    job = await reader.get(hold.job_id)
    assert (job["status"], job["output"]["text"]) == ("cancelled", "四")


async def test_cancelling_a_queued_job_takes_its_ticket_back(store: JobStore, reader: JobReader):
    job_id = await submit(store)

    answers = [await store.cancel(job_id), await store.cancel(job_id)]

    assert answers == ["cancelled", "cancelled"]
    assert (await reader.get(job_id))["status"] == "cancelled"
    assert await store.claim(job_id, Lane.CHAT, "worker-1", "n") is None


async def test_a_job_cancelled_while_its_media_are_prepared_reaches_no_engine(
    store: JobStore, reader: JobReader
):
    job_id = await submit(store, pictures=1)
    hold = await claim(store, job_id, lane=Lane.MEDIA)
    await store.cancel(job_id)

    await store.media_ready(hold, [PICTURE])

    assert (await reader.get(job_id))["status"] == "cancelled"
    assert await store.claim(job_id, Lane.CHAT, "worker-1", "n") is None


# --- going back -----------------------------------------------------------------------------------


async def test_the_next_attempt_goes_on_from_what_was_streamed(store: JobStore, reader: JobReader):
    first = await running(store)
    await store.append([said(first, 1, "四"), said(first, 2, "只")])
    await store.release(first, LOST)
    waiting = await reader.get(first.job_id)

    second = await claim(store, first.job_id, "worker-2")

    assert (second.emitted_text, second.emitted_ids) == ("四只", (ord("四"), ord("只")))
    assert (second.crashes, second.attempt) == (1, 2)
    assert waiting["output"]["text"] == "四只"


async def test_a_job_that_takes_down_too_many_workers_is_dead(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    job_id = await submit(store)

    for n in range(keys.MAX_CRASHES):
        await store.release(await claim(store, job_id, f"worker-{n}"), LOST)

    job = await reader.get(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")
    assert await door.redis.zrange(door.key("dead"), 0, -1) == [job_id]


async def test_a_dead_job_keeps_how_every_attempt_ended_and_a_retry_replays_it(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    job_id = await submit(store)
    died = EngineDied("the engine was killed by signal 9")
    await store.release(await claim(store, job_id, "worker-1"), died)
    await claim(store, job_id, "worker-2")
    await store.hand_back("worker-2")
    await claim(store, job_id, "worker-3")
    await move_back(door, "leases", job_id, 60_000)
    await store.sweep()

    (dead,), _ = await reader.list_jobs(status=None, model=None, after=None, limit=9, dead=True)
    await store.retry(job_id)
    left, _ = await reader.list_jobs(status=None, model=None, after=None, limit=9, dead=True)

    attempts = dead["attempts"]
    assert (dead["id"], dead["status"]) == (job_id, "failed")
    assert [(a["attempt"], a["owner"], a["status"], a["error"]["code"]) for a in attempts] == [
        (1, "worker-1", "lost", "engine_died"),
        (2, "worker-2", "lost", "worker_lost"),
        (3, "worker-3", "lost", "worker_lost"),
    ]
    assert all(dead["created_at"] <= a["started_at"] <= a["finished_at"] for a in attempts)
    assert left == []
    assert (await claim(store, job_id)).crashes == 0
    assert (await reader.get(job_id))["attempts"] == attempts


async def test_the_dead_list_goes_on_although_its_cursor_was_replayed(
    store: JobStore, reader: JobReader
):
    ids = [await submit(store) for _ in range(3)]
    for job_id in ids:
        for _ in range(keys.MAX_CRASHES):
            await store.release(await claim(store, job_id), LOST)
    asked = {"status": None, "model": None, "limit": 1, "dead": True}
    (first,), cursor = await reader.list_jobs(**asked, after=None)
    (second,), _ = await reader.list_jobs(**asked, after=cursor)
    await store.retry(first["id"])

    (after_replay,), _ = await reader.list_jobs(**asked, after=cursor)

    assert {first["id"], second["id"]} < set(ids)
    assert after_replay["id"] == second["id"]
    with pytest.raises(JobNotFound):
        await reader.list_jobs(**asked, after="job_never")


async def test_of_many_attempts_the_youngest_are_remembered(store: JobStore, reader: JobReader):
    job_id = await submit(store)

    for n in range(keys.MAX_ATTEMPTS + 3):
        await store.release(await claim(store, job_id, f"worker-{n}"))

    attempts = (await reader.get(job_id))["attempts"]
    assert [a["attempt"] for a in attempts] == list(range(4, keys.MAX_ATTEMPTS + 4))
    assert {(a["status"], a["error"]) for a in attempts} == {("given_back", None)}


async def test_giving_back_in_good_order_counts_no_crash(store: JobStore, reader: JobReader):
    job_id = await submit(store)

    for n in range(keys.MAX_CRASHES + 1):
        await store.release(await claim(store, job_id, f"worker-{n}"))

    assert (await reader.get(job_id))["status"] == "queued"


async def test_handing_back_touches_only_the_dead_owners_jobs(store: JobStore, reader: JobReader):
    mine = [await running(store, owner="dead") for _ in range(3)]
    gone_on = await running(store, owner="dead")
    await store.release(gone_on)
    await claim(store, gone_on.job_id, "alive")
    other = await running(store, owner="alive")

    tickets = await store.hand_back("dead")

    statuses = [(await reader.get(hold.job_id))["status"] for hold in mine]
    assert set(tickets) == {(hold.job_id, QUEUE) for hold in mine}
    assert statuses == ["queued"] * 3
    assert (await reader.get(other.job_id))["status"] == "in_progress"
    assert (await reader.get(gone_on.job_id))["status"] == "in_progress"
    assert await store.hand_back("dead") == ()


# --- what is due ----------------------------------------------------------------------------------


async def test_a_lease_that_runs_out_gives_the_job_to_somebody_else(make_settings: Any):
    door = RedisDoor(make_settings(FOREBAY_LEASE_S=0.6))
    store = JobStore(door)
    kept, lost = await running(store), await running(store)

    async with asyncio.timeout(5):
        while not (swept := await store.sweep()).taken_back:
            await store.renew([(kept.job_id, kept.fence)])
            await asyncio.sleep(0.02)

    second = await claim(store, lost.job_id, "worker-2")
    assert (swept.taken_back, swept.tickets) == (1, ((lost.job_id, QUEUE),))
    assert second.crashes == 1
    assert await store.append([said(lost, 1, "x")]) == [lost.job_id]
    assert await store.append([said(kept, 1, "x")]) == []
    await door.close()


async def test_a_ticket_that_was_never_sent_is_sent_by_the_sweeper(store: JobStore):
    unsent = await submit(store)
    sent = await submit(store)
    await store.published([(sent, QUEUE)])

    early = await store.sweep()
    found: list[str] = []
    await until_swept(store, lambda swept: found.extend(id_ for id_, _ in swept.tickets) or found)

    assert early.tickets == ()
    assert found == [unsent]


async def test_a_job_overtaken_by_a_much_younger_one_gets_a_new_ticket(
    store: JobStore, door: RedisDoor
):
    overtaken, young = await submit(store), await submit(store)
    await store.published([(overtaken, QUEUE), (young, QUEUE)])
    earlier = int(time.time() * 1000) - keys.RETICKET_MS - 1000
    await door.redis.zadd(door.key("queued", QUEUE), {overtaken: earlier})
    assert (await store.sweep()).tickets == ()

    await claim(store, young)

    assert (await store.sweep()).tickets == ((overtaken, QUEUE),)


async def test_a_queue_that_stalls_is_found_and_its_jobs_get_tickets(store: JobStore):
    job_id = await submit(store)
    await store.published([(job_id, QUEUE)])

    async with asyncio.timeout(5):
        while await store.stalled_queues(0.05) != [QUEUE]:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    count = await store.reissue(QUEUE, 0.05)

    assert count == 1
    assert (await store.sweep()).tickets == ((job_id, QUEUE),)


async def test_a_job_for_later_is_in_no_queue_until_its_moment(store: JobStore, reader: JobReader):
    moment = int(time.time() * 1000) + 400
    made = await store.submit(question(), JobSpec(not_before_ms=moment))
    early = await store.claim(made.job_id, Lane.CHAT, "worker-1", "n")
    before = await reader.get(made.job_id)

    await until_swept(store, lambda swept: swept.tickets)

    hold = await store.claim(made.job_id, Lane.CHAT, "worker-1", "n")
    assert made.queue is None
    assert (early, before["queue_position"]) == (None, None)
    assert hold is not None
    assert time.time() * 1000 >= moment


async def test_a_job_for_later_that_was_cancelled_gets_no_ticket_at_its_moment(
    store: JobStore, door: RedisDoor
):
    moment = int(time.time() * 1000) + 60_000
    cancelled = await submit(store, not_before_ms=moment)
    other = await submit(store, not_before_ms=moment)
    await store.cancel(cancelled)
    for job_id in (cancelled, other):
        await door.redis.zadd(door.key("delayed"), {job_id: 1}, xx=True)

    swept = await store.sweep()

    assert swept.tickets == ((other, QUEUE),)


async def test_a_late_word_of_the_media_ticket_does_not_settle_the_models(
    store: JobStore, door: RedisDoor
):
    job_id = await submit(store, pictures=1)
    hold = await claim(store, job_id, lane=Lane.MEDIA)
    await store.media_ready(hold, [PICTURE])

    await store.published([(job_id, keys.MEDIA_QUEUE)])

    assert await door.redis.zrange(door.key("outbox"), 0, -1) == [keys.ticket(job_id, QUEUE)]


async def test_no_ticket_is_owed_to_a_job_that_is_held_or_over(store: JobStore, door: RedisDoor):
    held, over = await running(store), await submit(store)
    await store.cancel(over)
    back = await running(store)
    await store.release(back)

    owed = await door.redis.zrange(door.key("outbox"), 0, -1)

    assert held.job_id not in str(owed)
    assert owed == [keys.ticket(back.job_id, QUEUE)]


async def test_a_job_that_does_not_start_in_time_expires(store: JobStore, reader: JobReader):
    late = await submit(store, start_deadline_s=0.05)
    in_time = await running(store, start_deadline_s=0.05)

    await until_swept(store, lambda swept: swept.expired)

    job = await reader.get(late)
    assert (job["status"], job["error"]["code"]) == ("expired", "deadline_exceeded")
    assert (await reader.get(in_time.job_id))["status"] == "in_progress"


async def test_a_job_whose_media_are_not_ready_in_time_expires(store: JobStore, reader: JobReader):
    late = await submit(store, pictures=1, start_deadline_s=0.05)
    hold = await claim(store, late, lane=Lane.MEDIA)

    await until_swept(store, lambda swept: swept.expired)

    assert (await reader.get(late))["status"] == "expired"
    assert await store.media_ready(hold, [PICTURE]) is None


async def test_a_job_over_its_start_deadline_is_not_started_even_before_a_sweep(
    store: JobStore, reader: JobReader
):
    late = await submit(store, start_deadline_s=0.001)
    await pass_ms(reader, late, 5)

    hold = await store.claim(late, Lane.CHAT, "worker-1", "n")

    assert hold is None


async def test_the_start_deadline_of_a_job_for_later_counts_from_its_moment(
    store: JobStore, door: RedisDoor
):
    moment = int(time.time() * 1000) + 60_000

    job_id = await submit(store, not_before_ms=moment, start_deadline_s=1)

    assert await door.redis.zscore(door.key("start_by"), job_id) == moment + 1000


async def test_a_job_whose_worker_does_not_end_it_in_time_is_ended_by_the_sweeper(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    hold, in_time = await running(store, timeout_s=60), await running(store, timeout_s=60)
    free = await running(store)
    for begun in (hold, in_time, free):
        await store.append([Piece(begun.job_id, begun.fence, 1), said(begun, 2, "四")])
    await move_back(door, "run_by", hold.job_id, 60_000 + keys.BACKSTOP_MS)

    swept = await store.sweep()

    job = await reader.get(hold.job_id)
    assert swept.timed_out == 1
    assert (job["status"], job["error"]["code"]) == ("failed", "timeout")
    assert job["output"]["text"] == "四"
    assert await store.append([said(hold, 3, "只")]) == [hold.job_id]
    assert [(await reader.get(h.job_id))["status"] for h in (in_time, free)] == ["in_progress"] * 2


async def test_the_time_to_run_goes_on_over_attempts_and_waits(store: JobStore, door: RedisDoor):
    first = await running(store, timeout_s=60)
    await store.append([Piece(first.job_id, first.fence, 1)])
    due = await door.redis.zscore(door.key("run_by"), first.job_id)
    began_at = int(await door.redis.hget(door.key("job", first.job_id), "generating_at"))
    await door.redis.hset(door.key("job", first.job_id), "generating_at", began_at - 45_000)
    await store.release(first, LOST)

    second = await claim(store, first.job_id, "worker-2")
    await store.append([Piece(second.job_id, second.fence, 1)])

    assert due == began_at + 60_000 + keys.BACKSTOP_MS
    assert first.ran_s == 0
    assert 45 <= second.ran_s < 50
    assert await door.redis.zscore(door.key("run_by"), first.job_id) == due


async def test_a_retry_has_its_whole_time_to_run_again(store: JobStore, door: RedisDoor):
    hold = await running(store, timeout_s=60)
    await store.append([Piece(hold.job_id, hold.fence, 1)])
    await store.finish(hold, ended(status=JobStatus.FAILED))
    ended_due = await door.redis.zscore(door.key("run_by"), hold.job_id)

    await store.retry(hold.job_id)

    assert ended_due is None
    assert (await claim(store, hold.job_id)).ran_s == 0


async def test_a_job_is_gone_after_its_retention(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    hold = await running(store, retention_s=0.05)
    await store.finish(hold, ended("a"))

    await until_swept(store, lambda swept: swept.erased)

    with pytest.raises(JobGone):
        await reader.get(hold.job_id)
    left = await snapshot(door, hold.job_id)
    assert left == ([{}, {}], [], [None] * 8)


# --- again ----------------------------------------------------------------------------------------


async def test_a_retry_starts_afresh_under_the_same_id_and_remembers(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    hold = await running(store)
    await store.append([said(hold, 1, "old")])
    await store.finish(hold, ended("old", JobStatus.FAILED))
    last = (await door.events(hold.job_id))[-1].seq

    await store.retry(hold.job_id)
    waiting = await reader.get(hold.job_id)
    second = await claim(store, hold.job_id)
    await store.append([said(second, 1, "new")])
    await store.finish(second, ended("new"))

    job, events = await reader.get(hold.job_id), await door.events(hold.job_id)
    assert (waiting["status"], waiting["error"], waiting["usage"]) == ("queued", None, None)
    assert (second.emitted_text, second.emitted_ids, second.attempt) == ("", (), 2)
    assert (job["status"], job["output"]["text"], job["attempt"]) == ("completed", "new", 2)
    assert [(a["attempt"], a["error"]["code"]) for a in job["attempts"]] == [(1, "engine_error")]
    assert [event.seq for event in events] == list(range(last + 2, last + 2 + len(events)))


async def test_a_retry_after_the_media_stage_keeps_what_was_prepared(store: JobStore):
    job_id = await submit(store, pictures=1)
    await store.media_ready(await claim(store, job_id, lane=Lane.MEDIA), [PICTURE])
    hold = await claim(store, job_id)
    await store.finish(hold, ended(status=JobStatus.FAILED))

    again = await store.retry(job_id)

    assert again.queue == QUEUE
    assert (await claim(store, job_id)).media == (PICTURE,)


async def test_what_runs_or_waits_cannot_be_retried_or_erased(store: JobStore):
    hold = await running(store)

    with pytest.raises(JobConflict, match="in_progress"):
        await store.retry(hold.job_id)
    with pytest.raises(JobConflict, match="cancel it first"):
        await store.erase(hold.job_id)


async def test_an_erased_job_leaves_a_tombstone_and_nothing_else(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    job_id = await completed(store)

    await store.erase(job_id)

    with pytest.raises(JobGone):
        await reader.get(job_id)
    with pytest.raises(JobNotFound):
        await reader.get("job_never")
    assert await snapshot(door, job_id) == ([{}, {}], [], [None] * 8)
    assert await reader.list_jobs(status=None, model=None, after=None, limit=10) == ([], None)


# --- submitting -----------------------------------------------------------------------------------


async def test_the_same_idempotency_key_gives_the_same_job(store: JobStore):
    first = await store.submit(question(), JobSpec(), idempotency="k", body_hash="h")
    again = await store.submit(question(), JobSpec(), idempotency="k", body_hash="h")

    assert again.job_id == first.job_id
    assert again.queue is None
    with pytest.raises(IdempotencyConflict):
        await store.submit(question("other"), JobSpec(), idempotency="k", body_hash="other")


async def test_two_submits_at_once_with_one_key_make_one_job(store: JobStore, reader: JobReader):
    made = await asyncio.gather(
        *(store.submit(question(), JobSpec(), idempotency="k", body_hash="h") for _ in range(8))
    )

    jobs, _ = await reader.list_jobs(status=None, model=None, after=None, limit=10)
    assert len({submitted.job_id for submitted in made}) == 1
    assert len([submitted for submitted in made if submitted.queue]) == 1
    assert len(jobs) == 1


async def test_a_full_queue_takes_no_more_of_any_class(make_settings: Any):
    door = RedisDoor(make_settings(FOREBAY_QUEUE_MAX_JOBS=2))
    store = JobStore(door)
    await submit(store)
    waiting = await submit(store, priority=Priority.LOW)

    with pytest.raises(QueueFull, match="2 jobs wait"):
        await submit(store, priority=Priority.HIGH)
    await store.cancel(waiting)
    await submit(store, priority=Priority.HIGH)

    await door.close()


async def test_a_full_queue_tells_the_measured_pace(make_settings: Any):
    door = RedisDoor(make_settings(FOREBAY_QUEUE_MAX_JOBS=1))
    store = JobStore(door)
    await submit(store)
    with pytest.raises(QueueFull) as unmeasured:
        await submit(store)
    await door.command("HSET", door.key("pace", f"chat.{MODEL}"), "starts", 2, "ms", 9000)

    with pytest.raises(QueueFull) as measured:
        await submit(store)

    assert (unmeasured.value.retry_after_s, measured.value.retry_after_s) == (None, 4.5)
    await door.close()


# --- reading --------------------------------------------------------------------------------------


async def test_the_position_counts_all_that_is_served_before(store: JobStore, reader: JobReader):
    first, second = await submit(store), await submit(store)
    low = await submit(store, priority=Priority.LOW)
    await submit(store, priority=Priority.HIGH)

    positions = [(await reader.get(i))["queue_position"] for i in (first, second, low)]

    # Two of the same millisecond may stand in either order.
    assert (sorted(positions[:2]), positions[2]) == ([1, 2], 3)


async def last_start_was(door: RedisDoor, ms: int) -> None:
    """Let the last claim look as if it had been so long ago."""
    await door.redis.hincrby(door.key("pace", f"chat.{MODEL}"), "last_at", -ms)


async def test_the_eta_follows_the_measured_pace(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    first, second, third = [await submit(store) for _ in range(3)]
    unknown = (await reader.get(first))["eta_s"]
    await claim(store, first)
    await shift(door, [second, third], 4_000)
    await last_start_was(door, 4_000)

    await claim(store, second)
    made = await store.submit(question(), JobSpec())

    etas_s = [(await reader.get(job_id))["eta_s"] for job_id in (third, made.job_id)]
    assert unknown is None
    assert etas_s == pytest.approx([4, 8], abs=0.4)
    assert made.job is not None
    assert (made.job["queue_position"], made.job["eta_s"]) == (1, etas_s[1])


async def test_a_worker_that_had_nothing_to_do_is_not_a_slow_one(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    await claim(store, await submit(store))
    await last_start_was(door, 30_000)

    await claim(store, await submit(store))

    assert (await reader.get(await submit(store)))["eta_s"] is None


async def test_the_eta_of_a_job_with_media_is_that_of_the_slower_stage(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    waiting = [await submit(store, pictures=1) for _ in range(3)]
    await submit(store)
    await submit(store, priority=Priority.LOW)
    await door.redis.hset(door.key("pace", "media"), mapping={"starts": 1, "ms": 1_000})

    chat_pace = door.key("pace", f"chat.{MODEL}")
    etas_s = []
    for chat_gap_ms in (100, 20_000):
        await door.redis.hset(chat_pace, mapping={"starts": 1, "ms": chat_gap_ms})
        jobs = [await reader.get(job_id) for job_id in waiting]
        etas_s.append([job["eta_s"] for job in sorted(jobs, key=itemgetter("queue_position"))])

    assert etas_s == [[1, 2, 3], [40, 40, 40]]


async def test_a_list_is_newest_first_filtered_and_paged(store: JobStore, reader: JobReader):
    done, bad = await completed(store), await failed(store)
    waiting = [await submit(store) for _ in range(5)]

    async def ids(after: str | None = None, limit: int = 10, **only: str) -> Any:
        wanted = {"status": None, "model": None} | only
        jobs, cursor = await reader.list_jobs(**wanted, after=after, limit=limit)
        return [job["id"] for job in jobs], cursor

    whole, _ = await ids()
    page, cursor = await ids(limit=3)
    rest, end = await ids(after=cursor)

    assert set(whole) == {done, bad, *waiting}
    assert page + rest == whole
    assert end is None
    assert await ids(status="failed") == ([bad], None)
    assert await ids(status="completed", model=MODEL) == ([done], None)
    assert await ids(model="other") == ([], None)
    with pytest.raises(JobNotFound):
        await ids(after="job_never")


async def test_media_hand_a_job_on_to_its_models_queue(store: JobStore, reader: JobReader):
    job_id = await submit(store, pictures=1, priority=Priority.HIGH)
    hold = await claim(store, job_id, lane=Lane.MEDIA)
    await store.stage(hold, Stage.PREPARING, 1)
    preparing = await reader.get(job_id)

    queue = await store.media_ready(hold, [PICTURE])

    waiting = await reader.get(job_id)
    chat = await claim(store, job_id)
    assert queue == keys.chat_queue(MODEL, Priority.HIGH)
    assert (preparing["stage"], preparing["progress"]["media_done"]) == ("preparing", 1)
    assert (waiting["status"], waiting["stage"]) == ("queued", "waiting_engine")
    assert (chat.media, chat.attempt) == ((PICTURE,), 1)
