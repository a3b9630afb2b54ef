"""One fault, from the start of all processes to the verdict."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.faults import audit
from tests.faults.audit import Verdict
from tests.faults.deployment import Deployment, Stores, deployment, stores
from tests.faults.load import Load
from tests.faults.proxy import Proxy
from tests.faults.strikes import Fault, Scene
from worker.contract.door import RedisDoor

DRAIN_S = 3
SETTLE_S = 90.0
FIRST_STRIKE_S = 1.5


async def run_fault(fault: Fault, folder: Path, *, jobs: int, rate: float, seed: int) -> Verdict:
    """Start everything in a folder, load it while the fault strikes, compare the books."""
    chance = random.Random(seed)
    began = time.monotonic()
    async with (
        stores(folder, redis_pause_s=fault.redis_away_s) as servers,
        _proxied(fault, servers, chance) as (proxy, through),
        deployment(
            folder, servers, through, FOREBAY_DRAIN_S=str(DRAIN_S), **fault.settings
        ) as place,
    ):
        load = Load(place.url, jobs=jobs, rate=rate, seed=seed)
        scene = Scene(place, chance, proxy, lease_s=place.settings.lease_s)
        strikes_ms = await _strike_under(load, fault, scene)
        verdict = audit.judge(fault.name, load.entries, await _records(place), strikes_ms)
    verdict.strikes = scene.count + (proxy.failed_calls if proxy else 0)
    verdict.wall_s = time.monotonic() - began
    return verdict


async def _strike_under(load: Load, fault: Fault, scene: Scene) -> list[int]:
    """Run the load with strikes until all is handed in, then until all is over."""
    strikes_ms: list[int] = []
    loading = asyncio.create_task(load.run())
    striking = asyncio.create_task(_strike(fault, scene, strikes_ms))
    try:
        await _first(asyncio.create_task(load.all_sent.wait()), loading, striking)
        striking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await striking
        await asyncio.wait({loading}, timeout=SETTLE_S)  # whoever is left then is lost
    finally:
        for task in (striking, loading):
            task.cancel()
        await asyncio.gather(striking, loading, return_exceptions=True)
    return strikes_ms


async def _first(*tasks: "asyncio.Task[object]") -> None:
    """Return when the first of these is over; raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _strike(fault: Fault, scene: Scene, strikes_ms: list[int]) -> None:
    await asyncio.sleep(FIRST_STRIKE_S)
    while True:
        strikes_ms.append(int(time.time() * 1000))
        scene.count += 1
        await fault.strike(scene)
        await asyncio.sleep(fault.every_s * scene.chance.uniform(0.5, 1.5))


async def _records(place: Deployment) -> dict[str, audit.Record]:
    door = RedisDoor(place.settings)
    try:
        return await audit.read_records(door)
    finally:
        await door.close()


@asynccontextmanager
async def _proxied(
    fault: Fault, servers: Stores, chance: random.Random
) -> AsyncIterator[tuple[Proxy | None, dict[str, str]]]:
    """Put a proxy before the server of a fault's settings; yield it and what they now say."""
    if not fault.proxied:
        yield None, {}
        return
    urls = {"CELERY_BROKER_URL": servers.environ["REDIS_URL"], **servers.environ}
    target = urls[fault.proxied[0]]
    proxy = Proxy(urlsplit(target).port or 0, fault.judge(chance), refusal=fault.refusal)
    port = await proxy.start()
    try:
        yield proxy, {name: _with_port(urls[name], port) for name in fault.proxied}
    finally:
        await proxy.stop()


def _with_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{place}:{port}"))
