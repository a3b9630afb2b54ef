"""A bucket, a memo and settings of each test's own, on servers that a run starts once."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from tests.support import servers
from tests.support.memo import RedisMemo
from tests.support.web import Web, web_server
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def stores() -> Iterator[dict[str, str]]:
    with servers.redis_server() as redis, servers.s3_server() as s3:
        yield redis | s3


@pytest.fixture
def settings(stores: dict[str, str]) -> MakeSettings:
    """Return settings for this test's own bucket, with any of them changed."""
    bucket = f"test-{secrets.token_hex(6)}"

    def make(**changed: object) -> Settings:
        plain = {"S3_BUCKET": bucket, "FOREBAY_MEDIA_ALLOW_HOSTS": "127.0.0.1"}
        return Settings(_env_file=None, **(stores | plain | changed))

    return make


@pytest.fixture
async def objects(settings: MakeSettings) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(settings())
    await store.ensure_bucket()
    yield store
    await store.close()


@pytest.fixture
async def memo(stores: dict[str, str]) -> AsyncIterator[RedisMemo]:
    async with Redis.from_url(stores["REDIS_URL"]) as redis:
        yield RedisMemo(redis, f"test:{secrets.token_hex(6)}:")


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with web_server() as server:
        yield server
