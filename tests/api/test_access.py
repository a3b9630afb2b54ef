"""Who may call, what the API says of itself, and what it says when Redis is away."""

import json
from collections.abc import Callable
from contextlib import aclosing

import httpx
import pytest
from openai.types import Model

from tests.support.openai_types import check
from tests.support.processes import Service
from worker.server import RunningServer

StartApi = Callable[..., Service]


async def test_a_call_needs_one_of_the_keys_where_there_are_any(start_api: StartApi):
    api = start_api(FOREBAY_API_KEYS="first,second")
    good, bad = {"Authorization": "Bearer second"}, {"Authorization": "Bearer secon"}

    async with httpx.AsyncClient(base_url=api.url) as http:
        allowed = await http.get("/v1/jobs", headers=good)
        refused = [
            await http.get("/v1/jobs"),
            await http.get("/v1/jobs", headers=bad),
            await http.get("/v1/models", headers={"Authorization": "Basic second"}),
            await http.post("/v1/jobs", json={"query": "q"}),
            await http.get("/v1/jobs/job_x/events"),
            await http.post("/v1/uploads", json={}),
            await http.post("/v1/chat/completions", json={}),
            await http.post("/v1/completions", json={}),
        ]
        alive = await http.get("/health/live")

    assert allowed.status_code == 200
    assert {(r.status_code, r.json()["error"]["code"]) for r in refused} == {(401, "unauthorized")}
    assert "Bearer" in refused[0].json()["error"]["message"]
    assert alive.status_code == 200
    assert "second" not in str(api.logs())


async def test_without_redis_every_call_says_when_to_come_back(
    start_api: StartApi, own_redis: RunningServer
):
    api = start_api(REDIS_URL=own_redis.url, FOREBAY_MODELS="echo")
    own_redis.stop()

    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        answers = [
            await http.post("/v1/jobs", json={"query": "q"}),
            await http.get("/v1/jobs/job_x"),
            await http.get("/v1/jobs/job_x/events"),
            await http.get("/v1/jobs"),
        ]
        alive, ready = await http.get("/health/live"), await http.get("/health/ready")

    assert {r.status_code for r in answers} == {503}
    assert {r.json()["error"]["code"] for r in answers} == {"store_unavailable"}
    assert all(int(r.headers["retry-after"]) >= 1 for r in answers)
    assert own_redis.url.split("@")[0].split(":")[-1] not in answers[0].text
    assert (alive.status_code, ready.status_code) == (200, 503)
    assert ready.json()["status"] == "unavailable"


async def test_without_workers_the_api_takes_jobs_and_says_what_is_missing(start_api: StartApi):
    api = start_api(FOREBAY_MODELS="echo,other")

    async with httpx.AsyncClient(base_url=api.url) as http:
        job = await http.post("/v1/jobs", json={"query": "q", "model": "other"})
        ready = await http.get("/health/ready")
        models = (await http.get("/v1/models")).json()

    assert (job.status_code, job.json()["queue_position"]) == (202, 0)
    assert (ready.status_code, ready.json()["status"]) == (503, "waiting")
    assert ready.json()["reason"] == "no chat and no media worker is ready"
    assert ready.json()["queued"] == {"chat.other.normal": 1}
    assert [(m["id"], m["status"]) for m in models["data"]] == [
        ("echo", "loading"), ("other", "loading"),
    ]  # fmt: skip


async def test_a_running_service_is_ready(http: httpx.AsyncClient):
    ready = (await http.get("/health/ready")).json()

    assert (ready["status"], ready["reason"], ready["models"]) == ("ready", None, ["echo"])
    assert ready["workers"] == {"chat": {"ready": 1}, "media": {"ready": 1}}


async def test_models_are_listed_as_openai_lists_them(http: httpx.AsyncClient):
    listed = (await http.get("/v1/models")).json()

    (model,) = listed["data"]
    check(model, Model)
    assert listed["object"] == "list"
    assert (model["id"], model["object"], model["status"]) == ("echo", "model", "ready")
    assert (model["is_chat"], model["is_multimodal"]) == (True, True)
    assert model["created"] > 1_700_000_000
    assert (await http.get("/v1/models/echo")).json() == model
    assert (await http.get("/v1/models/gpt-4")).json()["error"]["code"] == "model_not_found"


