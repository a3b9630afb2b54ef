"""What receivers are owed: one event per transition and receiver, until it is settled."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.contract.test_store import until_swept
from tests.support.factories import claim, ended, failed, running, submit
from worker.contract import keys
from worker.contract.debts import Debts, Owed, Settled
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.errors import WebhookConflict, WebhookNotFound
from worker.contract.job import Door, JobStatus, Outcome
from worker.contract.metrics import read_totals
from worker.contract.payloads import payloads
from worker.contract.reader import JobReader
from worker.contract.store import JobStore

URL = "https://receiver.example/hook?x=1"
LANE = "https://receiver.example:443"
DAY_MS = 86_400_000
EVERYTHING = ("job.started", "job.completed", "job.failed", "job.cancelled", "job.expired")


@pytest.fixture
def debts(door: RedisDoor) -> Debts:
    return Debts(door)


@pytest.fixture
def endpoints(door: RedisDoor) -> Endpoints:
    return Endpoints(door)


def tried(event: Owed, result: str = "delivered", wait_s: float | None = None) -> Settled:
    """Return how a try ended."""
    status = {"delivered": 204, "failed": 500, "gone": 410}[result]
    return Settled(event, result, wait_s, 1_790_000_000.0, 0.25, status, "你好")


async def types(debts: Debts, lane: str = LANE) -> list[str]:
    """Claim everything that is due in a lane; return the types."""
    return [str(event.type) for event in (await debts.claim(lane, 100)).events]


# --- the debt -------------------------------------------------------------------------------------


async def _finished(store: JobStore, spec: dict[str, Any]) -> str:
    hold = await running(store, **spec)
    for _ in range(3):
        await store.finish(hold, ended("a"))
    return hold.job_id


async def _failed(store: JobStore, spec: dict[str, Any]) -> str:
    hold = await running(store, **spec)
    for _ in range(2):
        await store.finish(hold, ended(status=JobStatus.FAILED))
    return hold.job_id


async def _cancelled(store: JobStore, spec: dict[str, Any]) -> str:
    job_id = await submit(store, **spec)
    for _ in range(3):
        await store.cancel(job_id)
    return job_id


async def _cancelled_while_running(store: JobStore, spec: dict[str, Any]) -> str:
    hold = await running(store, **spec)
    for _ in range(2):
        await store.cancel(hold.job_id)
    await store.release(hold)
    return hold.job_id


async def _expired(store: JobStore, spec: dict[str, Any]) -> str:
    job_id = await submit(store, start_deadline_s=0.001, **spec)
    await until_swept(store, lambda swept: swept.expired)
    await store.sweep()
    return job_id


async def _dead(store: JobStore, spec: dict[str, Any]) -> str:
    job_id = await submit(store, **spec)
    for n in range(keys.MAX_CRASHES):
        await claim(store, job_id, f"worker-{n}")
        await store.hand_back(f"worker-{n}")
    return job_id


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (_finished, ["job.started", "job.completed"]),
        (_failed, ["job.started", "job.failed"]),
        (_cancelled, ["job.cancelled"]),
        (_cancelled_while_running, ["job.started", "job.cancelled"]),
        (_expired, ["job.expired"]),
        (_dead, ["job.started", "job.failed"]),
    ],
)
async def test_every_transition_is_owed_once_however_often_it_is_said(
    store: JobStore,
    debts: Debts,
    end: Callable[[JobStore, dict[str, Any]], Awaitable[str]],
    expected: list[str],
):
    await end(store, {"webhook_url": URL, "webhook_events": EVERYTHING})

    claimed = (await debts.claim(LANE, 100)).events

    assert sorted(event.type for event in claimed) == sorted(expected)
    assert len({event.event_id for event in claimed}) == len(expected)
    assert all(event.event_id.startswith("msg_") and event.url == URL for event in claimed)


async def test_a_job_that_names_no_events_tells_how_it_ended(store: JobStore, debts: Debts):
    await _finished(store, {"webhook_url": URL})

    assert await types(debts) == ["job.completed"]


async def test_a_job_tells_nothing_that_it_was_not_asked_for(store: JobStore, debts: Debts):
    await _finished(store, {"webhook_url": URL, "webhook_events": ("job.failed",)})

    assert await types(debts) == []


async def test_a_job_without_a_receiver_writes_no_key_for_one(store: JobStore, door: RedisDoor):
    await _finished(store, {})

    assert await door.redis.keys(door.key("hook*")) == []


async def test_the_next_life_of_a_job_has_other_ids(store: JobStore, debts: Debts):
    spec = {"webhook_url": URL, "webhook_events": EVERYTHING}
    job_id = await _failed(store, spec)
    first = (await debts.claim(LANE, 100)).events

    await store.retry(job_id)
    await store.finish(await claim(store, job_id), ended(status=JobStatus.FAILED))
    second = (await debts.claim(LANE, 100)).events

    assert {event.type for event in first} == {event.type for event in second}
    assert not {event.event_id for event in first} & {event.event_id for event in second}
    assert [event.turn for event in (*first, *second)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ended("a"), "response.completed"),
        (Outcome(JobStatus.COMPLETED, "a", finish_reason="length"), "response.incomplete"),
        (
            Outcome(JobStatus.COMPLETED, '"finish_reason":"length"', finish_reason="stop"),
            "response.completed",
        ),
        (ended(status=JobStatus.FAILED), "response.failed"),
        (ended(status=JobStatus.CANCELLED), "response.cancelled"),
    ],
)
async def test_a_response_is_told_in_openais_words(
    store: JobStore, endpoints: Endpoints, debts: Debts, outcome: Outcome, expected: str
):
    endpoint = await endpoints.add(URL, "", ())
    hold = await running(store, door=Door.RESPONSES)

    await store.finish(hold, outcome)

    assert await types(debts, endpoint["id"]) == [expected]


async def test_the_lines_of_a_batch_owe_nothing_by_themselves(
    store: JobStore, endpoints: Endpoints, debts: Debts, door: RedisDoor
):
    endpoint = await endpoints.add(URL, "", ())
    hold = await running(store)
    await door.redis.hset(door.key("job", hold.job_id), "door", Door.BATCH)

    await store.finish(hold, ended("a"))

    assert await types(debts, endpoint["id"]) == []


async def test_every_endpoint_that_wants_it_is_owed_an_event_of_its_own(
    store: JobStore, endpoints: Endpoints, debts: Debts
):
    both = [await endpoints.add(URL, "", ()), await endpoints.add(URL, "", ())]
    other = await endpoints.add(URL, "", ("job.failed",))

    await _finished(store, {"webhook_url": URL})

    claimed = [(await debts.claim(one["id"], 9)).events for one in both]
    assert [len(events) for events in claimed] == [1, 1]
    assert len({event.event_id for (event,) in claimed}) == 2
    assert await types(debts, other["id"]) == []
    assert await types(debts) == ["job.completed"]


@dataclass
class Bell:
    """What a door's owner is told."""

    lanes: list[str] = field(default_factory=list)


