"""One batch and its runner on real stores; the test is the engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import MakeSettings
from tests.support import factories
from tests.support.batches import jsonl, line
from tests.support.processes import until_async
from worker.batches import desk, run
from worker.batches.desk import BatchDesk
from worker.batches.results import NotOursError, ResultsFile
from worker.batches.run import BatchRun, Stores
from worker.contract import batches as batches_module
from worker.contract.batches import Batches, BatchStatus, NewBatch, Part, lock_name
from worker.contract.callbacks import EventType
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.errors import BatchGone, BatchNotFound, JobConflict, TooManyBatches
from worker.contract.files import Files, new_file_id
from worker.contract.intake import Intake
from worker.contract.job import JobStatus, Lane, line_job_id
from worker.contract.models import Models
from worker.contract.reader import JobReader
from worker.contract.registry import Notes, Registry
from worker.contract.s3 import ObjectStore, file_key
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.expiry import Expiry

ME, OTHER = "runner-1", "runner-2"
Make = Callable[..., Stores]


@pytest.fixture
async def make_stores(
    make_settings: MakeSettings, s3_environ: dict[str, str]
) -> AsyncIterator[Make]:
    """Return what makes the stores of a process, with other settings."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**changed: object) -> Stores:
            settings = make_settings(**s3_environ, FOREBAY_MODELS="echo", **changed)
            door, objects = RedisDoor(settings), ObjectStore(settings)
            stack.push_async_callback(door.close)
            stack.push_async_callback(objects.close)
            return _stores(settings, door, objects)

        yield make


def _stores(settings: Settings, door: RedisDoor, objects: ObjectStore) -> Stores:
    jobs, files = JobStore(door), Files(door, objects)
    models = Models(Registry(door), settings.model_names)
    intake = Intake(settings, jobs, models, objects, lambda _job, _queue: None, files)
    return Stores(settings, Batches(door), files, jobs, JobReader(door), objects, models, intake)


@pytest.fixture
async def stores(make_stores: Make) -> Stores:
    made = make_stores()
    await made.objects.ensure_bucket()
    return made


async def begin(
    stores: Stores, lines: list[Any], *, window_s: int = 3600, life_s: int | None = None
) -> str:
    data, file_id = jsonl(lines), new_file_id()
    await stores.objects.put_bytes(file_key(file_id), data, "application/jsonl")
    await stores.files.add(file_id, len(data), "r", "batch", "text/plain", file_key(file_id))
    new = NewBatch("/v1/jobs", file_id, f"{window_s}s", window_s, {}, life_s)
    return await stores.batches.create(new)


