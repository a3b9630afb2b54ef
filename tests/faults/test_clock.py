"""That a wrong clock is wrong where it should be and right where it should not."""

import os
import subprocess
import sys
import time

from tests.conftest import MakeSettings
from tests.faults.deployment import CLOCK
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry

NOW = """
import datetime, time
print(time.time(), datetime.datetime.now(datetime.UTC).timestamp(), time.monotonic())
"""

ANNOUNCE = """
import asyncio
from worker.contract import settings
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry
async def main():
    door = RedisDoor(settings.load())
    await Registry(door).announce("ahead", {"name": "ahead"}, None)
    await door.close()
asyncio.run(main())
"""


def ahead() -> dict[str, str]:
    """Return the environment of a process whose clock is an hour ahead."""
    path = f"{CLOCK}:{CLOCK.parents[2]}"
    return {**os.environ, "PYTHONPATH": path, "CLOCK_AHEAD_S": "3600"}


def test_the_wall_clock_is_ahead_and_running_time_is_not():
    said = subprocess.run(
        [sys.executable, "-c", NOW], env=ahead(), capture_output=True, text=True, check=True
    ).stdout.split()

    wall, calendar, running = map(float, said)
    assert 3590 < wall - time.time() < 3610
    assert 3590 < calendar - time.time() < 3610
    assert abs(running - time.monotonic()) < 10


async def test_a_host_an_hour_ahead_strikes_no_other_off(
    make_settings: MakeSettings, door: RedisDoor
):
    settings, registry = make_settings(), Registry(door)
    await registry.announce("here", {"name": "here"}, None)
    stores = {"REDIS_URL": settings.redis_url, "FOREBAY_KEY_PREFIX": settings.key_prefix}

    subprocess.run([sys.executable, "-c", ANNOUNCE], env=ahead() | stores, check=True)  # noqa: ASYNC221 - nothing else runs

    assert {worker["name"] for worker in await registry.workers()} == {"here", "ahead"}