async def test_whoever_ends_a_job_is_told_whom_to_wake_and_only_once(
    store: JobStore, door: RedisDoor
):
    bell = Bell()
    door.on_owed = bell.lanes.extend

    await _finished(store, {"webhook_url": URL})
    await _finished(store, {"webhook_url": URL + "&y"})

    assert bell.lanes == [LANE]


# --- claiming and settling ------------------------------------------------------------------------


async def test_a_claimed_event_is_nobody_elses_until_its_lease_is_over(
    store: JobStore, debts: Debts
):
    await _finished(store, {"webhook_url": URL})
    (first,) = (await debts.claim(LANE, 9)).events

    during = (await debts.claim(LANE, 9)).events
    debts.ahead_ms = keys.HOOK_LEASE_MS + 100
    (again,) = (await debts.claim(LANE, 9)).events

    assert during == ()
    assert again.event_id == first.event_id
    assert (first.attempt, again.attempt) == (1, 2)


async def test_what_is_delivered_is_owed_no_more(store: JobStore, debts: Debts, door: RedisDoor):
    job_id = await _finished(store, {"webhook_url": URL})
    (event,) = (await debts.claim(LANE, 9)).events

    await debts.settle([tried(event)])

    (seen,) = await debts.deliveries(job_id, 9)
    debts.ahead_ms = 9 * DAY_MS
    assert await types(debts) == []
    assert (seen["status"], seen["next_attempt_at"], seen["url"]) == ("delivered", None, URL)
    assert seen["attempts"] == [
        {"at": 1_790_000_000.0, "status_code": 204, "took_s": 0.25, "answer": "你好"}
    ]
    assert await door.redis.zcard(door.key("hooks_owed")) == 0
    assert await door.redis.ttl(door.key("hook", event.event_id)) > 0


