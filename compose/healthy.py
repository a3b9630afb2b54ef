"""Is the service of this container well? What the containers' health checks ask.

    python healthy.py http://127.0.0.1:8000/health/live     the address answers 2xx
    python healthy.py chat                                  the chat worker of this host takes jobs

Exit status 0 or 1; the line it prints is shown by `docker inspect`.
"""

# ruff: noqa: INP001 - a script that is copied into the images alone

import asyncio
import platform
import sys
import urllib.request

from worker.contract import settings
from worker.contract.door import RedisDoor
from worker.contract.errors import JobError
from worker.contract.registry import Registry

ANSWER_S = 5.0
WELL = {"ready", "draining"}  # not loading, not failed


def main(asked: str) -> str:
    """Return what is wrong, '' if nothing is."""
    if asked.startswith("http"):
        return _wrong_with_address(asked)
    try:
        return asyncio.run(_wrong_with_worker(asked))
    except (TimeoutError, JobError) as error:
        return f"Redis does not answer: {error}"


def _wrong_with_address(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S):  # noqa: S310 - the file's own address
            return ""
    except OSError as error:
        return f"{url}: {error}"


async def _wrong_with_worker(role: str) -> str:
    """Look for the heartbeat of a worker on this host; a silent one has none after 15 s."""
    door = RedisDoor(settings.load(), max_connections=1)
    try:
        async with asyncio.timeout(ANSWER_S):
            workers = await Registry(door).workers()
    finally:
        await door.close()
    states = {w["state"] for w in workers if (w["host"], w["role"]) == (platform.node(), role)}
    return "" if states & WELL else f"the {role} worker is {' and '.join(states) or 'not there'}"


if __name__ == "__main__":
    wrong = main(sys.argv[1])
    print(wrong or "ok")  # noqa: T201 - for `docker inspect`
    sys.exit(1 if wrong else 0)
