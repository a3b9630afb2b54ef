"""The faults: who is struck, how, and how often. Random moments, the same for the same seed."""

import asyncio
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.faults import family
from tests.faults.deployment import CHAT, ENGINE, WORKER, Deployment
from tests.faults.proxy import Fate, Proxy
from tests.faults.watch import Blow, Watch

HOUR_S = 3600.0
SUPERVISED_S, HOST_S = 2.0, 12.0  # take-over where the supervisor lives, where the host is gone
CLOCK_WRONG_S = 10.0
CALLS_THAT_FAIL = 0.01
S3_CALLS_THAT_FAIL = 0.1
S3_CALLS_THAT_LAG = 0.33
ONLY_RABBIT = {"kill-broker", "term-broker"}
DISK_LEFT_BYTES = 1  # less than the log holds already
_BODY = b"<Error><Code>SlowDown</Code><Message>try again later</Message></Error>"
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


@dataclass(slots=True, eq=False)
class Scene:
    """What a strike may touch. `blows` are the strikes that there were."""

    place: Deployment
    chance: random.Random
    proxy: Proxy | None = None
    lease_s: float = 6.0
    watch: Watch = field(default_factory=Watch)
    blows: list[Blow] = field(default_factory=list)
    is_ending: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, name: str = "") -> None:
        """Note a strike, at a part or at none; just before it falls."""
        pids = self.place.parts[name].pids(WORKER) if name in CHAT else []
        self.blows.append(self.watch.blow(pids))


Strike = Callable[[Scene], Awaitable[None]]


async def nothing(scene: Scene) -> None:
    """Strike nobody: what the load looks like by itself."""


def kill(names: tuple[str, ...], word: str, signum: signal.Signals = signal.SIGKILL) -> Strike:
    """Send a signal to one of these parts that lives, to the processes with a word in them."""

    async def strike(scene: Scene) -> None:
        alive = [name for name in names if scene.place.parts[name].pids(word)]
        if alive:
            victim = scene.chance.choice(alive)
            scene.strikes(victim)
            family.send(scene.place.parts[victim].pids(word), signum)

    return strike


def terminate(names: tuple[str, ...]) -> Strike:
    """Ask a part to end as an operator does: SIGTERM to its first process; it is started again."""

    async def strike(scene: Scene) -> None:
        victim = scene.chance.choice(names)
        scene.strikes(victim)
        scene.place.parts[victim].send(signal.SIGTERM)

    return strike


def freeze(names: tuple[str, ...], word: str, leases: float) -> Strike:
    """Stop processes for a number of leases, then let them go on as if nothing had been."""

    async def strike(scene: Scene) -> None:
        victim = scene.chance.choice(names)
        pids = scene.place.parts[victim].pids(word)
        scene.strikes(victim)
        family.send(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(leases * scene.lease_s)
        finally:
            family.send(pids, signal.SIGCONT)

    return strike


async def wrong_clock(scene: Scene) -> None:
    """Restart one part an hour ahead of the others; after a while again, with the right clock."""
    victim = scene.chance.choice((*CHAT, "media", "api"))
    for ahead_s in (HOUR_S, 0.0):
        scene.place.set_clock(victim, ahead_s)
        scene.strikes(victim)
        scene.place.parts[victim].send(signal.SIGTERM)
        if ahead_s:
            await asyncio.sleep(CLOCK_WRONG_S)


def outage(seconds: float) -> Strike:
    """Cut every connection through the proxy and let none in for a while."""

    async def strike(scene: Scene) -> None:
        assert scene.proxy is not None
        scene.strikes()
        scene.proxy.is_closed = True
        scene.proxy.cut_all()
        try:
            await asyncio.sleep(seconds)
        finally:
            scene.proxy.is_closed = False

    return strike


def silence(seconds: float) -> Strike:
    """Let nothing through the proxy for a while, and tell nobody: a network that drops packets."""

    async def strike(scene: Scene) -> None:
        assert scene.proxy is not None
        scene.strikes()
        scene.proxy.hush()
        try:
            await asyncio.sleep(seconds)
        finally:
            scene.proxy.speak()

    return strike


def full_disk(seconds: float) -> Strike:
    """Let Redis' files grow no further for a while: each write of its log fails."""

    async def strike(scene: Scene) -> None:
        pids = scene.place.parts["redis"].pids()
        scene.strikes()
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (DISK_LEFT_BYTES, resource.RLIM_INFINITY))
        try:
            await asyncio.sleep(seconds)
        finally:
            for pid in pids:
                whole = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, whole)

    return strike


def bad_calls(chance: random.Random) -> Callable[[], Fate]:
    """Judge Redis calls: one in a hundred fails, half of those after it was executed."""

    def judge() -> Fate:
        if chance.random() >= CALLS_THAT_FAIL:
            return Fate.PASS
        return chance.choice((Fate.CUT, Fate.LOSE))

    return judge


