"""The job object, as its record says it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.factories import PICTURE, claim, ended, question, running, said, submit
from worker.contract import view
from worker.contract.door import RedisDoor
from worker.contract.errors import WorkerLost
from worker.contract.job import JobSpec, JobStatus, Lane, Outcome
from worker.contract.reader import JobReader
from worker.contract.store import JobStore

FIELDS = {
    "id", "object", "status", "stage", "model", "priority", "created_at", "started_at",
    "finished_at", "expires_at", "attempt", "attempts", "queue_position", "eta_s",
    "cancel_requested", "progress", "output", "history", "usage", "generation_info", "timings",
    "media", "error", "metadata", "links",
}  # fmt: skip

SIX = [
    "num_prompt_tokens", "num_generated_tokens", "num_samples", "runtime", "samples/s", "tokens/s",
]  # fmt: skip


async def answered(store: JobStore, reader: JobReader) -> dict[str, Any]:
    hold = await running(store, metadata={"k": "v"})
    await store.append([said(hold, 1, "四只")])
    await store.finish(hold, ended("四只"))
    return await reader.get(hold.job_id)


async def test_an_answered_job_has_every_field(store: JobStore, reader: JobReader):
    job = await answered(store, reader)

    assert set(job) == FIELDS
    assert job["output"] == {"text": "四只", "finish_reason": "stop"}
    assert job["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert job["progress"] == {"media_done": 0, "media_total": 0, "tokens": 2}
    assert job["metadata"] == {"k": "v"}
    assert job["links"]["events"] == f"/v1/jobs/{job['id']}/events"
    assert job["expires_at"] == pytest.approx(job["finished_at"] + 86_400)


async def test_generation_info_has_exactly_the_guides_six_keys(store: JobStore, reader: JobReader):
    info = (await answered(store, reader))["generation_info"]

    assert list(info) == SIX
    assert info["num_samples"] == 1
    assert info["samples/s"] == info["num_samples"] / info["runtime"]
    assert info["tokens/s"] == info["num_generated_tokens"] / info["runtime"]


async def test_an_answer_in_no_time_at_all_has_rates_of_zero(store: JobStore, reader: JobReader):
    hold = await running(store)
    await store.finish(hold, replace(ended("x"), runtime_s=0.0))

    info = (await reader.get(hold.job_id))["generation_info"]

    assert (info["samples/s"], info["tokens/s"]) == (0.0, 0.0)


async def test_the_history_ends_with_the_query_as_it_was_sent(store: JobStore, reader: JobReader):
    request = question("<image>and now?", history=(("<image>q", "a"),))
    made = await store.submit(request, JobSpec())
    await store.finish(await claim(store, made.job_id), ended("四只"))

    job = await reader.get(made.job_id)

    assert job["history"] == [["<image>q", "a"], ["<image>and now?", "四只"]]


async def test_a_job_on_its_way_says_what_is_done_with_it(store: JobStore, reader: JobReader):
    hold = await running(store)
    await store.append([said(hold, 1, "四")])

    job = await reader.get(hold.job_id)

    assert (job["status"], job["stage"], job["attempt"]) == ("in_progress", "waiting_engine", 1)
    assert job["output"] == {"text": "四", "finish_reason": None}
    assert (job["usage"], job["generation_info"], job["history"]) == (None, None, None)
    assert job["finished_at"] is None


async def test_all_that_an_answer_says_is_there_while_it_runs_and_after_a_take_over(
    store: JobStore, reader: JobReader
):
    hold = await running(store)
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    entry = {"token": "四", "logprob": -0.5, "bytes": [1], "top_logprobs": []}
    piece = said(hold, 1, "四")._replace(reasoning="hm", tool_calls=(call,), logprobs=(entry,))
    await store.append([piece])
    await store.release(hold, WorkerLost("its process ended"))

    waiting = await reader.get(hold.job_id)
    again = await claim(store, hold.job_id)
    await store.append([said(again, 1, "只")._replace(logprobs=(entry,))])
    outcome = replace(
        ended("四只"), reasoning="hm", tool_calls=again.emitted_tool_calls, has_logprobs=True
    )
    await store.finish(again, outcome)

    rest = {"reasoning": "hm", "tool_calls": [call]}
    assert (again.emitted_reasoning, again.emitted_tool_calls) == ("hm", (call,))
    assert waiting["output"] == {
        "text": "四", "finish_reason": None, "logprobs": {"content": [entry]}
    } | rest  # fmt: skip
    assert (await reader.get(hold.job_id))["output"] == {
        "text": "四只", "finish_reason": "stop", "logprobs": {"content": [entry, entry]}
    } | rest  # fmt: skip


async def test_a_cancel_request_shows_until_it_is_done(store: JobStore, reader: JobReader):
    hold = await running(store)

    await store.cancel(hold.job_id)
    asked = await reader.get(hold.job_id)
    await store.finish(hold, ended("", JobStatus.CANCELLED))

    assert (asked["status"], asked["cancel_requested"]) == ("in_progress", True)
    assert (await reader.get(hold.job_id))["status"] == "cancelled"


async def test_timings_add_up(store: JobStore, reader: JobReader):
    job_id = await submit(store, pictures=1)
    await store.media_ready(await claim(store, job_id, lane=Lane.MEDIA), [PICTURE])
    hold = await claim(store, job_id)
    await store.append([said(hold, 1, "x")])
    await store.finish(hold, ended("x"))

    job = await reader.get(job_id)

    timings = job["timings"]
    assert set(timings) == {
        "queue_s", "media_s", "engine_wait_s", "ttft_s", "generate_s", "total_s",
    }  # fmt: skip
    assert timings["generate_s"] == 0.5
    assert timings["total_s"] == pytest.approx(job["finished_at"] - job["created_at"], abs=1e-5)
    assert 0 <= timings["queue_s"] <= timings["ttft_s"] <= timings["total_s"]
    assert timings["media_s"] >= 0


async def test_media_are_told_without_their_place_in_the_store(store: JobStore, reader: JobReader):
    job_id = await submit(store, pictures=1)
    await store.media_ready(await claim(store, job_id, lane=Lane.MEDIA), [PICTURE])

    job = await reader.get(job_id)

    assert job["media"] == [
        {
            "type": "image", "sha256": PICTURE.sha256, "frames": 1, "times_s": None,
            "width": 448, "height": 252,
        }
    ]  # fmt: skip
    assert job["progress"] == {"media_done": 1, "media_total": 1, "tokens": 0}


async def test_a_view_reads_no_question(store: JobStore, reader: JobReader, door: RedisDoor):
    job_id = await submit(store, "SECRET")

    record = await reader.record(job_id)

    assert "SECRET" in str(await door.redis.hgetall(door.key("doc", job_id)))
    assert "SECRET" not in str(record)


async def test_the_first_event_of_a_retried_job_stays_as_it_was_told(
    store: JobStore, reader: JobReader
):
    job_id = await submit(store, pictures=1)
    hold = await claim(store, job_id, lane=Lane.MEDIA)
    await store.finish(hold, Outcome(JobStatus.FAILED))
    await store.retry(job_id)
    told = view.first_status(await reader.record(job_id))

    again = await claim(store, job_id, lane=Lane.MEDIA)
    await asyncio.sleep(0.005)  # the next queue is joined in another millisecond
    await store.media_ready(again, [PICTURE])

    assert told["stage"] == "waiting_media"
    assert view.first_status(await reader.record(job_id)) == told
