"""Who lives and what is served, and the short notes and locks that processes share."""

import json
import platform
from dataclasses import dataclass, field
from typing import Any

from worker.contract import keys
from worker.contract.door import RedisDoor, dump

_FORGET_S = 3600  # an owner that has said nothing for so long is not looked up any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What is said of a worker process, by itself or, once it was given up, by its supervisor.

    `state` is loading, ready, draining or failed; `reason` says why it is not well, if it is not.
    `slots` and `in_flight` count jobs; `gpus` is its CUDA_VISIBLE_DEVICES; `started_at` is Unix
    time in seconds; `model` is the served name, None where it serves none.
    """

    owner: str
    role: str
    state: str
    reason: str
    gpus: str
    started_at: float
    model: str | None
    slots: int = 0
    in_flight: int = 0
    pid: int = 0
    host: str = field(default_factory=platform.node)


class Registry:
    """Heartbeats of worker processes and the cards of their models."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door

    async def announce(self, owner: str, info: dict[str, Any], card: dict[str, Any] | None) -> None:
        """Say that a process lives, and which model it serves where it does."""
        # Redis' own time: a host whose clock is ahead would otherwise strike all others off.
        now_s, _ = await self._door.command("TIME")
        async with self._door.redis.pipeline(transaction=False) as pipe:
            pipe.set(self._door.key("worker", owner), dump(info), ex=keys.HEARTBEAT_S)
            pipe.zadd(self._door.key("workers"), {owner: now_s})
            pipe.zremrangebyscore(self._door.key("workers"), "-inf", now_s - _FORGET_S)
            if card is not None:
                pipe.hset(self._door.key("models"), card["model"], dump(card))
                pipe.hsetnx(self._door.key("models_at"), card["model"], now_s)
            await self._door.guard(pipe.execute())

    async def sign_off(self, owner: str) -> None:
        """Say that a process ends in good order."""
        await self._door.command("ZREM", self._door.key("workers"), owner)
        await self._door.command("DEL", self._door.key("worker", owner))

    async def workers(self) -> list[dict[str, Any]]:
        """Return what every living process last said of itself."""
        owners = await self._door.command("ZRANGE", self._door.key("workers"), 0, -1)
        if not owners:
            return []
        said = await self._door.command(
            "MGET", *(self._door.key("worker", owner) for owner in owners)
        )
        return [json.loads(text) for text in said if text]

    async def models(self) -> dict[str, dict[str, Any]]:
        """Return the card of every model that a worker has ever announced, by served name.

        Each with `created`, the second in which that happened first.
        """
        async with self._door.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._door.key("models"))
            pipe.hgetall(self._door.key("models_at"))
            cards, moments = await self._door.guard(pipe.execute())
        return {
            name: json.loads(card) | {"created": int(moments.get(name, 0))}
            for name, card in cards.items()
        }

    async def depths(self) -> dict[str, int]:
        """Return how many jobs wait in each queue."""
        queues = sorted(await self._door.command("SMEMBERS", self._door.key("queues")))
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zcard(self._door.key("queued", queue))
            return dict(zip(queues, await self._door.guard(pipe.execute()), strict=True))


class Notes:
    """Short texts and named locks with a life, shared by all processes."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door

    async def get(self, key: str) -> str | None:
        """Return what was put, None once its time is over."""
        value: str | None = await self._door.command("GET", self._door.key("memo", key))
        return value

    async def put(self, key: str, value: str, ttl_s: float) -> None:
        """Keep a text for a while."""
        ttl_ms = int(ttl_s * 1000)
        await self._door.command("SET", self._door.key("memo", key), value, "PX", ttl_ms)

    async def acquire(self, key: str, token: str, ttl_s: float) -> bool:
        """Take a lock, or keep the one that this token has; False where somebody else has it."""
        return bool(await self._door.call("lock", key, token, int(ttl_s * 1000)))

    async def renew(self, key: str, token: str, ttl_s: float) -> bool:
        """Hold a lock for another `ttl_s` from now; False where it is no longer ours."""
        return bool(await self._door.call("relock", key, token, int(ttl_s * 1000)))

    async def release(self, key: str, token: str) -> None:
        """Give a lock back; nothing happens where it is no longer ours."""
        await self._door.call("unlock", key, token)
