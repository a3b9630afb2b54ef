"""One fault, from the start of all processes to the verdict."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults import audit
from tests.faults.audit import Verdict
from tests.faults.deployment import Deployment, Stores, deployment, stores, with_rabbit
from tests.faults.load import Load
from tests.faults.proxy import Proxy, through
from tests.faults.strikes import Fault, Scene
from worker.contract.door import RedisDoor

DRAIN_S = 3
SETTLE_S = 150.0  # a worker that was killed often is started again after up to 60 s
FIRST_STRIKE_S = 1.5


async def run_fault(
    fault: Fault, folder: Path, *, jobs: int, rate: float, seed: int, broker: str = "redis"
) -> Verdict:
    """Start everything in a folder, load it while the fault strikes, compare the books."""
    chance = random.Random(seed)
    began = time.monotonic()
    async with (
        _servers(fault, folder, broker) as servers,
        _proxied(fault, servers, chance) as (proxy, through),
        deployment(
            folder, servers, through, FOREBAY_DRAIN_S=str(DRAIN_S), **fault.settings
        ) as place,
    ):
        load = Load(place.url, jobs=jobs, rate=rate, seed=seed)
        scene = Scene(place, chance, proxy, lease_s=place.settings.lease_s)
        async with _door(place) as door:
            await _strike_under(load, fault, scene, door)
            records = await audit.read_records(door)
        verdict = audit.judge(
            fault.name,
            load.entries,
            records,
            scene.blows,
            scene.watch,
            promised_s=fault.promised_s,
        )
    verdict.strikes += proxy.failed_calls if proxy else 0
    verdict.broker = broker
    verdict.wall_s = time.monotonic() - began
    return verdict


async def _strike_under(load: Load, fault: Fault, scene: Scene, door: RedisDoor) -> None:
    """Run the load with strikes until all is handed in, then until all is over."""
    watching = asyncio.create_task(scene.watch.run(door))
    loading = asyncio.create_task(load.run())
    striking = asyncio.create_task(_strike(fault, scene))
    try:
        # Not longer than the load would take undisturbed: strikes without end leave nobody to work.
        await asyncio.wait(
            (loading, striking), timeout=load.planned_s, return_when=asyncio.FIRST_COMPLETED
        )
        scene.is_ending.set()
        await striking
        await asyncio.wait({loading}, timeout=SETTLE_S)  # whoever is left then is lost
        if loading.done():
            loading.result()  # a fault of the load itself
    finally:
        for task in (striking, loading, watching):
            task.cancel()
        await asyncio.gather(striking, loading, watching, return_exceptions=True)


async def _strike(fault: Fault, scene: Scene) -> None:
    await asyncio.sleep(FIRST_STRIKE_S)
    while not scene.is_ending.is_set():
        await fault.strike(scene)
        with contextlib.suppress(TimeoutError):
            pause_s = fault.every_s * scene.chance.uniform(0.5, 1.5)
            await asyncio.wait_for(scene.is_ending.wait(), pause_s)


@asynccontextmanager
async def _door(place: Deployment) -> AsyncIterator[RedisDoor]:
    door = RedisDoor(place.settings)
    try:
        yield door
    finally:
        await door.close()


@asynccontextmanager
async def _servers(fault: Fault, folder: Path, broker: str) -> AsyncIterator[Stores]:
    async with stores(folder, redis_pause_s=fault.redis_away_s) as servers:
        if broker == "redis":
            yield servers
            return
        async with with_rabbit(folder, servers) as all_of_them:
            yield all_of_them


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
        yield proxy, {name: through(urls[name], port) for name in fault.proxied}
    finally:
        await proxy.stop()
