"""The children of one machine: the order of their start, what is waited for, how they stop."""

import asyncio
import http.client
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from worker import embedded
from worker.children import Command
from worker.contract.settings import Settings
from worker.datadir import DataDir, DataDirError
from worker.keeper import GaveUpError, Keeper
from worker.server import STOP_S as SERVER_STOP_S
from worker.server import EmbeddedError, Server, wait_ready

STOP_S = 20.0  # for a child that has no running jobs
POLL_S = 0.1
PROBE_S = 5.0
TROUBLES_S = 5.0  # between two looks at the workers once all is ready

Tell = Callable[[str], None]
"""Takes a line: what is being waited for, or what went wrong."""


class UpError(Exception):
    """It cannot start or go on; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """A child besides the servers: how long it may take to stop, and whether jobs need it.

    `serves`: it answers callers, and so is told first when all stops.
    """

    command: Command
    stop_s: float = STOP_S
    is_needed: bool = True
    serves: bool = False


Parts = Callable[[Mapping[str, str]], tuple[Part, ...]]
"""Returns the parts in the order of their start, for the environment that names the servers."""


class Machine:
    """Servers and parts. `live` it, cancel that, then `stop` it."""

    def __init__(self, data: DataDir, settings: Settings, parts: Parts, tell: Tell) -> None:
        self._data = data
        self._settings = settings
        self._make_parts = parts
        self._tell = tell
        self._is_stopping = False
        self._is_hurried = False
        self._servers: list[tuple[Server, Keeper]] = []
        self._parts: dict[str, tuple[Part, Keeper]] = {}

    async def live(self, environ: Mapping[str, str], url: str, ready: Tell) -> None:
        """Start all, call `ready` with the API's URL once it is, go on until cancelled.

        Raises:
            UpError: something cannot be started, or is broken for good.
        """
        try:
            async with asyncio.TaskGroup() as watchers:
                found = await self._start_servers(watchers)
                self._start_parts({**environ, **found}, watchers)
                await self._until_ready(url)
                ready(url)
                await self._tell_troubles(url)  # until a watcher raises or we are cancelled
        except* (UpError, EmbeddedError, DataDirError, OSError) as group:
            failed = group.exceptions[0]
        raise UpError(str(failed)) from failed

    async def stop(self) -> None:
        """Stop all: the API takes no more, the chat workers drain, then the rest, Redis last."""
        self._is_stopping = True
        serving = [name for name, (part, _) in self._parts.items() if part.serves]
        api = asyncio.gather(*map(self._stop_part, serving))
        await asyncio.sleep(0)  # the API is told before the workers
        await self._stop_part("chat")
        for name in serving:
            self._parts[name][1].send(signal.SIGINT)  # readers of waiting jobs hold it open
        await api
        await asyncio.gather(*map(self._stop_part, self._parts))
        for server, keeper in reversed(self._servers):
            await keeper.stop(SERVER_STOP_S)
            server.clean()

    def hurry(self) -> None:
        """Ask again: running jobs are handed back instead of finished."""
        self._is_hurried = True
        for _part, keeper in self._parts.values():
            if keeper.is_stopping:
                keeper.send(signal.SIGINT)

    async def _start_servers(self, watchers: asyncio.TaskGroup) -> dict[str, str]:
        """Start the servers that are not given; return the settings by which they are found."""
        given = self._settings.model_fields_set
        found: dict[str, str] = {}
        if "redis_url" not in given:
            self._tell("starting Redis")
            found |= await self._start_server(embedded.redis_server(self._data), watchers)
        if "s3_endpoint_url" not in given:
            self._tell("starting the object store")
            found |= await self._start_server(embedded.s3_server(self._data), watchers)
        return found

    async def _start_server(self, server: Server, watchers: asyncio.TaskGroup) -> dict[str, str]:
        keeper = Keeper(partial(_same, server.command))
        self._servers.append((server, keeper))
        child = keeper.start()
        await asyncio.to_thread(wait_ready, server, child)
        watchers.create_task(self._watch(Part(server.command), keeper))
        return server.environ

    def _start_parts(self, environ: Mapping[str, str], watchers: asyncio.TaskGroup) -> None:
        for part in self._make_parts(environ):
            self._tell(f"starting {part.command.name}")
            keeper = Keeper(partial(_same, part.command), on_end=partial(self._ended, part.command))
            self._parts[part.command.name] = (part, keeper)
            keeper.start()
            watchers.create_task(self._watch(part, keeper))

    async def _ended(self, command: Command) -> None:
        if not self._is_stopping:
            self._tell(f"{command.name} ended unasked; see {command.log}")

    async def _watch(self, part: Part, keeper: Keeper) -> None:
        name = part.command.name
        try:
            await keeper.ended()
        except GaveUpError as error:
            line = f"{name} stopped: {str(error).removeprefix('error: ')} (see {part.command.log})"
            if part.is_needed:
                raise UpError(line) from error
            self._tell(f"error: {line}")

    async def _until_ready(self, url: str) -> None:
        waiting_for = ""
        while (says := await asyncio.to_thread(_readiness, url)) is not None:
            if says != waiting_for:
                waiting_for = says
                self._tell(f"waiting: {says}")
            await asyncio.sleep(POLL_S)

    async def _tell_troubles(self, url: str) -> None:
        """Tell, for as long as all lives, of each worker that is not well while others answer."""
        told: set[str] = set()
        while True:
            answer = await asyncio.to_thread(_ask_ready, url)
            if answer is not None:
                troubles = [_told(one) for one in answer.body.get("reasons", ())]
                for line in troubles:
                    if line not in told:
                        self._tell(f"error: {line}")
                told = set(troubles)
            await asyncio.sleep(TROUBLES_S)

    async def _stop_part(self, name: str) -> None:
        if name in self._parts:
            part, keeper = self._parts[name]
            stopping = asyncio.create_task(keeper.stop(part.stop_s))
            await asyncio.sleep(0)  # it has sent its SIGTERM
            if self._is_hurried:
                keeper.send(signal.SIGINT)  # another signal: two of a kind may arrive as one
            await stopping


def _same(command: Command) -> Command:
    return command


@dataclass(frozen=True, slots=True)
class _Answer:
    is_ready: bool
    body: dict[str, Any]


def _readiness(url: str) -> str | None:
    """Return None once the API says that it is ready, else what is missing."""
    answer = _ask_ready(url)
    if answer is None:
        return "the API does not answer yet"
    return None if answer.is_ready else str(answer.body.get("reason"))


def _ask_ready(url: str) -> _Answer | None:
    """Return what the API says of itself and the workers, None where it says nothing."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=PROBE_S)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        return _Answer(answer.status == http.client.OK, json.loads(answer.read()))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _told(trouble: dict[str, Any]) -> str:
    """Return a line such as `chat worker on GPU 1, failed: …`."""
    where = f" on GPU {trouble['gpus']}" if trouble.get("gpus") else ""
    return f"{trouble['role']} worker{where}, {trouble['state']}: {trouble['reason']}"
