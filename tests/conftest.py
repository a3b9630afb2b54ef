"""Servers and factories only: real ones, started once per run, a key prefix for each test."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import servers
from worker import embedded
from worker.contract.door import RedisDoor
from worker.contract.reader import JobReader
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.server import RunningServer

MakeSettings = Callable[..., Settings]

# How long an example takes says nothing: other processes may have the machine meanwhile.
settings.register_profile("forebay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forebay")


@pytest.fixture(scope="session")
def redis_environ() -> Iterator[dict[str, str]]:
    with servers.redis_server() as environ:
        yield environ


@pytest.fixture(scope="session")
def s3_environ() -> Iterator[dict[str, str]]:
    with servers.s3_server() as environ:
        yield environ


@pytest.fixture
def make_settings(redis_environ: dict[str, str]) -> MakeSettings:
    """Return settings with this test's own key prefix, any of them changed."""
    prefix = f"test:{secrets.token_hex(6)}:"

    def make(**changed: object) -> Settings:
        return Settings(
            _env_file=None, **(redis_environ | {"FOREBAY_KEY_PREFIX": prefix} | changed)
        )

    return make


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RunningServer]:
    """Start a Redis that this test may stop."""
    server = embedded.start_redis(tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def door(make_settings: MakeSettings) -> AsyncIterator[RedisDoor]:
    made = RedisDoor(make_settings())
    yield made
    await made.close()


@pytest.fixture
def store(door: RedisDoor) -> JobStore:
    return JobStore(door)


@pytest.fixture
def reader(door: RedisDoor) -> JobReader:
    return JobReader(door)
