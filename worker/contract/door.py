"""The one connection to Redis that every store of a process shares."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import redis.asyncio as aioredis
from redis.asyncio.client import PubSub
from redis.connection import HiredisRespSerializer
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.contract import batch_scripts, debt_scripts, keys, record, scripts
from worker.contract.errors import JobGone, JobNotFound, StoreUnavailable
from worker.contract.events import Event
from worker.contract.lua import link
from worker.contract.settings import Settings, without_password

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once
_CLOSED = "the handler is closed"  # uvloop's RuntimeError where asyncio has a ConnectionError
_ANSWER_S = 5.0  # Redis answers within milliseconds: who is silent for so long is not there
_CONNECTION_S = 10.0  # to get one of the connections: 500 submissions at once wait for 4 s

_CONSTANTS = {
    "GRACE": keys.OUTBOX_GRACE_MS,
    "RETICKET": keys.RETICKET_MS,
    "BUCKETS_MS": ",".join(map(str, keys.BUCKETS_MS)),
    "PACE_MS": keys.PACE_MS,
    "BACKSTOP": keys.BACKSTOP_MS,
    "MAX_ATTEMPTS": keys.MAX_ATTEMPTS,
    "NEAR_S": keys.NEAR_S,
    "DIRECT_SHARE": keys.DIRECT_SHARE,
    "DIRECT_WAIT": keys.DIRECT_WAIT_MS,
    "DIRECT_S": keys.DIRECT_S,
    "HOOK_WATCH_MS": keys.HOOK_WATCH_MS,
    "HOOK_MAX_AGE_MS": keys.HOOK_MAX_AGE_MS,
    "HOOK_DISABLE_MS": keys.HOOK_DISABLE_MS,
    "HOOK_PAUSE_MS": keys.HOOK_PAUSE_MS,
    "HOOK_LIST_S": keys.HOOK_LIST_S,
    "VIEW_LONG_FIELDS": ",".join(f"'{name}'" for name in record.VIEW_LONG_FIELDS),
}


_packer = HiredisRespSerializer()


class _Connection(aioredis.Connection):
    """Packs commands in C, as redis-py's blocking connections do: a quarter of the time."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return a command as it goes over the wire."""
        packed: list[bytes] = _packer.pack(*args)
        return packed


class _Script:
    """A Lua script, called by its digest and loaded when the server does not know it.

    It answers with a list: the lanes that it woke, then what its body returned, if anything.
    """

    def __init__(self, body: str) -> None:
        main = (
            f"local function main()\n{body}\nend\nlocal answer = main()\nreturn {{WOKEN, answer}}"
        )
        self.text = link(scripts.PRELUDE, main)
        for name, value in _CONSTANTS.items():
            self.text = self.text.replace(name, str(value))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_SCRIPTS = {
    name.lower(): _Script(body)
    for name, body in (vars(scripts) | vars(batch_scripts) | vars(debt_scripts)).items()
    if name.isupper() and name not in {"PRELUDE", "OWE"} and name[0] != "_"
}