def busy_store(chance: random.Random) -> Callable[[], Fate]:
    """Judge S3 calls: one in ten is answered 503, and for 3 s of every 10 all of them are."""

    def judge() -> Fate:
        is_out = time.monotonic() % 10 < 3
        return Fate.REFUSE if is_out or chance.random() < S3_CALLS_THAT_FAIL else Fate.PASS

    return judge


def slow_store(chance: random.Random) -> Callable[[], Fate]:
    """Judge S3 calls: one in three takes two seconds longer."""
    return lambda: Fate.DELAY if chance.random() < S3_CALLS_THAT_LAG else Fate.PASS


def _passes(_: random.Random) -> Callable[[], Fate]:
    return lambda: Fate.PASS


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the report.

    `every_s` is the mean time between strikes. `proxied` are the settings whose server is reached
    through a proxy that `judge` makes fail; `redis_away_s` how long a killed Redis stays away.
    `promised_s` bounds a take-over where another worker lives.
    """

    name: str
    about: str
    strike: Strike
    every_s: float = 6.0
    proxied: tuple[str, ...] = ()
    judge: Callable[[random.Random], Callable[[], Fate]] = _passes
    refusal: bytes = b""
    redis_away_s: float = 2.0
    promised_s: float | None = None
    settings: dict[str, str] = field(default_factory=dict)


_FAULTS = (
    Fault("none", "nothing is struck", nothing),
    Fault(
        "kill-chat", "kill -9 of a chat worker, supervisor lives", kill(CHAT, WORKER),
        promised_s=SUPERVISED_S,
    ),
    Fault(
        "kill-host", "kill -9 of a chat worker and its supervisor", kill(CHAT, ""), every_s=9.0,
        promised_s=HOST_S,
    ),
    Fault(
        "kill-engine", "kill -9 of an engine process", kill(CHAT, ENGINE), promised_s=SUPERVISED_S
    ),
    Fault("kill-media", "kill -9 of the media worker (and sweeper)", kill(("media",), WORKER)),
    Fault("kill-api", "kill -9 of the API", kill(("api",), ""), every_s=8.0),
    Fault("kill-redis", "kill -9 of Redis, back on its file after 2 s", kill(("redis",), "")),
    Fault(
        "redis-away", "kill -9 of Redis, back after 10 s (longer than a lease)",
        kill(("redis",), ""), every_s=22.0, redis_away_s=10.0,
    ),
    Fault("freeze-redis", "SIGSTOP of Redis for 1.5 leases", freeze(("redis",), "", 1.5), 18.0),
    Fault("term-chat", "SIGTERM of a chat worker", terminate(CHAT)),
    Fault(
        "quit-chat", "SIGQUIT of a chat worker: all back", kill(CHAT, WORKER, signal.SIGQUIT),
        promised_s=SUPERVISED_S,
    ),
    Fault("term-media", "SIGTERM of the media worker", terminate(("media",))),
    Fault("term-api", "SIGTERM of the API", terminate(("api",)), every_s=5.0),
    Fault("term-redis", "SIGTERM of Redis, back after 2 s", terminate(("redis",))),
    Fault(
        "freeze-chat", "SIGSTOP of a chat worker for 1.5 leases", freeze(CHAT, WORKER, 1.5), 13.0,
        promised_s=HOST_S,
    ),
    Fault("clock", "one process an hour ahead for 10 s, then another", wrong_clock, every_s=2.0),
    Fault(
        "s3-busy", "S3 answers 503: 10 % always, all of it for 3 s in 10", nothing,
        proxied=("S3_ENDPOINT_URL",), judge=busy_store, refusal=SLOW_DOWN,
    ),
    Fault(
        "s3-slow", "one S3 call in three takes 2 s longer", nothing,
        proxied=("S3_ENDPOINT_URL",), judge=slow_store,
    ),
    Fault(
        "redis-silent", "Redis unreachable for 30 s: the network drops everything", silence(30.0),
        proxied=("REDIS_URL",), every_s=30.0,
    ),
    Fault("disk-full", "no room for Redis' append-only file for 5 s", full_disk(5.0), every_s=15.0),
    Fault(
        "redis-calls", "1 % of Redis calls fail, half of them after they were executed", nothing,
        proxied=("REDIS_URL",), judge=bad_calls,
    ),
    Fault("kill-broker", "kill -9 of RabbitMQ", kill(("broker",), ""), every_s=15.0),
    Fault("term-broker", "SIGTERM of RabbitMQ", terminate(("broker",)), every_s=20.0),
    Fault(
        "broker-cut", "broker connections cut, none let in for 3 s", outage(3.0),
        proxied=("CELERY_BROKER_URL",), every_s=8.0,
    ),
)  # fmt: skip

BROKERS = ("redis", "rabbitmq")


def names_for(broker: str) -> list[str]:
    """Return the faults that a broker can have."""
    return [name for name in FAULTS if broker != "redis" or name not in ONLY_RABBIT]


FAULTS = {fault.name: fault for fault in _FAULTS}
