"""Jobs that took their workers down: listed with their attempts, and replayed."""

import os
import subprocess
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.factories import LOST, claim, question
from tests.support.processes import Service
from worker import commands
from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.job import JobSpec
from worker.contract.settings import Settings
from worker.contract.store import JobStore

NOBODY = "nobody"  # a model without a worker: what is replayed stays in its queue


@pytest.fixture
async def dead_id(running: Service) -> AsyncIterator[str]:
    names = ("REDIS_URL", "FOREBAY_KEY_PREFIX")
    door = RedisDoor(Settings(_env_file=None, **{name: running.environ[name] for name in names}))
    store = JobStore(door)
    job_id = (await store.submit(question(model=NOBODY), JobSpec())).job_id
    for n in range(keys.MAX_CRASHES):
        await store.release(await claim(store, job_id, f"worker-{n}"), LOST)
    yield job_id
    await store.cancel(job_id)
    await store.erase(job_id)
    await door.close()


def forebay(running: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        commands.forebay(*arguments, "--url", running.url),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


async def test_the_dead_list_has_only_the_dead_and_all_their_attempts(
    http: httpx.AsyncClient, dead_id: str
):
    failed = await http.post("/v1/jobs", json={"query": "[[fail]]"}, headers={"Prefer": "wait=20"})

    listed = (await http.get("/v1/jobs", params={"dead": True})).json()

    (dead,) = listed["data"]
    assert failed.json()["status"] == "failed"
    assert (dead["id"], dead["error"]["code"]) == (dead_id, "worker_lost")
    assert [a["owner"] for a in dead["attempts"]] == ["worker-0", "worker-1", "worker-2"]
    assert {a["error"]["code"] for a in dead["attempts"]} == {"worker_lost"}


async def test_the_command_line_lists_the_dead_and_replays_them(
    running: Service, http: httpx.AsyncClient, dead_id: str
):
    listed = forebay(running, "jobs", "list", "--dead")
    replayed = forebay(running, "jobs", "retry", "--dead")
    left = forebay(running, "jobs", "list", "--dead")

    job = (await http.get(f"/v1/jobs/{dead_id}")).json()
    assert dead_id in listed.stdout, listed
    assert "worker_lost" in listed.stdout
    assert (replayed.returncode, replayed.stdout.split()) == (0, [dead_id])
    assert dead_id not in left.stdout
    assert (job["status"], len(job["attempts"])) == ("queued", keys.MAX_CRASHES)


@pytest.mark.parametrize("arguments", [(), ("job_1", "--dead")])
def test_a_retry_names_one_job_or_the_dead(running: Service, arguments: tuple[str, ...]):
    refused = forebay(running, "jobs", "retry", *arguments)

    assert refused.returncode == 2
    assert "give a JOB_ID or --dead" in refused.stderr
