"""One API process, one echo worker and one media worker for all tests of a run."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import Service, service
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings

MAX_BODY_BYTES = 2_000_000
MAX_UPLOAD_BYTES = 12_000_000
MAX_BATCH_BYTES = 3_000_000


@pytest.fixture(scope="session")
def running(
    redis_environ: dict[str, str],
    s3_environ: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    with service(
        tmp_path_factory.mktemp("service"),
        redis_environ | s3_environ,
        FOREBAY_MAX_BODY_BYTES=str(MAX_BODY_BYTES),
        FOREBAY_MAX_UPLOAD_BYTES=str(MAX_UPLOAD_BYTES),
        FOREBAY_BATCH_MAX_BYTES=str(MAX_BATCH_BYTES),
        FOREBAY_MEDIA_ALLOW_HOSTS="127.0.0.1",
        FOREBAY_WEBHOOK_ALLOW_HOSTS="127.0.0.1",
        FOREBAY_IMAGE_FETCH_S="1",
    ) as made:
        yield made


@pytest.fixture
async def http(running: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture
async def no_endpoints(http: httpx.AsyncClient) -> None:
    """Forget the webhook endpoints that other tests have left."""
    while found := (await http.get("/v1/webhook_endpoints")).json()["data"]:
        for one in found:
            await http.delete(f"/v1/webhook_endpoints/{one['id']}")


@pytest.fixture
async def objects(running: Service) -> AsyncIterator[ObjectStore]:
    names = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    store = ObjectStore(Settings(_env_file=None, **{n: running.environ[n] for n in names}))
    yield store
    await store.close()


@pytest.fixture
def start_api(redis_environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Return what starts an API process alone, with other settings."""
    with ExitStack() as stack:

        def start(**settings: str) -> Service:
            return stack.enter_context(service(tmp_path, redis_environ, roles=("api",), **settings))

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:  # noqa: ARG001 - pytest's
    """Show what the processes wrote beside a test that failed."""
    report = yield
    service_used = getattr(item, "funcargs", {}).get("running")
    if report.failed and service_used is not None:
        report.sections += [(f"{name} log", text) for name, text in service_used.logs()]
    return report
