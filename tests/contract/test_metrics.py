"""What is counted, and that reading it costs the same whatever there is."""

import math

import pytest

from tests.support.factories import (
    LOST,
    MODEL,
    PICTURE,
    claim,
    completed,
    ended,
    failed,
    question,
    running,
    said,
    submit,
)
from worker.contract.door import RedisDoor
from worker.contract.job import JobSpec, Lane
from worker.contract.metrics import Totals, read_totals
from worker.contract.registry import Registry
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.server import RunningServer


async def commands_used(door: RedisDoor) -> tuple[Totals, int]:
    """Return a reading and how many commands the server ran for it."""
    before = (await door.redis.info("stats"))["total_commands_processed"]
    totals = await read_totals(door)
    after = (await door.redis.info("stats"))["total_commands_processed"]
    return totals, after - before


async def test_every_end_is_counted_by_status_and_model(store: JobStore, door: RedisDoor):
    await completed(store)
    await completed(store)
    await failed(store)
    await store.cancel((await store.submit(question(model="other"), JobSpec())).job_id)

    totals = await read_totals(door)

    assert totals.finished == {
        ("completed", MODEL): 2, ("failed", MODEL): 1, ("cancelled", "other"): 1,
    }  # fmt: skip
    assert totals.depths[f"chat.{MODEL}.normal"] == 0


async def test_waits_are_observed_once_per_completed_job(store: JobStore, door: RedisDoor):
    await failed(store)
    job_id = await submit(store, pictures=1)
    await store.media_ready(await claim(store, job_id, lane=Lane.MEDIA), [PICTURE])
    hold = await claim(store, job_id)
    await door.redis.hincrby(door.key("job", job_id), "created_at", -2_000)
    await store.finish(hold, ended("四"), [said(hold, 1, "四")])

    histograms = (await read_totals(door)).histograms

    assert {name for name, _ in histograms} == {"queue", "media", "ttft", "total"}
    assert all(sum(h.counts.values()) == 1 for h in histograms.values())
    total = histograms["total", MODEL]
    assert total.counts[3.0] == 1
    assert total.sum_s == pytest.approx(2, abs=0.5)
    assert list(total.counts)[-1] == math.inf


async def test_a_wait_longer_than_every_bound_is_in_the_last_bucket(
    store: JobStore, door: RedisDoor
):
    hold = await running(store)
    await door.redis.hincrby(door.key("job", hold.job_id), "created_at", -10_000_000)

    await store.finish(hold, ended("a"))

    histogram = (await read_totals(door)).histograms["total", MODEL]
    assert histogram.counts[math.inf] == 1
    assert histogram.sum_s >= 10_000


async def test_a_job_for_later_did_not_wait_before_its_moment(store: JobStore, door: RedisDoor):
    hold = await running(store)
    job = door.key("job", hold.job_id)
    created_at = int(await door.redis.hget(job, "created_at"))
    await door.redis.hset(job, mapping={"created_at": created_at - 900_000, "due_at": created_at})

    await store.finish(hold, ended("a"))

    assert (await read_totals(door)).histograms["queue", MODEL].sum_s < 5


async def test_the_promise_made_at_submission_is_held_against_the_real_start(
    store: JobStore, door: RedisDoor
):
    pace = door.key("pace", f"chat.{MODEL}")
    await door.redis.hset(pace, mapping={"starts": 1, "ms": 5_000})
    job_id = await submit(store)

    hold = await claim(store, job_id)
    await store.release(hold)
    await claim(store, job_id)

    error = (await read_totals(door)).histograms["eta_error", MODEL]
    assert sum(error.counts.values()) == 1
    assert error.sum_s == pytest.approx(5, abs=0.5)


async def test_recoveries_and_sweeps_are_counted(store: JobStore, door: RedisDoor):
    await store.release(await running(store))
    await store.release(await running(store), LOST)
    await running(store, owner="dead")
    await store.hand_back("dead")
    late = await submit(store, start_deadline_s=60)
    await door.redis.zadd(door.key("start_by"), {late: 1})

    await store.sweep()
    await store.sweep()

    totals = await read_totals(door)
    assert totals.takeovers == {"chat": 2}
    assert totals.sweeps == 2
    assert totals.swept == {"expired": 1, "tickets": 3}


async def test_workers_are_counted_by_role_and_state(door: RedisDoor):
    for n in range(3):
        info = {"role": "chat", "state": "ready" if n else "draining", "in_flight": n, "reason": ""}
        await Registry(door).announce(f"w{n}", info, None)

    totals = await read_totals(door)

    assert totals.workers == {("chat", "ready"): 2, ("chat", "draining"): 1}
    assert totals.held == {"chat": 3}
    assert totals.troubles == {}


async def test_of_workers_that_are_not_well_the_reason_is_told_cut_where_it_is_long(
    door: RedisDoor,
):
    where = {"role": "chat", "host": "h", "in_flight": 0}
    for n, (state, reason) in enumerate(
        [("failed", "x" * 999), ("failed", "x" * 999), ("loading", "y")]
    ):
        info = where | {"state": state, "gpus": "0,1", "reason": reason}
        await Registry(door).announce(f"w{n}", info, None)

    totals = await read_totals(door)

    assert totals.troubles == {
        ("chat", "failed", "h", "0,1", "x" * 300): 2,
        ("chat", "loading", "h", "0,1", "y"): 1,
    }


async def test_a_reading_costs_the_same_with_many_jobs(own_redis: RunningServer):
    door = RedisDoor(Settings(_env_file=None, **own_redis.environ))  # nobody else's commands
    store = JobStore(door)
    await completed(store)
    _, few = await commands_used(door)
    for _ in range(100):
        await submit(store)

    totals, many = await commands_used(door)

    assert totals.depths[f"chat.{MODEL}.normal"] == 100
    assert many == few
    await door.close()
