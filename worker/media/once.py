"""Do a piece of work once, whoever asks: in this process and in all others that share the memo."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from worker.contract.errors import JobError, MediaError, MediaExpired, StoreUnavailable

LOCK_S = 10.0  # a holder that died is followed after so long
RENEW_S = LOCK_S / 4
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.5  # pauses between two looks of who waits for another process

T = TypeVar("T")
Locks = WeakValueDictionary[str, asyncio.Lock]
"""The locks of one process, by key; gone with the last who waits."""


class Memo(Protocol):
    """Short texts and locks with a life, shared by all processes. Raises StoreUnavailable."""

    async def get(self, key: str) -> str | None:
        """Return what was put, None once `ttl_s` is over."""
        ...

    async def put(self, key: str, value: str, ttl_s: float) -> None:
        """Keep a text for `ttl_s`."""
        ...

    async def acquire(self, key: str, token: str, ttl_s: float) -> bool:
        """Take a lock for `ttl_s`; return False where somebody holds it."""
        ...

    async def renew(self, key: str, token: str, ttl_s: float) -> bool:
        """Hold a lock for another `ttl_s` from now; return False where it is no longer ours."""
        ...

    async def release(self, key: str, token: str) -> None:
        """Give a lock back; nothing happens where it is no longer ours."""
        ...


class Once:
    """Single flight by key. Work must be idempotent: a lock may be lost, and then it is done twice.

    Permanent failures are remembered for a short while, so that those who waited do not each try
    the same broken file again.
    """

    def __init__(self, memo: Memo, locks: Locks) -> None:
        self._memo = memo
        self._locks = locks

    async def run(
        self,
        key: str,
        ready: Callable[[], Awaitable[T | None]],
        make: Callable[[], Awaitable[T]],
        *,
        patience_s: float,
        failure_ttl_s: float,
    ) -> T:
        """Return what `ready` finds, made by `make` if need be, by one caller at a time.

        Args:
            key: what the work is about, the same for all who want it.
            ready: looks for the result of an earlier or another caller; cheap, called repeatedly.
            make: does the work and leaves it where `ready` looks.
            patience_s: how long to wait for another process before doing the work regardless.
            failure_ttl_s: how long a MediaError of `make` is everybody's answer.

        Raises:
            JobError: whatever `ready` or `make` raise, or a remembered failure of `make`.
        """
        look = self._look(key, ready)
        found = await look()
        if found is not None:
            return found
        async with self._locks.setdefault(key, asyncio.Lock()):  # the cheap lock first
            return await self._across(key, look, make, patience_s, failure_ttl_s)

    def _look(
        self, key: str, ready: Callable[[], Awaitable[T | None]]
    ) -> Callable[[], Awaitable[T | None]]:
        async def look() -> T | None:
            found = await ready()
            if found is None:
                await self._raise_remembered(key)
            return found

        return look

    async def _across(
        self,
        key: str,
        look: Callable[[], Awaitable[T | None]],
        make: Callable[[], Awaitable[T]],
        patience_s: float,
        failure_ttl_s: float,
    ) -> T:
        async with self._turn(key, look, patience_s) as found:
            if found is not None:
                return found
            try:
                return await make()
            except MediaExpired:
                raise  # sending the bytes again heals it
            except MediaError as error:
                await self._remember(key, error, failure_ttl_s)
                raise

    @contextlib.asynccontextmanager
    async def _turn(
        self, key: str, look: Callable[[], Awaitable[T | None]], patience_s: float
    ) -> AsyncIterator[T | None]:
        """Wait until the work is done (yield it) or is ours to do (yield None under the lock)."""
        lock, token = f"lock:{key}", secrets.token_hex(8)
        impatient_at = time.monotonic() + patience_s
        pause_s = FIRST_LOOK_S
        while not await self._memo.acquire(lock, token, LOCK_S):
            if time.monotonic() > impatient_at:
                yield None
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_LOOK_S)
            found = await look()
            if found is not None:
                yield found
                return
        done = asyncio.Event()
        keeper = asyncio.create_task(self._keep(lock, token, done))
        try:
            yield await look()  # somebody may have finished between our look and the lock
        finally:
            done.set()
            await asyncio.shield(keeper)

    async def _keep(self, lock: str, token: str, done: asyncio.Event) -> None:
        """Hold the lock until the work is done, then give it back."""
        with contextlib.suppress(StoreUnavailable):  # at worst the work is done twice
            while not await _is_set(done, RENEW_S):
                await self._memo.renew(lock, token, LOCK_S)
            await self._memo.release(lock, token)

    async def _remember(self, key: str, error: MediaError, ttl_s: float) -> None:
        verdict = json.dumps([error.code, error.message])
        with contextlib.suppress(StoreUnavailable):
            await self._memo.put(f"failed:{key}", verdict, ttl_s)

    async def _raise_remembered(self, key: str) -> None:
        verdict = await self._memo.get(f"failed:{key}")
        if verdict is not None:
            code, message = json.loads(verdict)
            raise _error_of(code, message)


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False


def _error_of(code: str, message: str) -> JobError:
    kinds = {kind.code: kind for kind in MediaError.__subclasses__()}
    return kinds.get(code, MediaError)(message)