async def test_what_failed_is_due_again_when_its_wait_is_over(store: JobStore, debts: Debts):
    await _finished(store, {"webhook_url": URL})
    (event,) = (await debts.claim(LANE, 9)).events

    await debts.settle([tried(event, "failed", 300)])

    before = await types(debts)
    debts.ahead_ms = 301_000
    (again,) = (await debts.claim(LANE, 9)).events
    assert before == []
    assert (again.event_id, again.step) == (event.event_id, 2)


async def test_a_stale_failure_changes_nothing_but_a_stale_delivery_is_a_fact(
    store: JobStore, debts: Debts
):
    job_id = await _finished(store, {"webhook_url": URL})
    (stale,) = (await debts.claim(LANE, 9)).events
    debts.ahead_ms = keys.HOOK_LEASE_MS + 100
    await debts.claim(LANE, 9)

    await debts.settle([tried(stale, "failed", None)])
    after_failure = (await debts.deliveries(job_id, 9))[0]["status"]
    await debts.settle([tried(stale)])

    assert after_failure == "owed"
    assert (await debts.deliveries(job_id, 9))[0]["status"] == "delivered"


@pytest.mark.parametrize("result", ["gone", "failed"])
async def test_what_is_tried_no_more_is_given_up(store: JobStore, debts: Debts, result: str):
    job_id = await _finished(store, {"webhook_url": URL})
    (event,) = (await debts.claim(LANE, 9)).events

    await debts.settle([tried(event, result, None)])

    debts.ahead_ms = DAY_MS
    assert await types(debts) == []
    assert (await debts.deliveries(job_id, 9))[0]["status"] == "given_up"


async def test_what_is_owed_for_too_long_is_given_up_by_the_sweep(store: JobStore, debts: Debts):
    job_id = await _finished(store, {"webhook_url": URL})
    debts.ahead_ms = keys.HOOK_MAX_AGE_MS + 1000

    await debts.sweep()

    assert (await debts.deliveries(job_id, 9))[0]["status"] == "given_up"
    assert await types(debts) == []


async def test_the_sweep_names_what_is_due_and_nobody_looks_after(
    store: JobStore, debts: Debts, door: RedisDoor
):
    await _finished(store, {"webhook_url": URL})
    watched = await debts.sweep()
    await door.redis.delete(door.key("hook_watch", LANE))

    found, again = await debts.sweep(), await debts.sweep()

    assert (watched, [lane for lane, _ in found], again) == ([], [LANE], [])


async def test_a_lane_is_left_only_when_nothing_is_due(
    store: JobStore, debts: Debts, door: RedisDoor
):
    await _finished(store, {"webhook_url": URL})
    while_due = await debts.leave(LANE)
    (event,) = (await debts.claim(LANE, 9)).events
    await debts.settle([tried(event)])

    left = await debts.leave(LANE)

    assert (while_due, left) == (False, True)
    assert await door.redis.exists(door.key("hook_watch", LANE)) == 0


