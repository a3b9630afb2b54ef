"""How a record lies in Redis: compact where every step looks, the long fields apart."""

import asyncio

import pytest

from tests.support.factories import LOST, PICTURE, claim, ended, failed, question, said, submit
from worker.contract.door import RedisDoor
from worker.contract.job import JobSpec, JobStatus, Lane, Stage
from worker.contract.reader import JobReader
from worker.contract.record import LONG_FIELDS
from worker.contract.store import JobStore

URL = "https://a-host-with-a-rather-long-name.department.example.com:8443/hooks/of/jobs?token=1234"
LONG = "四只羊在草地上。" * 500


async def encoding(door: RedisDoor, job_id: str) -> str:
    return str(await door.command("OBJECT", "ENCODING", door.key("job", job_id)))


async def test_a_record_stays_in_one_piece_of_memory_from_submission_to_end(
    store: JobStore, door: RedisDoor
):
    spec = JobSpec(
        webhook_url=URL, metadata={"note": LONG}, start_deadline_s=60, timeout_s=60, retention_s=60
    )
    seen = []

    async def look() -> None:
        seen.append(await encoding(door, job_id))

    job_id = (await store.submit(question(LONG, pictures=2), spec)).job_id
    await look()
    media = await claim(store, job_id, lane=Lane.MEDIA)
    await store.stage(media, Stage.PREPARING, 1)
    await store.media_ready(media, [PICTURE, PICTURE])
    await look()
    lost = await claim(store, job_id)
    await store.append([said(lost, 1, LONG)])
    await store.release(lost, LOST)
    await look()
    hold = await claim(store, job_id)
    await store.append([said(hold, 1, LONG)])
    await store.cancel(job_id)
    await look()
    await store.finish(hold, ended(LONG, JobStatus.FAILED))
    await look()
    await store.retry(job_id)
    await store.finish(await claim(store, job_id), ended(LONG))
    await look()

    assert set(seen) <= {"listpack", "ziplist"}  # its name since Redis 7, and before
    short = await door.redis.hgetall(door.key("job", job_id))
    long = await door.redis.hgetall(door.key("doc", job_id))
    assert not short.keys() & LONG_FIELDS
    assert long.keys() <= LONG_FIELDS
    assert {"request", "spec", "media", "attempts", "result", "hook_url"} <= long.keys()


async def test_a_view_has_what_stands_in_either_part(store: JobStore, reader: JobReader):
    job_id = await failed(store)
    await store.retry(job_id)
    await store.finish(await claim(store, job_id), ended("四只"))

    job = await reader.get(job_id)

    assert (job["status"], job["output"]["text"], job["error"]) == ("completed", "四只", None)
    assert [attempt["status"] for attempt in job["attempts"]] == ["failed"]


@pytest.mark.parametrize("is_swept", [False, True])
async def test_no_key_bears_the_name_of_an_erased_job_but_its_tombstone(
    store: JobStore, door: RedisDoor, *, is_swept: bool
):
    retention_s = 0.001 if is_swept else 60
    job_id = await submit(store, pictures=1, webhook_url=URL, retention_s=retention_s)
    await store.media_ready(await claim(store, job_id, lane=Lane.MEDIA), [PICTURE])
    hold = await claim(store, job_id)
    await store.append([said(hold, 1, "a")])
    await store.release(hold, LOST)
    hold = await claim(store, job_id)
    await store.finish(hold, ended("a", JobStatus.FAILED))

    if is_swept:
        async with asyncio.timeout(5):
            while not (await store.sweep()).erased:
                pass
    else:
        await store.erase(job_id)

    assert await door.redis.keys(f"{door.key('')}*{job_id}*") == [door.key("gone", job_id)]


async def test_a_page_of_jobs_is_read_also_after_redis_forgot_the_scripts(
    store: JobStore, reader: JobReader, door: RedisDoor
):
    job_ids = [await submit(store) for _ in range(3)]
    await door.redis.script_flush()

    found = await reader.many([*job_ids, "job_none"])

    assert sorted(job["queue_position"] for _, job in found.values()) == [0, 1, 2]
    assert list(found) == job_ids
