"""A job waits for its worker, not the other way round."""

from pathlib import Path

import httpx

from tests.support.chat_workers import chat_worker
from tests.support.processes import service


def test_a_job_is_answered_by_a_worker_that_was_started_only_afterwards(
    redis_environ: dict[str, str], s3_environ: dict[str, str], tmp_path: Path
):
    stores = redis_environ | s3_environ
    with service(tmp_path, stores, roles=("api",), FOREBAY_MODELS="echo") as running:
        http = httpx.Client(base_url=running.url, timeout=40)
        handed_in = http.post("/v1/jobs", json={"query": "is anybody there"})

        with chat_worker(running, tmp_path):
            job = handed_in.json()
            while job["status"] in {"queued", "in_progress"}:
                job = http.get(job["links"]["self"], params={"wait": 30}).json()

        http.close()

    assert (handed_in.status_code, handed_in.json()["status"]) == (202, "queued")
    assert (job["status"], job["output"]["text"]) == ("completed", "is anybody there")
