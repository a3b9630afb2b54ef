"""Following a job's events as they are written: one Redis subscription per process.

The script that stores an event also publishes it. A follower reads the stored stream from its
cursor, then takes what is published, and fills any gap in the numbering by a range read: publishing
is only a hint, the stream is the truth. A thousand followers cost one connection.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.events import TERMINAL_KINDS, Event, parse_message
from worker.contract.log import event as log_event

_log = logging.getLogger(__name__)
_BACKLOG = 256  # events a slow reader may lag behind before it reads the stream again
_RECONNECT_S = 0.5
_CONFIRM_S = 5.0
_RECHECK_S = 10.0  # a silent stream is read again: a lost publication delays, it never loses

_Mailbox = asyncio.Queue[Event | None]  # None: read the stream


class LiveEvents:
    """The process's subscription and the followers behind it. Start it on the process's loop."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door
        self._pubsub = door.subscription()
        self._mailboxes: dict[str, set[_Mailbox]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._changing = asyncio.Lock()  # subscriptions, one change after the other
        self._reader: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End the subscription; followers end with their tasks."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        await _close(self._pubsub)

    async def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """Yield every stored event numbered above `after`, in order, until the last one.

        Ends at once after a job's last event. Raises StoreUnavailable when Redis does not answer.
        """
        seen = after
        for event in await self._door.events(job_id, seen):
            yield event
            seen = event.seq
            if event.is_last:
                return
        if seen == after and await self._is_over(job_id, seen):
            return
        async with self._mailbox(self._door.key("live", job_id)) as mailbox:
            async for event in self._from(job_id, mailbox, seen):
                yield event
                if event.is_last:
                    return

    async def _is_over(self, job_id: str, seen: int) -> bool:
        """Tell whether a cursor stands at or behind the last event: there is nothing to come."""
        key = self._door.key("ev", job_id)
        newest = await self._door.command("XREVRANGE", key, "+", "-", "COUNT", 1)
        if not newest or newest[0][1]["k"] not in TERMINAL_KINDS:
            return False
        return int(newest[0][0].split("-")[0]) <= seen

    async def _from(self, job_id: str, mailbox: _Mailbox, seen: int) -> AsyncIterator[Event]:
        hint: Event | None = None
        while True:
            # Three cases: the next in order; a gap or no hint, so read the stream; an old one.
            if hint is not None and hint.seq == seen + 1:
                yield hint
                seen = hint.seq
            elif hint is None or hint.seq > seen:
                for event in await self._door.events(job_id, seen):
                    yield event
                    seen = event.seq
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets an event.
                async with asyncio.timeout(_RECHECK_S):
                    hint = await mailbox.get()
            except TimeoutError:
                hint = None

    @contextlib.asynccontextmanager
    async def _mailbox(self, channel: str) -> AsyncIterator[_Mailbox]:
        mailbox: _Mailbox = asyncio.Queue(_BACKLOG)
        self._mailboxes.setdefault(channel, set()).add(mailbox)
        try:
            await self._subscribe(channel)
            yield mailbox
        finally:
            self._mailboxes[channel].discard(mailbox)
            await asyncio.shield(self._leave(channel))

    async def _subscribe(self, channel: str) -> None:
        """Return once Redis has confirmed: what is published from then on arrives."""
        async with self._changing:
            if channel not in self._confirmed:
                self._confirmed[channel] = asyncio.Event()
                await self._door.guard(self._pubsub.subscribe(channel))
                if self._reader is None:
                    self._reader = asyncio.create_task(self._read())
        confirmed = self._confirmed[channel]
        try:
            async with asyncio.timeout(_CONFIRM_S):
                await confirmed.wait()
        except TimeoutError as error:
            raise StoreUnavailable("Redis does not confirm a subscription") from error

    async def _leave(self, channel: str) -> None:
        """Unsubscribe unless somebody follows again: in turn, or his wish would be overtaken."""
        async with self._changing:
            if self._mailboxes.get(channel):
                return
            self._mailboxes.pop(channel, None)
            self._confirmed.pop(channel, None)
            with contextlib.suppress(RedisError, OSError):
                await self._pubsub.unsubscribe(channel)

    async def _read(self) -> None:
        while True:
            try:
                message = await self._pubsub.get_message(timeout=30)
                if message is not None:
                    self._dispatch(message["type"], message["channel"], message["data"])
            except (RedisError, OSError) as error:
                log_event(_log, "live.reconnecting", level=logging.WARNING, reason=repr(error))
                await self._reconnect()

    async def _reconnect(self) -> None:
        """Subscribe anew to everything that is followed; each confirmation makes followers read."""
        while True:
            await _close(self._pubsub)
            self._pubsub = self._door.subscription()
            try:
                if self._mailboxes:
                    await self._pubsub.subscribe(*self._mailboxes)
            except (RedisError, OSError):
                await asyncio.sleep(_RECONNECT_S)
            else:
                return

    def _dispatch(self, kind: str, channel: str, data: str) -> None:
        """Hand a message to its followers. A confirmation may follow a reconnect: read again."""
        if kind == "subscribe" and channel in self._confirmed:
            self._confirmed[channel].set()
        event = parse_message(data) if kind == "message" else None
        for mailbox in self._mailboxes.get(channel, ()):
            if mailbox.full():
                _empty(mailbox)
                mailbox.put_nowait(None)
            mailbox.put_nowait(event)


def _empty(mailbox: _Mailbox) -> None:
    while not mailbox.empty():
        mailbox.get_nowait()


class Orders:
    """What callers want of this worker process: ids of jobs to drop, as they come."""

    def __init__(self, door: RedisDoor, owner: str) -> None:
        self._door = door
        self._pubsub = door.subscription()
        self._channel = door.key("ctl", owner)

    async def cancelled_ids(self) -> AsyncIterator[str]:
        """Yield job ids for ever. Lost ones are repeated by the lease renewal's answer."""
        while True:
            try:
                await self._pubsub.subscribe(self._channel)
                while True:
                    message = await self._pubsub.get_message(timeout=30)
                    if message is not None and message["type"] == "message":
                        yield message["data"]
            except (RedisError, OSError):
                await asyncio.sleep(_RECONNECT_S)
                await _close(self._pubsub)
                self._pubsub = self._door.subscription()

    async def close(self) -> None:
        """End the subscription."""
        await _close(self._pubsub)


async def _close(pubsub: PubSub) -> None:
    with contextlib.suppress(RedisError, OSError):
        await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
