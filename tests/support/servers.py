"""A real Redis and a real S3 server for a test run: the given ones, else our embedded ones."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker import embedded
from worker.server import RunningServer

S3_SETTINGS = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@contextmanager
def redis_server() -> Iterator[dict[str, str]]:
    """Yield `REDIS_URL`: the environment's, else that of a server that goes away."""
    if url := os.environ.get("REDIS_URL"):
        yield {"REDIS_URL": url}
    else:
        with _throw_away(embedded.start_redis) as settings:
            yield settings


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Yield endpoint and keys: the environment's, else those of a server that goes away."""
    if os.environ.get("S3_ENDPOINT_URL"):
        yield {name: os.environ.get(name, "") for name in S3_SETTINGS}
    else:
        with _throw_away(embedded.start_s3) as settings:
            yield settings


@contextmanager
def _throw_away(start: Callable[[Path], RunningServer]) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="forebay-test-") as folder:
        server = start(Path(folder))
        try:
            yield dict(server.environ)
        finally:
            server.stop()