async def test_what_is_owed_and_what_became_of_it_is_counted(
    store: JobStore, debts: Debts, endpoints: Endpoints, door: RedisDoor
):
    endpoint = await endpoints.add(URL, "", ())
    for _ in range(3):
        await _finished(store, {})
    first, second, _ = (await debts.claim(endpoint["id"], 9)).events
    await debts.settle([tried(first), tried(second, "failed", 60)])
    await door.redis.zincrby(door.key("hooks_owed"), -60_000, second.event_id)

    before = await read_totals(door)
    await debts.settle([tried(second, "gone")])
    after = await read_totals(door)

    assert (before.callbacks, before.owed) == ({"delivered": 1, "failed": 1}, 2)
    assert before.owed_s >= 59
    assert (before.endpoints_disabled, after.endpoints_disabled) == (0, 1)
    assert after.callbacks == {"delivered": 1, "failed": 1, "given_up": 1}


# --- by hand --------------------------------------------------------------------------------------


async def test_a_delivery_by_hand_keeps_the_id_and_begins_the_schedule_anew(
    store: JobStore, debts: Debts
):
    await _finished(store, {"webhook_url": URL})
    (event,) = (await debts.claim(LANE, 9)).events
    await debts.settle([tried(event, "failed", None)])

    owed = await debts.redeliver(event.event_id)

    (again,) = (await debts.claim(LANE, 9)).events
    assert owed["status"] == "owed"
    assert (again.event_id, again.step, again.attempt) == (event.event_id, 1, 2)


async def test_what_is_not_there_cannot_be_delivered_again(debts: Debts):
    for act in (debts.redeliver, debts.delivery):
        with pytest.raises(WebhookNotFound):
            await act("msg_none")


async def test_a_sample_goes_to_an_endpoint_or_a_url(endpoints: Endpoints, debts: Debts):
    endpoint = await endpoints.add(URL, "", ())

    made = [await debts.test(to, "job.failed") for to in (endpoint["id"], URL)]

    claimed = [await debts.claim(lane, 9) for lane in (endpoint["id"], LANE)]
    assert [one.events[0].event_id for one in claimed] == made
    assert [one.events[0].kind for one in claimed] == ["test", "test"]
    assert claimed[0].secrets == (endpoint["signing_secret"],)
    with pytest.raises(WebhookNotFound):
        await debts.test("we_none", "job.failed")


# --- endpoints that fail --------------------------------------------------------------------------


async def _fail(debts: Debts, lane: str, result: str = "failed") -> list[Any]:
    (event, *_) = (await debts.claim(lane, 1)).events
    return await debts.settle([tried(event, result, 0)])


async def test_an_endpoint_that_takes_nothing_for_days_is_disabled(
    store: JobStore, endpoints: Endpoints, debts: Debts
):
    endpoint = await endpoints.add(URL, "", ())
    await _finished(store, {})
    days = []

    for day in range(4):
        debts.ahead_ms = day * DAY_MS + 1000 * day
        days.append(await _fail(debts, endpoint["id"]))

    seen = await endpoints.get(endpoint["id"])
    assert [len(disabled) for disabled in days] == [0, 0, 0, 1]
    assert (days[3][0].endpoint_id, seen["status"]) == (endpoint["id"], "disabled")
    assert "days" in seen["disabled_reason"]


async def test_one_delivery_in_between_begins_the_count_anew(
    store: JobStore, endpoints: Endpoints, debts: Debts
):
    endpoint = await endpoints.add(URL, "", ())
    for _ in range(2):
        await _finished(store, {})

    for day in range(6):
        debts.ahead_ms = day * DAY_MS + 1000 * day
        if day == 2:
            (event, *_) = (await debts.claim(endpoint["id"], 1)).events
            await debts.settle([tried(event)])
        elif day < 5:
            assert await _fail(debts, endpoint["id"]) == []

    assert (await endpoints.get(endpoint["id"]))["status"] == "enabled"


async def test_two_failures_with_weeks_between_are_no_row(
    store: JobStore, endpoints: Endpoints, debts: Debts
):
    endpoint = await endpoints.add(URL, "", ())
    await _finished(store, {})
    await _fail(debts, endpoint["id"])

    debts.ahead_ms = 14 * DAY_MS

    assert await _fail(debts, endpoint["id"]) == []


