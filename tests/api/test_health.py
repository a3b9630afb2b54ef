"""Ready, and what is not well although others answer."""

from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.support.processes import Service
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry
from worker.contract.settings import Settings


@pytest.fixture
def api(start_api: Callable[..., Service]) -> Service:
    return start_api()


@pytest.fixture
async def registry(api: Service) -> AsyncIterator[Registry]:
    names = ("REDIS_URL", "FOREBAY_KEY_PREFIX")
    door = RedisDoor(Settings(_env_file=None, **{name: api.environ[name] for name in names}))
    yield Registry(door)
    await door.close()


async def test_a_worker_that_loads_again_tells_why_while_others_are_ready(
    api: Service, registry: Registry
):
    for owner, role, state, reason in (
        ("a", "chat", "ready", ""), ("b", "media", "ready", ""), ("c", "chat", "loading", "killed"),
    ):  # fmt: skip
        info = {"role": role, "state": state, "reason": reason, "model": "m", "gpus": "2"}
        await registry.announce(owner, info, None)

    async with httpx.AsyncClient(base_url=api.url) as http:
        ready = await http.get("/health/ready")

    assert (ready.status_code, ready.json()["reason"]) == (200, None)
    assert ready.json()["workers"]["chat"] == {"ready": 1, "loading": 1}
    assert ready.json()["reasons"] == [
        {"role": "chat", "state": "loading", "reason": "killed", "model": "m", "gpus": "2"}
    ]
