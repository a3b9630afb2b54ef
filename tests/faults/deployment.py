"""All processes of one small installation, each started by itself so that each can be struck.

What systemd or Kubernetes does in the field is done here: a part that ends is started again.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from tests.faults import family
from tests.support import rabbit as rabbits
from tests.support.processes import until_async
from worker import commands, embedded
from worker.children import Child, Command
from worker.contract.settings import Settings
from worker.datadir import DataDir, choose_port
from worker.server import wait_ready

START_S, STOP_S = 60.0, 20.0
RESTART_S = 0.5
CHAT = ("chat-1", "chat-2")
CLOCK = Path(__file__).with_name("clock")
WORKER, ENGINE = "worker.tasks", "worker.engine.host"
STORES = ("REDIS_URL", "CELERY_BROKER_URL", "S3_ENDPOINT_URL")


@dataclass(slots=True, eq=False)
class Part:
    """One supervised program. `pause_s` passes between its end and its next start."""

    command: Command
    pause_s: float = RESTART_S
    starts: int = 0
    _child: Child | None = None
    _keeping: asyncio.Task[None] | None = None

    def start(self) -> Child:
        """Start it, and again whenever it ends."""
        child = self._spawn()
        self._keeping = asyncio.create_task(self._keep())
        return child

    def pids(self, word: str = "") -> list[int]:
        """Return the ids of its processes whose command line holds a word."""
        alive = self._child is not None and self._child.is_alive
        return family.below(self._child.pid, word) if alive and self._child else []

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to its first process, for a role that is the supervisor or the API."""
        if self._child is not None:
            self._child.send(signum)

    async def stop(self) -> None:
        """End it for good."""
        if self._keeping is None or self._child is None:
            return
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        family.send(self.pids(), signal.SIGCONT)
        await asyncio.to_thread(self._child.stop, STOP_S)

    def _spawn(self) -> Child:
        self.starts += 1
        self._child = Child(self.command)
        return self._child

    async def _keep(self) -> None:
        while self._child is not None:
            await asyncio.shield(asyncio.wrap_future(self._child.ended))
            await asyncio.sleep(self.pause_s)
            self._spawn()


@dataclass(slots=True, eq=False)
class Deployment:
    """The parts by name: redis, s3, api, media, chat-1, chat-2, and broker where it is not Redis.

    `settings` reach Redis directly.
    """

    url: str
    parts: dict[str, Part]
    settings: Settings

    def set_clock(self, name: str, ahead_s: float) -> None:
        """Let a part have a wrong clock from its next start on."""
        part = self.parts[name]
        part.command = replace(part.command, environ=_clock(part.command.environ, ahead_s))


def _clock(environ: Mapping[str, str], ahead_s: float) -> dict[str, str]:
    path = environ["PYTHONPATH"].removeprefix(f"{CLOCK}:")
    ahead = {"PYTHONPATH": f"{CLOCK}:{path}", "CLOCK_AHEAD_S": str(ahead_s)}
    return {**environ, **(ahead if ahead_s else {"PYTHONPATH": path, "CLOCK_AHEAD_S": "0"})}


@dataclass(slots=True, eq=False)
class Stores:
    """The servers, and where they really are. `broker` is None where it is Redis."""

    redis: Part
    s3: Part
    environ: dict[str, str]
    broker: Part | None = None

    def parts(self) -> dict[str, Part]:
        """Return them by name."""
        found = {"redis": self.redis, "s3": self.s3}
        return found if self.broker is None else found | {"broker": self.broker}


@asynccontextmanager
async def stores(folder: Path, *, redis_pause_s: float) -> AsyncIterator[Stores]:
    """Run Redis, on an append-only file, and an S3 server until the block ends."""
    data = DataDir(folder)
    servers = [embedded.redis_server(data), embedded.s3_server(data)]
    redis, s3 = Part(servers[0].command, redis_pause_s), Part(servers[1].command)
    try:
        for part, server in zip((redis, s3), servers, strict=True):
            await asyncio.to_thread(wait_ready, server, part.start())
        yield Stores(redis, s3, servers[0].environ | servers[1].environ)
    finally:
        await asyncio.gather(s3.stop(), redis.stop())
        for server in servers:
            server.clean()


@asynccontextmanager
async def with_rabbit(folder: Path, servers: Stores) -> AsyncIterator[Stores]:
    """Run RabbitMQ beside them, as the broker, until the block ends."""
    (folder / "rabbit").mkdir()
    rabbit = rabbits.make(folder / "rabbit")
    mapper, broker = Part(rabbit.mapper), Part(rabbit.server)
    try:
        for part, port in ((mapper, rabbit.mapper_port), (broker, rabbit.port)):
            part.start()
            await until_async(lambda port=port: rabbits.answers(port), START_S)
        environ = servers.environ | {"CELERY_BROKER_URL": rabbit.url}
        yield replace(servers, environ=environ, broker=broker)
    finally:
        await broker.stop()
        await mapper.stop()


@asynccontextmanager
async def deployment(
    folder: Path, servers: Stores, through: Mapping[str, str], **settings: str
) -> AsyncIterator[Deployment]:
    """Run the API, a media worker and two chat workers; `through` are the doors that they use."""
    port = choose_port()
    ours = ("FOREBAY_", "CELERY_", "AWS_", *STORES)
    foreign = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ = commands.importable(
        foreign | {"FOREBAY_MODELS": "echo"} | settings | servers.environ | dict(through)
    )
    chat = ("worker", "chat", "--engine", "echo", "--model", "echo")
    made = {name: Part(_command(folder, name, environ, *chat)) for name in CHAT}
    made["media"] = Part(_command(folder, "media", environ, "worker", "media"))
    made["api"] = Part(_command(folder, "api", environ, "api", "--port", str(port)))
    direct = Settings(_env_file=None, **servers.environ)  # type: ignore[arg-type]  # aliases
    running = Deployment(f"http://127.0.0.1:{port}", made | servers.parts(), direct)
    try:
        for part in made.values():
            part.start()
        await until_ready(running.url)
        yield running
    finally:
        await asyncio.gather(*(part.stop() for part in made.values()))


def _command(folder: Path, name: str, environ: dict[str, str], *arguments: str) -> Command:
    log = folder / "logs" / f"{name}.log"
    return Command(name, commands.forebay(*arguments), environ, log=log, cwd=folder)


async def until_ready(url: str) -> None:
    """Return once a chat and a media worker are ready. Raises TimeoutError."""
    timeout = aiohttp.ClientTimeout(total=2)
    async with asyncio.timeout(START_S), aiohttp.ClientSession(url, timeout=timeout) as http:
        while not await _is_ready(http):  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(0.1)


async def _is_ready(http: aiohttp.ClientSession) -> bool:
    try:
        async with http.get("/health/ready") as said:
            chats = (await said.json())["workers"]["chat"] if said.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, KeyError):
        return False
    return bool(chats.get("ready", 0) == len(CHAT))
