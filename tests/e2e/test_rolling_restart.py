"""Chat workers are restarted under load: nothing is lost, said twice, or given more time."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.chat_workers import start_chat
from tests.support.processes import LIMIT_S, START_S, Service, service, until_async
from tests.support.sse import Frame, frames, text_of
from worker.children import Child

pytestmark = pytest.mark.timeout(150)
TOKENS = 40
EVERY_S = 0.1  # one job after the other, over both restarts
TIMEOUT_S = 5.0
QUERY = f"[[tokens={TOKENS} rate=20]]"
ANSWER = " ".join(f"tok{n}" for n in range(1, TOKENS + 1))


@pytest.fixture(scope="module")
def running(
    redis_environ: dict[str, str], s3_environ: dict[str, str], tmp_path_factory: Any
) -> Iterator[Service]:
    with service(
        tmp_path_factory.mktemp("rolling"),
        redis_environ | s3_environ,
        roles=("api", "media"),
        FOREBAY_MODELS="echo",
        FOREBAY_DRAIN_S="0.5",  # shorter than an answer: some go back to the queue
    ) as made:
        yield made


@pytest.fixture
async def http(running: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture
def workers(running: Service, tmp_path: Path) -> Iterator[list[Child]]:
    """Two workers; the test may put others in their places."""
    made = [start_chat(running, tmp_path) for _ in range(2)]
    with ExitStack() as stack:
        stack.callback(lambda: [child.stop(LIMIT_S) for child in made])
        yield made


async def load(http: httpx.AsyncClient, is_over: asyncio.Event) -> list[str]:
    """Hand jobs in, evenly, until it is over."""
    ids = []
    while not is_over.is_set():
        response = await http.post("/v1/jobs", json={"query": QUERY, "max_tokens": TOKENS})
        assert response.status_code == 202, response.text
        ids.append(response.json()["id"])
        await asyncio.sleep(EVERY_S)
    return ids


def said_by(worker: Child) -> str:
    """Return what a worker has written so far."""
    log = worker.command.log
    assert log is not None
    return log.read_text()


async def restart(workers: list[Child], place: int, running: Service, folder: Path) -> None:
    """Stop one at work as an operator does; put a new one in its place once it has ended."""
    await until_async(lambda: "job.claimed" in said_by(workers[place]))
    workers[place].send(signal.SIGTERM)
    await until_async(lambda: not workers[place].is_alive)
    assert workers[place].wait(0) == 0
    workers[place] = start_chat(running, folder)


async def test_a_rolling_restart_under_load_loses_and_repeats_nothing(
    running: Service, http: httpx.AsyncClient, workers: list[Child], tmp_path: Path
):
    is_over = asyncio.Event()
    coming = asyncio.create_task(load(http, is_over))
    for place in range(len(workers)):
        await until_ready(http)
        await restart(workers, place, running, tmp_path)
    is_over.set()
    ids = await coming

    jobs = [(await http.get(f"/v1/jobs/{job_id}", params={"wait": 60})).json() for job_id in ids]
    jobs = [await ended(http, job) for job in jobs]
    streams = [[frame async for frame in frames(http, job["id"])] for job in jobs]

    assert {job["status"] for job in jobs} == {"completed"}
    assert {job["output"]["text"] for job in jobs} == {ANSWER}
    assert {job["usage"]["completion_tokens"] for job in jobs} == {TOKENS}
    given_back = [attempt for job in jobs for attempt in job["attempts"]]
    assert given_back
    assert {attempt["status"] for attempt in given_back} == {"given_back"}
    for read in streams:
        check_stream(read)


async def test_a_job_that_changes_hands_does_not_get_its_whole_time_anew(
    http: httpx.AsyncClient, workers: list[Child]
):
    await until_ready(http)
    body = {"query": "[[tokens=100000 rate=20]]", "max_tokens": 100_000, "timeout_s": TIMEOUT_S}
    job = (await http.post("/v1/jobs", json=body)).json()
    await until_tokens(http, job["id"])
    [holder] = [worker for worker in workers if job["id"] in said_by(worker)]
    holder.send(signal.SIGQUIT)  # gives back at once

    job = await ended(http, job)

    began_at = job["created_at"] + job["timings"]["engine_wait_s"]
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "timeout", 2)
    assert job["finished_at"] - began_at == pytest.approx(TIMEOUT_S, abs=1.0)
    assert job["usage"]["completion_tokens"] > 20  # of both attempts


async def until_tokens(http: httpx.AsyncClient, job_id: str) -> None:
    """Wait until a job says something."""
    async with asyncio.timeout(LIMIT_S):
        while not (  # noqa: ASYNC110 - another process is waited for
            await http.get(f"/v1/jobs/{job_id}")
        ).json()["progress"]["tokens"]:
            await asyncio.sleep(0.02)


async def until_ready(http: httpx.AsyncClient) -> None:
    """Wait until both workers take jobs."""
    async with asyncio.timeout(START_S):
        while await ready_workers(http) < 2:  # noqa: ASYNC110 - other processes are waited for
            await asyncio.sleep(0.05)


async def ready_workers(http: httpx.AsyncClient) -> int:
    said = (await http.get("/health/ready")).json()
    return int(said["workers"]["chat"].get("ready", 0))


async def ended(http: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """Poll a job to its end, over as many changes of status as it takes."""
    async with asyncio.timeout(START_S):
        while job["status"] in {"queued", "in_progress"}:
            job = (await http.get(f"/v1/jobs/{job['id']}", params={"wait": 10})).json()
    return job


def check_stream(read: list[Frame]) -> None:
    """Fail unless the events are numbered without gap, end once, and say the whole answer once."""
    kinds = [frame.event for frame in read]
    assert [frame.id for frame in read] == [str(n) for n in range(1, len(read) + 1)]
    assert (kinds.count("completed"), kinds[-1]) == (1, "completed")
    assert text_of(read) == ANSWER