@contextlib.asynccontextmanager
async def running(
    stores: Stores, batch_id: str, token: str = ME
) -> AsyncIterator["asyncio.Task[BatchStatus]"]:
    """Run a batch until the block ends."""
    notes = Notes(stores.batches._door)
    assert await notes.acquire(lock_name(batch_id), token, 60)
    task = asyncio.create_task(BatchRun(batch_id, token, stores).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await notes.release(lock_name(batch_id), token)


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not await is_so():  # noqa: ASYNC110 - it happens in Redis
            await asyncio.sleep(0.01)


async def has_open(stores: Stores, batch_id: str, count: int) -> None:
    async def has() -> bool:
        return len(await stores.batches.open_jobs(batch_id)) == count

    await until(has)


async def answer(stores: Stores, batch_id: str, *lines: int, text: str = "yes", **how: Any) -> None:
    for number in lines:
        hold = await factories.claim(stores.jobs, line_job_id(batch_id, number))
        assert await stores.jobs.finish(hold, factories.ended(text, **how))


async def results(stores: Stores, file_id: str | None) -> dict[str, dict[str, Any]]:
    if file_id is None:
        return {}
    file = await stores.files.get(file_id)
    data = b"".join([piece async for piece in stores.files.content(file)])
    rows = [json.loads(row) for row in data.splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert (len(found), len(data)) == (len(rows), file.bytes)
    return found


async def test_lines_are_jobs_a_window_at_a_time(make_stores: Make, stores: Stores):
    narrow = make_stores(FOREBAY_BATCH_WINDOW=2)
    batch_id = await begin(narrow, [line(f"l{n}") for n in range(1, 6)])

    async with running(narrow, batch_id) as task:
        for number in range(1, 6):
            await has_open(stores, batch_id, min(2, 6 - number))
            await answer(stores, batch_id, number)
        assert await task is BatchStatus.COMPLETED

    batch = await stores.batches.get(batch_id)
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert batch["usage"]["total_tokens"] == 5 * (7 + len("yes"))
    assert len(await results(stores, batch["output_file_id"])) == 5
    assert await stores.batches.active() == []


async def test_another_runner_goes_on_and_no_line_is_a_second_job(stores: Stores):
    batch_id = await begin(stores, [line(f"l{n}") for n in range(1, 4)])
    async with running(stores, batch_id):
        await has_open(stores, batch_id, 3)
        await answer(stores, batch_id, 1)
    await stores.batches.move_cursor(batch_id, 0, 0)  # killed before the cursor was moved

    async with running(stores, batch_id, OTHER) as task:
        await answer(stores, batch_id, 2, 3)
        assert await task is BatchStatus.COMPLETED

    batch = await stores.batches.get(batch_id)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert (await results(stores, batch["output_file_id"])).keys() == {"l1", "l2", "l3"}
    jobs, _ = await stores.reader.list_jobs(status=None, model=None, after=None, limit=10)
    assert len(jobs) == 3


async def test_a_line_whose_job_is_long_erased_is_not_asked_again(stores: Stores):
    batch_id = await begin(stores, [line("l1"), line("l2")])
    async with running(stores, batch_id):
        await has_open(stores, batch_id, 2)
    door = stores.batches._door
    first = line_job_id(batch_id, 1)
    await answer(stores, batch_id, 1)
    await door.command("HDEL", door.key("job", first), "unwritten")
    await stores.jobs.erase(first)
    await stores.batches.move_cursor(batch_id, 0, 0)

    async with running(stores, batch_id, OTHER) as task:
        await answer(stores, batch_id, 2)
        assert await task is BatchStatus.COMPLETED

    assert (await stores.batches.get(batch_id))["request_counts"]["completed"] == 2


async def test_results_go_up_in_parts_and_their_jobs_are_let_go(stores: Stores):
    batch_id = await begin(stores, [line(f"l{n}") for n in range(1, 9)])
    long = "sheep " * 120_000  # a line has it twice, as the answer and in the history

    async with running(stores, batch_id) as task:
        await has_open(stores, batch_id, 8)
        await answer(stores, batch_id, *range(1, 8), text=long)

        async def is_stored() -> bool:
            return bool((await stores.batches.parts(batch_id, "output"))[0])

        await until(is_stored)
        first = await stores.reader.record(line_job_id(batch_id, 1))
        await answer(stores, batch_id, 8, text=long)
        await task

    batch = await stores.batches.get(batch_id)
    assert len(await results(stores, batch["output_file_id"])) == 8
    finished, expires = int(first["finished_at"]), int(first["expires_at"])
    assert 0 < expires - finished < 2 * batches_module.RELEASED_S * 1000


async def test_a_runner_that_lost_its_lock_writes_nothing(stores: Stores):
    batch_id = await begin(stores, [line("l1"), line("l2")])
    async with running(stores, batch_id):
        await has_open(stores, batch_id, 2)
    await answer(stores, batch_id, 1, 2)
    notes = Notes(stores.batches._door)
    stale = ResultsFile(
        batch_id, "/v1/jobs", "output", ME, stores.batches, stores.reader, stores.objects
    )
    await notes.acquire(lock_name(batch_id), ME, 60)
    await stale.collect(2, "")
    file_id, upload_id, number = await stale._own_part()
    await notes.release(lock_name(batch_id), ME)

    async with running(stores, batch_id, OTHER) as task:
        await stores.objects.put_part(
            f"results/default/{file_id}", upload_id, number, b"from the grave"
        )
        assert await task is BatchStatus.COMPLETED

    with pytest.raises(NotOursError):
        await stale._store_part()
    assert not await stores.batches.record_part(batch_id, ME, "output", Part(99, "etag", 1, 1))
    assert not await stores.batches.fail_lines(batch_id, ME, [("job_x", {})])
    assert await stores.batches.look(batch_id, ME) is None
    assert await stores.batches.end(batch_id, ME, {}) is None
    batch = await stores.batches.get(batch_id)
    assert (await results(stores, batch["output_file_id"])).keys() == {"l1", "l2"}


async def test_an_end_said_twice_is_one_end(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    batch_id = await begin(stores, [line("l1")])
    end = Batches.end

    async def lose_the_answer(*args: Any) -> None:
        await end(*args)
        raise NotOursError

    async with running(stores, batch_id) as task:
        await has_open(stores, batch_id, 1)
        monkeypatch.setattr(Batches, "end", lose_the_answer)
        await answer(stores, batch_id, 1)
        with pytest.raises(NotOursError):
            await task
    monkeypatch.undo()
    before = await stores.batches.get(batch_id)

    assert before["status"] == "completed"
    assert await stores.batches.active() == []


@pytest.mark.parametrize("step", ["record_part", "parts", "end"])
async def test_a_runner_may_die_at_every_step_of_the_end(
    stores: Stores, step: str, monkeypatch: pytest.MonkeyPatch
):
    batch_id = await begin(stores, [line("good"), line("bad")])

    async def die(*_: Any) -> None:
        raise NotOursError

    async with running(stores, batch_id) as task:
        await has_open(stores, batch_id, 2)
        monkeypatch.setattr(Batches, step, die)
        await answer(stores, batch_id, 1)
        await answer(stores, batch_id, 2, status=JobStatus.FAILED)
        with pytest.raises(NotOursError):
            await task
    monkeypatch.undo()

    async with running(stores, batch_id, OTHER) as task:
        assert await task is BatchStatus.COMPLETED

    batch = await stores.batches.get(batch_id)
    assert (await results(stores, batch["output_file_id"])).keys() == {"good"}
    errors = await results(stores, batch["error_file_id"])
    assert errors["bad"]["response"]["status_code"] == 500
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


async def test_a_deleted_input_fails_the_batch_and_keeps_what_was_answered(make_stores: Make):
    stores = make_stores(FOREBAY_BATCH_WINDOW=1)
    await stores.objects.ensure_bucket()
    lines = [line(f"l{n}", "x" * 200_000) for n in range(1, 30)]  # more than is read ahead
    batch_id = await begin(stores, lines)

    async with running(stores, batch_id):
        await has_open(stores, batch_id, 1)
    await answer(stores, batch_id, 1)
    await stores.files.delete((await stores.batches.get(batch_id))["input_file_id"])
    async with running(stores, batch_id, OTHER) as task:
        assert await task is BatchStatus.FAILED

    batch = await stores.batches.get(batch_id)
    assert (await results(stores, batch["output_file_id"])).keys() == {"l1"}
    assert [error["code"] for error in batch["errors"]["data"]] == ["input_file_gone"]
    assert batch["failed_at"] is not None


async def test_an_input_that_is_gone_before_it_was_read_fails_the_batch(stores: Stores):
    batch_id = await begin(stores, [line("l1")])
    await stores.files.delete((await stores.batches.get(batch_id))["input_file_id"])

    async with running(stores, batch_id) as task:
        assert await task is BatchStatus.FAILED

    batch = await stores.batches.get(batch_id)
    assert [error["code"] for error in batch["errors"]["data"]] == ["input_file_gone"]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_line_that_is_over_a_lowered_limit_fails_alone(
    make_stores: Make, stores: Stores, is_cancelled: bool
):
    narrow = make_stores(FOREBAY_BATCH_WINDOW=1)
    batch_id = await begin(narrow, [line("l1"), line("l2", "x" * 2000)])
    async with running(narrow, batch_id):
        await has_open(stores, batch_id, 1)
    lowered = make_stores(FOREBAY_MAX_BODY_BYTES=1024)
    if is_cancelled:
        await stores.batches.cancel(batch_id)
    else:
        await answer(stores, batch_id, 1)

    async with running(lowered, batch_id, OTHER) as task:
        assert (await task).is_terminal

    errors = await results(stores, (await stores.batches.get(batch_id))["error_file_id"])
    assert errors.keys() == ({"l1", ""} if is_cancelled else {""})


async def test_a_full_queue_makes_the_batch_wait(
    make_stores: Make, stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "_FULL_S", 0.05)
    full = make_stores(FOREBAY_QUEUE_MAX_JOBS=2)
    batch_id = await begin(full, [line(f"l{n}") for n in range(1, 6)])

    async with running(full, batch_id) as task:
        for number in range(1, 6):
            await has_open(stores, batch_id, min(2, 6 - number))
            ids = await stores.batches.open_jobs(batch_id)
            hold = await factories.claim(stores.jobs, ids[number % len(ids)])
            await stores.jobs.finish(hold, factories.ended())
        assert await task is BatchStatus.COMPLETED

    assert (await stores.batches.get(batch_id))["request_counts"]["completed"] == 5


async def test_a_cancel_while_lines_are_checked_makes_no_job(stores: Stores):
    batch_id = await begin(stores, [line("l1")])
    await stores.batches.cancel(batch_id)
    await stores.batches.cancel(batch_id)

    async with running(stores, batch_id) as task:
        assert await task is BatchStatus.CANCELLED

    batch = await stores.batches.get(batch_id)
    assert (batch["output_file_id"], batch["in_progress_at"]) == (None, None)
    jobs, _ = await stores.reader.list_jobs(status=None, model=None, after=None, limit=10)
    assert jobs == []


async def test_no_line_becomes_a_job_after_the_cancel(stores: Stores):
    batch_id = await begin(stores, [line("l1")])
    async with running(stores, batch_id):
        await has_open(stores, batch_id, 1)
    await stores.batches.cancel(batch_id)
    other = line_job_id(batch_id, 2)

    hold = await factories.claim(stores.jobs, line_job_id(batch_id, 1))
    spec = replace(hold.spec, envelope=hold.spec.envelope | {"line": 2})
    with pytest.raises(JobConflict):
        await stores.jobs.submit(factories.question(), spec)

    assert other not in await stores.batches.open_jobs(batch_id)


async def test_lines_that_a_cancel_finds_on_their_way_are_told_as_well(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    batch_id = await begin(stores, [line(f"l{n}") for n in range(1, 4)])
    submit = Intake.submit

    async def cancelled_before(*args: Any) -> Any:
        await stores.batches.cancel(batch_id)
        return await submit(*args)

    monkeypatch.setattr(Intake, "submit", cancelled_before)
    async with running(stores, batch_id) as task:
        assert await task is BatchStatus.CANCELLED

    batch = await stores.batches.get(batch_id)
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert (await results(stores, batch["error_file_id"])).keys() == {"l1", "l2", "l3"}


async def test_a_running_line_that_ends_after_the_cancel_keeps_its_answer(stores: Stores):
    batch_id = await begin(stores, [line("l1"), line("l2")])
    async with running(stores, batch_id) as task:
        await has_open(stores, batch_id, 2)
        hold = await factories.claim(stores.jobs, line_job_id(batch_id, 1))

        await stores.batches.cancel(batch_id)
        await has_open(stores, batch_id, 1)  # the one that waited is over at once
        await stores.jobs.finish(hold, factories.ended("late"))
        assert await task is BatchStatus.CANCELLED

    batch = await stores.batches.get(batch_id)
    assert (await results(stores, batch["output_file_id"])).keys() == {"l1"}
    assert (await results(stores, batch["error_file_id"]))["l2"]["error"]["code"] == (
        "batch_cancelled"
    )


async def test_a_retry_of_a_written_line_is_no_second_result(stores: Stores):
    batch_id = await begin(stores, [line("bad")])
    async with running(stores, batch_id) as task:
        await has_open(stores, batch_id, 1)
        await answer(stores, batch_id, 1, status=JobStatus.FAILED)
        await task
    before = await stores.batches.get(batch_id)

    await stores.jobs.retry(line_job_id(batch_id, 1))
    await answer(stores, batch_id, 1)

    assert await stores.batches.get(batch_id) == before


async def test_a_line_taken_down_without_a_job_counts_once(stores: Stores):
    batch_id = await begin(stores, [line("l1", "<image>x", images=["!"])])
    async with running(stores, batch_id) as task:
        assert await task is BatchStatus.COMPLETED

    batch = await stores.batches.get(batch_id)
    assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    await Notes(stores.batches._door).acquire(lock_name(batch_id), ME, 60)
    again = [(line_job_id(batch_id, 1), {"custom_id": "l1"})]
    await stores.batches.fail_lines(batch_id, ME, again)
    assert (await stores.batches.get(batch_id))["request_counts"]["failed"] == 1


async def test_the_number_of_active_batches_is_bounded(make_stores: Make):
    stores = make_stores(FOREBAY_BATCHES_MAX_ACTIVE=1)
    await stores.objects.ensure_bucket()
    first = await begin(stores, [line("l1", "<image>x", images=["!"])])

    with pytest.raises(TooManyBatches):
        await begin(stores, [line("l1")])
    async with running(stores, first) as task:
        await task

    await begin(stores, [line("l1")])


async def test_the_batch_that_is_due_first_stands_in_front(stores: Stores):
    late = await begin(stores, [line("l1")], window_s=7200)
    soon = await begin(stores, [line("l1")], window_s=60)

    assert await stores.batches.active() == [soon, late]


async def test_records_and_files_that_are_over_are_erased(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batches_module, "KEEP_S", 0)
    batch_id = await begin(stores, [line("l1", "<image>x", images=["!"])])
    async with running(stores, batch_id) as task:
        await task
    expiry = Expiry(stores.files, stores.batches, Notes(stores.batches._door), owner=ME)

    await expiry.sweep()

    with pytest.raises(BatchGone):
        await stores.batches.get(batch_id)
    with pytest.raises(BatchNotFound):
        await stores.batches.get("batch_0")
    door = stores.batches._door
    left = await door.command("KEYS", f"{door.settings.key_prefix}b*{batch_id}*")
    assert left == []


async def test_a_desk_takes_a_batch_over_and_hands_it_over(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(desk, "_PERIOD_S", 0.02)
    notes = Notes(stores.batches._door)
    first, second = (BatchDesk(stores, notes, owner=owner) for owner in (ME, OTHER))
    batch_id = await begin(stores, [line("l1")])

    working = asyncio.create_task(first.run())
    await has_open(stores, batch_id, 1)
    idle = asyncio.create_task(second.run())
    await asyncio.sleep(0)
    assert second._runs == {}
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await until_async(lambda: batch_id in second._runs)
    await answer(stores, batch_id, 1)

    async def is_over() -> bool:
        return bool((await stores.batches.get(batch_id))["status"] == "completed")

    await until(is_over)
    await until_async(lambda: not second._runs)
    idle.cancel()
    await asyncio.gather(idle, return_exceptions=True)


def test_every_end_of_a_batch_is_an_event_that_receivers_can_ask_for():
    ends = {f"batch.{status}" for status in BatchStatus if status.is_terminal}

    assert ends == {kind for kind in EventType if kind.startswith("batch.")}


async def test_the_end_of_a_batch_is_owed_to_receivers_once(stores: Stores):
    door = stores.batches._door
    await Endpoints(door).add("https://example.com/hook", "mine", ())
    batch_id = await begin(stores, [line("l1", "<image>x", images=["!"])])

    async with running(stores, batch_id) as task:
        await task
        assert await stores.batches.end(batch_id, ME, {}) is BatchStatus.COMPLETED

    owed = await Debts(door).deliveries(batch_id, 10)
    assert [event["event_type"] for event in owed] == ["batch.completed"]


async def test_a_job_that_is_no_line_knows_no_batch(stores: Stores):
    job_id = await factories.submit(stores.jobs)
    hold = await stores.jobs.claim(job_id, Lane.CHAT, "w", "n")

    assert hold is not None
    assert await stores.jobs.finish(hold, factories.ended())
    await stores.jobs.erase(job_id)
