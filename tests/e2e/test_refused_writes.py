"""A Redis that answers and takes no writes, as one does whose disk is full."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import Service, service, until
from worker.contract.door import RedisDoor
from worker.contract.settings import Settings
from worker.server import RunningServer

pytestmark = pytest.mark.timeout(120)
TOKENS = 60


@pytest.fixture
def running(
    own_redis: RunningServer, s3_environ: dict[str, str], tmp_path: Path
) -> Iterator[Service]:
    stores = own_redis.environ | s3_environ
    with service(tmp_path, stores, FOREBAY_MODELS="echo", FOREBAY_LEASE_S="20") as made:
        yield made


def set_refusing(running: Service, is_refusing: bool) -> None:
    """Have every write refused, for want of replicas: to clients the same as for want of room."""

    async def set_it() -> None:
        door = RedisDoor(Settings(_env_file=None, REDIS_URL=running.environ["REDIS_URL"]))
        await door.command("CONFIG", "SET", "min-replicas-to-write", int(is_refusing))
        await door.close()

    asyncio.run(set_it())


def test_nothing_is_accepted_meanwhile_and_everything_goes_on_afterwards(running: Service):
    log = running.children["chat"].command.log
    assert log is not None
    with httpx.Client(base_url=running.url, timeout=30) as http:
        early = http.post("/v1/jobs", json={"query": f"[[tokens={TOKENS} rate=20]]"}).json()

        def job() -> dict[str, Any]:
            return http.get(f"/v1/jobs/{early['id']}").json()

        until(lambda: job()["progress"]["tokens"] > 0)
        set_refusing(running, True)
        until(lambda: "server:ResponseError" in log.read_text())  # Celery has met it as well
        refused = http.post("/v1/jobs", json={"query": "no"})
        set_refusing(running, False)
        until(lambda: job()["finished_at"] is not None)
        late = http.post("/v1/jobs", json={"query": "yes"}, headers={"Prefer": "wait=20"}).json()
        ended = job()

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
    assert ended["usage"]["completion_tokens"] == TOKENS
    assert late["output"]["text"] == "yes"
    assert all(child.is_alive for child in running.children.values())