class RedisDoor:
    """A bounded pool of connections to one Redis, its scripts, and the names of its keys.

    Every call raises StoreUnavailable when Redis does not answer within seconds. Once one call has
    waited in vain, one at a time goes on asking and the others fail at once, until it answers:
    callers are told soon, and do not queue for the connections.

    `on_owed` is told the lanes in which a transition of this process left something to deliver:
    whoever can sends a ticket there. Nobody listening costs the second until the next sweep.
    """

    def __init__(self, settings: Settings, *, max_connections: int = 32) -> None:
        self.settings = settings
        self.on_owed: Callable[[Sequence[str]], None] | None = None
        self._where = without_password(settings.redis_url)
        pool = aioredis.ConnectionPool.from_url(
            settings.redis_url,
            connection_class=_Connection,  # of `rediss:` and `unix:` redis-py takes its own
            max_connections=max_connections,
            decode_responses=True,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=3,
            health_check_interval=15,
        )
        # Who waits for a connection is ours to refuse. redis-py's own pool that has callers wait
        # would cost each of them as much time as a third of a call.
        self._room = asyncio.Semaphore(max_connections)
        self._is_silent = self._is_probed = False
        self.redis = aioredis.Redis.from_pool(pool)  # which then closes the pool with it
        # A subscription is read by one task while others write to it: a health check, which
        # reads its answer, must not come between. Keepalive finds a dead line instead.
        self._subscriber = aioredis.Redis.from_url(
            settings.redis_url,
            decode_responses=True,
            socket_connect_timeout=3,
            socket_keepalive=True,
            health_check_interval=0,
        )

    @property
    def lease_ms(self) -> int:
        """How long a hold lasts without renewal."""
        return int(self.settings.lease_s * 1000)

    def key(self, kind: str, name: str = "") -> str:
        """Return a key of `keys`."""
        prefix = self.settings.key_prefix
        return f"{prefix}{kind}:{name}" if name else f"{prefix}{kind}"

    async def call(self, name: str, *args: Any, insist: bool = False) -> Any:
        """Run a script of `scripts` by its name in lower case; see `guard` for `insist`."""
        script, prefix = _SCRIPTS[name], self.settings.key_prefix
        try:
            asked = self.redis.evalsha(script.sha, 0, prefix, *args)
            woken, *answer = await self.guard(asked, insist=insist)
        except NoScriptError:
            asked = self.redis.eval(script.text, 0, prefix, *args)
            woken, *answer = await self.guard(asked, insist=insist)
        if woken and self.on_owed is not None:
            self.on_owed(woken)
        return answer[0] if answer else None

    async def call_each(self, name: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Run a script that writes nothing for each of these, in one round trip; see `call`.

        Others come in between: each answer is of one moment, all together are not.
        """
        try:
            return await self._call_each(_SCRIPTS[name], arguments)
        except NoScriptError:
            await self.guard(self.redis.script_load(_SCRIPTS[name].text))
            return await self._call_each(_SCRIPTS[name], arguments)

    async def _call_each(self, script: _Script, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        async with self.redis.pipeline(transaction=False) as pipe:
            for args in arguments:
                pipe.evalsha(script.sha, 0, self.settings.key_prefix, *args)
            answers = await self.guard(pipe.execute()) if arguments else []
        return [answer[0] if answer else None for _, *answer in answers]

    async def command(self, *args: Any) -> Any:
        """Run one Redis command."""
        return await self.guard(self.redis.execute_command(*args))  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    async def guard(self, pending: Any, *, insist: bool = False) -> Any:
        """Await something of the client; translate its failures.

        `insist`: ask also while Redis is silent and somebody else is asking already.
        """
        try:
            await self._enter(insist=insist)
        except BaseException:
            pending.close()  # a coroutine that was never begun
            raise
        try:
            return await self._translated(pending)
        finally:
            self._room.release()

    async def _enter(self, *, insist: bool) -> None:
        """Wait for a connection, unless Redis is silent or falls silent meanwhile."""
        was_silent = self._is_silent
        if was_silent and self._is_probed and not insist:
            raise self._silence()
        if self._room.locked():
            await self._queue_for_room()
        else:
            await self._room.acquire()  # at once: no timer is worth it
        # Who has waited already does not wait for a trial as well: the next caller makes it.
        if self._is_silent and (self._is_probed or not was_silent) and not insist:
            self._room.release()
            raise self._silence()

    async def _queue_for_room(self) -> None:
        try:
            async with asyncio.timeout(_CONNECTION_S):
                await self._room.acquire()
        except TimeoutError as error:
            msg = f"all connections to Redis at {self._where} are busy"
            raise StoreUnavailable(msg, was_asked=False) from error

    def _no_answer(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"Redis at {self._where} does not answer: {type(error).__name__}")

    def _silence(self) -> StoreUnavailable:
        return StoreUnavailable(f"Redis at {self._where} has stopped answering", was_asked=False)

    async def _translated(self, pending: Any) -> Any:
        """Await it, with Redis' failures as ours."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            return await self._ask(pending)
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise self._no_answer(error) from error
        except RuntimeError as error:
            if _CLOSED not in str(error):
                raise
            raise self._no_answer(error) from error
        finally:
            # redis-py sends under wait_for, which before Python 3.12 swallows a cancellation that
            # comes as it ends, with an answer or an error (to load a script begins with one):
            # deadlines and cancelled jobs would go on for ever.
            if task and task.cancelling() > cancels:
                raise asyncio.CancelledError

    async def _ask(self, pending: Any) -> Any:
        """Await it, and note whether anything at all came back."""
        is_probe = self._is_silent and not self._is_probed
        self._is_probed = self._is_probed or is_probe
        try:
            answer = await pending
            self._is_silent = False
        except RedisTimeoutError:
            self._is_silent = True
            raise
        except ResponseError:  # an answer as well
            self._is_silent = False
            raise
        finally:
            if is_probe:
                self._is_probed = False
        return answer

    async def events(self, job_id: str, after: int = 0) -> list[Event]:
        """Return the stored events with a number greater than `after`, in order."""
        entries = await self.command("XRANGE", self.key("ev", job_id), f"({after}-0", "+")
        return [
            Event(int(entry_id.split("-")[0]), fields["k"], fields["d"])
            for entry_id, fields in entries
        ]

    async def missing(self, job_id: str) -> NoReturn:
        """Say why there is no record: JobGone after its retention, else JobNotFound."""
        if await self.command("EXISTS", self.key("gone", job_id)):
            raise JobGone(f"job {job_id} existed; its retention is over or it was deleted")
        raise JobNotFound(f"there is no job {job_id}")

    async def ping(self) -> None:
        """Raise StoreUnavailable unless Redis answers and takes writes."""
        await self.command("SET", self.key("memo", "ping"), "1", "PX", 1000)

    def subscription(self) -> PubSub:
        """Return a new subscription, on a connection of its own."""
        return self._subscriber.pubsub()

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose()
        await self._subscriber.aclose()


def dump(value: Any) -> str:
    """Return compact JSON."""
    return _encode(value)
