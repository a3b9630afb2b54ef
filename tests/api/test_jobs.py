"""Submit, poll, wait, list, cancel, retry, delete: over HTTP, with real workers behind."""

import asyncio
import base64
import hashlib
import json
import time
from typing import Any

import httpx
import pytest

from tests.support.media_files import picture
from tests.support.web import body, web_server

ENDLESS = "[[tokens=100000 rate=50]]"


async def submit(http: httpx.AsyncClient, query: str, **more: Any) -> dict[str, Any]:
    response = await http.post("/v1/jobs", json={"query": query} | more)
    assert response.status_code == 202, response.text
    return response.json()


async def answer(http: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    """Hand in and wait for the end."""
    response = await http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=20"})
    assert response.status_code == 200, response.text
    return response.json()


async def until_status(http: httpx.AsyncClient, job_id: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (job := (await http.get(f"/v1/jobs/{job_id}")).json())["status"] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return job


async def test_a_job_is_accepted_at_once_and_answered_later(http: httpx.AsyncClient):
    response = await http.post("/v1/jobs", json={"query": "你是谁？"})

    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["status"] in {"queued", "in_progress", "completed"}
    done = await until_status(http, job["id"], "completed")
    assert done["output"] == {"text": "你是谁？", "finish_reason": "stop"}
    assert done["history"] == [["你是谁？", "你是谁？"]]


async def test_the_openai_form_is_answered_as_well(http: httpx.AsyncClient):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Hello there"}]},
    ]

    job = await answer(http, messages=messages, model="echo", temperature=0, max_tokens=8)

    assert job["output"]["text"] == "Hello there"
    assert job["model"] == "echo"


async def test_history_goes_on_turn_by_turn(http: httpx.AsyncClient):
    first = await answer(http, query="图片中有几只羊")

    second = await answer(http, query="and now?", history=first["history"])

    assert second["history"] == [["图片中有几只羊", "图片中有几只羊"], ["and now?", "and now?"]]


async def test_waiting_returns_the_answer_and_says_so(http: httpx.AsyncClient):
    response = await http.post(
        "/v1/jobs", json={"query": "hi"}, headers={"Prefer": "respond-async, wait=20"}
    )

    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert response.json()["status"] == "completed"


async def test_a_wait_that_is_too_short_gives_the_job_as_it_is(http: httpx.AsyncClient):
    response = await http.post(
        "/v1/jobs", json={"query": ENDLESS, "max_tokens": 100000}, headers={"Prefer": "wait=1"}
    )

    job = response.json()
    await http.post(f"/v1/jobs/{job['id']}/cancel")
    assert response.status_code == 202
    assert job["status"] == "in_progress"
    assert job["output"]["text"].startswith("tok1 tok2 ")


async def test_a_poll_waits_for_a_change_of_status(http: httpx.AsyncClient):
    job = await submit(http, "[[tokens=10 rate=20]]")
    await until_status(http, job["id"], "in_progress")

    began = time.monotonic()
    changed = (await http.get(f"/v1/jobs/{job['id']}", params={"wait": 30})).json()

    assert changed["status"] == "completed"
    assert time.monotonic() - began < 10


async def test_a_poll_of_an_ended_job_does_not_wait(http: httpx.AsyncClient):
    job = await answer(http, query="hi")

    began = time.monotonic()
    await http.get(f"/v1/jobs/{job['id']}", params={"wait": 30})

    assert time.monotonic() - began < 5


async def test_a_picture_in_the_body_reaches_the_engine(http: httpx.AsyncClient):
    url = f"data:image/png;base64,{base64.b64encode(picture(64, 48)).decode()}"

    job = await answer(http, query="<image>[[media]]", images=[url])

    (seen,) = json.loads(job["output"]["text"])
    assert job["status"] == "completed"
    assert (job["media"][0]["width"], job["media"][0]["height"]) == tuple(
        (seen["width"], seen["height"]) if "width" in seen else (64, 48)
    )
    assert job["media"][0]["sha256"] == hashlib.sha256(picture(64, 48)).hexdigest()
    assert job["timings"]["media_s"] >= 0


async def test_pictures_behind_urls_keep_their_order(http: httpx.AsyncClient):
    small, large = picture(28, 28), picture(56, 56)
    async with web_server() as web:
        urls = [web.at("/small.png", body(small)), web.at("/large.png", body(large))]

        job = await answer(http, query="<image>[[media]]<image>", images=urls)

    assert [item["width"] for item in job["media"]] == [28, 56]


async def test_a_list_has_the_newest_first_and_goes_on_at_its_cursor(http: httpx.AsyncClient):
    ids = [(await answer(http, query=f"list {n}"))["id"] for n in range(4)]

    first = (await http.get("/v1/jobs", params={"limit": 2, "status": "completed"})).json()
    second = (
        await http.get(
            "/v1/jobs", params={"limit": 2, "status": "completed", "after": first["next"]}
        )
    ).json()

    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert (first["object"], first["has_more"]) == ("list", True)
    none = (await http.get("/v1/jobs", params={"model": "nobody"})).json()
    assert none == {"object": "list", "data": [], "has_more": False, "next": None}


async def test_a_running_job_is_cancelled_once_the_engine_has_dropped_it(http: httpx.AsyncClient):
    job = await submit(http, ENDLESS, max_tokens=100000)
    await until_status(http, job["id"], "in_progress")

    asked = (await http.post(f"/v1/jobs/{job['id']}/cancel")).json()
    done = await until_status(http, job["id"], "cancelled")
    again = await http.post(f"/v1/jobs/{job['id']}/cancel")

    assert asked["cancel_requested"]
    assert done["error"] is None
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")


async def test_a_job_that_waits_for_its_moment_is_cancelled_at_once(http: httpx.AsyncClient):
    job = await submit(http, "hi", not_before="2999-01-01T00:00:00Z")

    cancelled = (await http.post(f"/v1/jobs/{job['id']}/cancel")).json()

    assert job["status"] == "queued"
    assert cancelled["status"] == "cancelled"
    assert cancelled["started_at"] is None


async def test_a_failed_job_can_be_retried_under_its_id(http: httpx.AsyncClient):
    job = await answer(http, query="[[tokens=2]] [[fail]]")

    retried = await http.post(f"/v1/jobs/{job['id']}/retry")
    done = await until_status(http, job["id"], "failed")
    conflict = await http.post(f"/v1/jobs/{(await answer(http, query='x'))['id']}/retry")

    assert (job["status"], job["error"]["code"]) == ("failed", "engine_error")
    assert job["error"]["type"] == "server_error"
    assert retried.status_code == 202
    assert (done["attempt"], len(done["attempts"])) == (2, 1)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "job_conflict")


