"""A memo on a real Redis, as the media stage wants one."""

from redis.asyncio import Redis

IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
RENEW = IF_OURS.format("'pexpire', KEYS[1], ARGV[2]")
RELEASE = IF_OURS.format("'del', KEYS[1]")


class RedisMemo:
    """See worker.media.once.Memo."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def get(self, key: str) -> str | None:
        value = await self._redis.get(self._prefix + key)
        return value.decode() if value is not None else None

    async def put(self, key: str, value: str, ttl_s: float) -> None:
        await self._redis.set(self._prefix + key, value, px=int(ttl_s * 1000))

    async def keys(self) -> list[str]:
        """Return what is remembered or locked now."""
        return [key.decode() async for key in self._redis.scan_iter(f"{self._prefix}*")]

    async def acquire(self, key: str, token: str, ttl_s: float) -> bool:
        taken = await self._redis.set(self._prefix + key, token, nx=True, px=int(ttl_s * 1000))
        return bool(taken)

    async def renew(self, key: str, token: str, ttl_s: float) -> bool:
        name = self._prefix + key
        return bool(await self._redis.eval(RENEW, 1, name, token, int(ttl_s * 1000)))

    async def release(self, key: str, token: str) -> None:
        await self._redis.eval(RELEASE, 1, self._prefix + key, token)