async def test_an_endpoint_that_is_gone_is_disabled_at_once_and_misses_nothing(
    store: JobStore, endpoints: Endpoints, debts: Debts, door: RedisDoor
):
    endpoint = await endpoints.add(URL, "", ())
    for _ in range(2):
        await _finished(store, {})

    (disabled,) = await _fail(debts, endpoint["id"], "gone")
    await _finished(store, {})  # not owed: it is disabled
    await door.redis.delete(door.key("hook_watch", endpoint["id"]))
    while_disabled = (await types(debts, endpoint["id"]), await debts.sweep())
    await endpoints.enable(endpoint["id"])

    assert "410" in disabled.reason
    assert while_disabled == ([], [])
    assert await types(debts, endpoint["id"]) == ["job.completed"]  # the one that waited


async def test_a_disabled_endpoint_is_told_nothing_by_hand(
    store: JobStore, endpoints: Endpoints, debts: Debts
):
    endpoint = await endpoints.add(URL, "", ())
    await _finished(store, {})
    (event,) = (await debts.claim(endpoint["id"], 1)).events
    await debts.settle([tried(event, "gone")])

    with pytest.raises(WebhookConflict, match="enable"):
        await debts.redeliver(event.event_id)
    with pytest.raises(WebhookConflict, match="enable"):
        await debts.test(endpoint["id"], "job.failed")


async def test_what_a_deleted_endpoint_was_owed_is_dropped(
    store: JobStore, endpoints: Endpoints, debts: Debts, door: RedisDoor
):
    endpoint = await endpoints.add(URL, "", ())
    for _ in range(3):
        await _finished(store, {})
    await endpoints.delete(endpoint["id"])

    events = (await debts.claim(endpoint["id"], 9)).events

    (seen, *_) = await debts.deliveries(endpoint["id"], 9)
    assert events == ()
    assert await door.redis.zcard(door.key("hooks_owed")) == 0
    assert seen["status"] == "dropped"
    with pytest.raises(WebhookConflict, match="deleted"):
        await debts.redeliver(seen["id"])


# --- the body -------------------------------------------------------------------------------------


async def _bodies(debts: Debts, reader: JobReader, lane: str = LANE) -> list[Any]:
    events = (await debts.claim(lane, 9)).events
    return [json.loads(body) for body in await payloads(events, reader)]


async def test_a_body_has_the_job_as_a_poll_shows_it(
    store: JobStore, debts: Debts, reader: JobReader
):
    job_id = await _finished(store, {"webhook_url": URL, "metadata": {"k": "羊"}})

    (body,) = await _bodies(debts, reader)

    assert body["data"] == await reader.get(job_id)
    assert (body["type"], body["object"]) == ("job.completed", "event")
    assert body["timestamp"].endswith("Z")
    assert int(body["data"]["finished_at"]) == body["created_at"]


async def test_of_a_job_that_was_erased_is_told_how_it_ended(
    store: JobStore, debts: Debts, reader: JobReader
):
    job_id = await _finished(store, {"webhook_url": URL})
    await store.erase(job_id)

    (body,) = await _bodies(debts, reader)

    assert body["data"] | {"links": None} == {
        "id": job_id, "object": "job", "status": "completed", "links": None,
    }  # fmt: skip


async def test_of_a_job_that_lives_again_is_told_how_its_last_life_ended(
    store: JobStore, debts: Debts, reader: JobReader
):
    hold_id = await failed(store)
    await store.retry(hold_id)
    spec = {"webhook_url": URL}
    job_id = await _failed(store, spec)
    await store.retry(job_id)

    (body,) = await _bodies(debts, reader)

    assert (body["data"]["id"], body["data"]["status"]) == (job_id, "failed")


async def test_a_response_is_told_by_its_id(
    store: JobStore, endpoints: Endpoints, debts: Debts, reader: JobReader
):
    endpoint = await endpoints.add(URL, "", ())
    hold = await running(store, door=Door.RESPONSES)
    await store.finish(hold, ended("a"))

    (body,) = await _bodies(debts, reader, endpoint["id"])

    assert body["data"] == {"id": hold.job_id.replace("job_", "resp_")}