async def test_the_api_documents_itself(http: httpx.AsyncClient):
    document = (await http.get("/openapi.json")).json()
    page = await http.get("/docs")

    paths = {(m.upper(), path) for path, calls in document["paths"].items() for m in calls}
    assert {("POST", "/v1/jobs"), ("GET", "/v1/jobs/{job_id}/events")} <= paths
    assert "JobBody" in document["components"]["schemas"]
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]


@pytest.mark.parametrize("path", ["/health/live", "/v1/models"])
async def test_no_answer_names_the_server_program(http: httpx.AsyncClient, path: str):
    assert "server" not in (await http.get(path)).headers


@pytest.mark.parametrize(("given", "is_kept"), [
    ("trace-1/a.b:c", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False),
    ("a\tb", False),
])  # fmt: skip
async def test_every_answer_has_a_request_id(http: httpx.AsyncClient, given: str, is_kept: bool):
    answers = [
        await http.get("/health/live", headers={"x-request-id": given}),
        await http.get("/nowhere", headers={"x-request-id": given}),
        await http.post("/v1/jobs", json={"nonsense": 1}, headers={"x-request-id": given}),
        await http.post("/v1/jobs", content=b"x" * 3_000_000, headers={"x-request-id": given}),
    ]

    assert [r.status_code for r in answers] == [200, 404, 400, 413]
    for answer in answers:
        (request_id,) = answer.headers.get_list("x-request-id")
        assert request_id == given if is_kept else request_id.startswith("req_")
    assert len({r.headers["x-request-id"] for r in answers}) == (1 if is_kept else 4)


@pytest.mark.parametrize("name", ["InternVL2-2B", "internvl2_2b", "INTERNVL2.2b"])
async def test_a_model_is_known_by_its_aliases(start_api: StartApi, name: str):
    api = start_api(FOREBAY_MODELS="InternVL2-2B,org/Other")

    async with httpx.AsyncClient(base_url=api.url) as http:
        shown = await http.get(f"/v1/models/{name}")
        job = await http.post("/v1/jobs", json={"query": "q", "model": name})

    assert (shown.json()["id"], shown.json()["status"]) == ("InternVL2-2B", "loading")
    assert "internvl2_2b" in shown.json()["aliases"]
    assert job.json()["model"] == "InternVL2-2B"


async def test_a_full_queue_says_when_to_come_back(start_api: StartApi):
    api = start_api(FOREBAY_MODELS="echo", FOREBAY_QUEUE_MAX_JOBS="1")
    ask = {"model": "echo", "messages": [{"role": "user", "content": "q"}]}

    async with httpx.AsyncClient(base_url=api.url) as http:
        await http.post("/v1/jobs", json=ask)
        refused = [
            await http.post("/v1/jobs", json=ask),
            await http.post("/v1/chat/completions", json=ask),
            await http.post("/v1/completions", json={"model": "echo", "prompt": "q"}),
        ]

    assert {r.status_code for r in refused} == {429}
    assert {r.json()["error"]["type"] for r in refused} == {"rate_limit_error"}
    assert all(1 <= int(r.headers["retry-after"]) <= 60 for r in refused)


async def test_a_stream_begins_while_its_job_is_still_queued(start_api: StartApi):
    api = start_api(FOREBAY_MODELS="echo")
    ask = {"model": "echo", "messages": [{"role": "user", "content": "q"}], "stream": True}

    async with (
        httpx.AsyncClient(base_url=api.url, timeout=10) as http,
        http.stream("POST", "/v1/chat/completions", json=ask) as response,
        aclosing(response.aiter_lines()) as lines,
    ):
        first = await anext(lines)
        job = (await http.get(f"/v1/jobs/{response.headers['x-forebay-job-id']}")).json()

    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == ""
    assert job["status"] == "queued"


async def test_choices_that_do_not_all_fit_leave_none_behind(start_api: StartApi):
    api = start_api(FOREBAY_MODELS="echo", FOREBAY_QUEUE_MAX_JOBS="2")
    ask = {"model": "echo", "messages": [{"role": "user", "content": "q"}], "n": 3}

    async with httpx.AsyncClient(base_url=api.url) as http:
        refused = await http.post("/v1/chat/completions", json=ask)
        jobs = (await http.get("/v1/jobs")).json()["data"]

    assert refused.status_code == 429
    assert [job["status"] for job in jobs] == ["cancelled", "cancelled"]