async def test_a_deleted_job_is_gone_for_good(http: httpx.AsyncClient):
    job = await submit(http, ENDLESS, max_tokens=100000)
    await until_status(http, job["id"], "in_progress")

    deleted = await http.delete(f"/v1/jobs/{job['id']}")

    assert (deleted.status_code, deleted.content) == (204, b"")
    for call in (
        http.get(f"/v1/jobs/{job['id']}"),
        http.get(f"/v1/jobs/{job['id']}/events"),
        http.post(f"/v1/jobs/{job['id']}/cancel"),
        http.post(f"/v1/jobs/{job['id']}/retry"),
        http.delete(f"/v1/jobs/{job['id']}"),
    ):
        response = await call
        assert (response.status_code, response.json()["error"]["code"]) == (410, "job_gone")


async def test_a_repeated_submit_with_its_key_is_one_job(http: httpx.AsyncClient):
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}

    made = await asyncio.gather(
        *(http.post("/v1/jobs", json={"query": "once"}, headers=headers) for _ in range(5))
    )
    other = await http.post("/v1/jobs", json={"query": "other"}, headers=headers)

    assert len({response.json()["id"] for response in made}) == 1
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


async def test_metadata_and_options_come_back(http: httpx.AsyncClient):
    job = await answer(http, query="a b c d", metadata={"k": "v"}, max_tokens=2, priority="high")

    assert (job["metadata"], job["priority"]) == ({"k": "v"}, "high")
    assert job["output"] == {"text": "a b", "finish_reason": "length"}


async def test_a_job_that_runs_too_long_times_out(http: httpx.AsyncClient):
    job = await answer(http, query="[[hang]]", timeout_s=0.2)

    assert (job["status"], job["error"]["code"]) == ("failed", "timeout")


@pytest.mark.parametrize(
    ("query", "code"), [("[[oom]]", "out_of_memory"), ("[[fail]]", "engine_error")]
)
async def test_what_goes_wrong_in_the_engine_stands_in_the_job(
    http: httpx.AsyncClient, query: str, code: str
):
    job = await answer(http, query=query)

    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert job["output"] == {"text": "", "finish_reason": None}
