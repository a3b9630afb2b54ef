"""The order of waiting jobs, what is said of their wait, and the bound, with a real worker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.chat_workers import chat_worker
from tests.support.processes import Service, service, until

pytestmark = pytest.mark.timeout(120)
WAITING = {"high": 40, "normal": 14, "low": 14}
TURNS = 42  # two rounds of 16 + 4 + 1, with all classes waiting to their end
MAX_JOBS = sum(WAITING.values())
IN_FLIGHT = 2  # tickets that a worker with one slot holds: starts may swap within


@pytest.fixture(scope="module")
def idle(redis_environ: dict[str, str], tmp_path_factory: Any) -> Iterator[Service]:
    """An API without a worker."""
    with service(
        tmp_path_factory.mktemp("idle"),
        redis_environ,
        roles=("api",),
        FOREBAY_MODELS="echo",
        FOREBAY_QUEUE_MAX_JOBS=str(MAX_JOBS),
    ) as made:
        yield made


@pytest.fixture
def http(idle: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=idle.url, timeout=30) as client:
        yield client


def ask(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post("/v1/jobs", json={"query": "[[tokens=1 rate=50]]"} | more)


def job(http: httpx.Client, job_id: str) -> dict[str, Any]:
    return http.get(f"/v1/jobs/{job_id}").json()


def is_over(http: httpx.Client, job_id: str) -> bool:
    return job(http, job_id)["status"] == "completed"


def test_a_full_queue_is_served_by_class_and_in_order_and_takes_no_more(
    idle: Service, http: httpx.Client, tmp_path: Path
):
    # Low work comes first, high last: order alone would serve it the other way round.
    submitted = {
        priority: [ask(http, priority=priority).json()["id"] for _ in range(WAITING[priority])]
        for priority in ("low", "normal", "high")
    }
    every = [job_id for ids in submitted.values() for job_id in ids]
    positions = [job(http, submitted[name][0])["queue_position"] for name in WAITING]
    refused = ask(http, priority="high")
    blind_eta_s = job(http, every[-1])["eta_s"]

    with chat_worker(idle, tmp_path, slots=1):
        until(lambda: is_over(http, submitted["high"][-1]))
        last_low = job(http, submitted["low"][-1])
        until(lambda: all(is_over(http, job_id) for job_id in every[-1::-10] + every[:14]))

    jobs = {job_id: job(http, job_id) for job_id in every}
    starts = sorted(every, key=lambda job_id: jobs[job_id]["started_at"])
    early = [jobs[job_id]["priority"] for job_id in starts[:TURNS]]
    assert positions == [0, WAITING["high"], WAITING["high"] + WAITING["normal"]]
    assert [early.count(name) for name in WAITING] == pytest.approx([32, 8, 2], abs=IN_FLIGHT)
    for ids in submitted.values():
        own = [job_id for job_id in starts if job_id in ids]
        assert max(abs(own.index(job_id) - n) for n, job_id in enumerate(ids)) <= IN_FLIGHT
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert blind_eta_s is None
    real_s = jobs[submitted["low"][-1]]["started_at"] - jobs[submitted["high"][-1]]["finished_at"]
    assert last_low["eta_s"] == pytest.approx(real_s, rel=1, abs=0.5)


def test_there_is_room_again_once_a_job_has_gone(http: httpx.Client):
    ids = []
    while (response := ask(http)).status_code == 202:
        ids.append(response.json()["id"])
    http.post(f"/v1/jobs/{ids[0]}/cancel")

    again = ask(http)

    assert response.status_code == 429
    assert (len(ids), again.status_code) == (MAX_JOBS, 202)
    for job_id in [*ids, again.json()["id"]]:
        http.delete(f"/v1/jobs/{job_id}")
