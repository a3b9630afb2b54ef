"""Following a job's events as they are written: one Redis subscription per process.

The script that stores an event also publishes it. A follower subscribes, reads the stored stream
from its cursor, then takes what is published, and fills any gap in the numbering by a range read:
publishing is only a hint, the stream is the truth. A thousand followers cost one connection.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.events import QUEUED_SEQ, TERMINAL_KINDS, Event, parse_message
from worker.contract.log import event as log_event

_log = logging.getLogger(__name__)
_BACKLOG = 256  # events a slow reader may lag behind before it reads the stream again
_RECONNECT_S = 0.5
_CONFIRM_S = 5.0
_RECHECK_S = 10.0  # a silent stream is read again: a lost publication delays, it never loses

_Hint = Event | None
"""What was published; None: read the stream."""


class _Mailbox:
    """What was published since its follower last looked. One follower takes, the reader puts."""

    def __init__(self) -> None:
        self._hints: list[_Hint] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, hint: _Hint) -> None:
        """Lay a hint down; of too many there remains that there were some."""
        if len(self._hints) >= _BACKLOG:
            self._hints, hint = [], None
        self._hints.append(hint)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[_Hint]:
        """Wait for hints and take all; silence is one after a while."""
        if not self._hints:
            # A bare timer: asyncio.timeout costs several times as much, and this is every event's.
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            silence = loop.call_later(_RECHECK_S, self.put, None)
            try:
                await self._waiter
            finally:
                silence.cancel()
        taken, self._hints = self._hints, []
        return taken


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
        async with contextlib.aclosing(self.follow_together(job_id, after)) as followed:
            async for events in followed:
                for event in events:
                    yield event

    async def follow_together(
        self, job_id: str, after: int = 0
    ) -> AsyncGenerator[Sequence[Event], None]:
        """Do the same, with all that is there at a time together: one or more events each."""
        seen = after
        async with self._mailbox(self._door.key("live", job_id)) as mailbox:
            events = await self._door.events(job_id, seen)
            if not events and await self._is_over(job_id, seen):
                return
            while True:
                if events:
                    yield events
                    seen = events[-1].seq
                    if events[-1].is_last:
                        return
                events = await self._fresh(job_id, await mailbox.take(), seen)

    async def _is_over(self, job_id: str, seen: int) -> bool:
        """Tell whether a cursor stands at or behind the last event: there is nothing to come."""
        if seen <= QUEUED_SEQ:
            return False  # something ended it, and would have been found
        key = self._door.key("ev", job_id)
        newest = await self._door.command("XREVRANGE", key, "+", "-", "COUNT", 1)
        if not newest or newest[0][1]["k"] not in TERMINAL_KINDS:
            return False
        return int(newest[0][0].split("-")[0]) <= seen

    async def _fresh(self, job_id: str, hints: Sequence[_Hint], seen: int) -> list[Event]:
        """Return the events behind `seen` that these hints tell of, in order."""
        fresh: list[Event] = []
        for hint in hints:
            # Three cases: the next in order; a gap or no hint, so read the stream; an old one.
            if hint is not None and hint.seq == seen + 1:
                fresh.append(hint)
                seen = hint.seq
            elif hint is None or hint.seq > seen:
                stored = await self._door.events(job_id, seen)
                fresh += stored
                seen = stored[-1].seq if stored else seen
        return fresh

    @contextlib.asynccontextmanager
    async def _mailbox(self, channel: str) -> AsyncIterator[_Mailbox]:
        mailbox = _Mailbox()
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
                await self._read_one()
            except Exception as error:  # noqa: BLE001 - see _reconnect
                log_event(_log, "live.reconnecting", level=logging.WARNING, reason=repr(error))
                await self._reconnect()

    async def _read_one(self) -> None:
        """Take one message off the line; those that came with it are read without waiting.

        Straight from the connection: `PubSub.get_message` sets a timer and a retry up for each.
        It keeps the books of what is subscribed, though, so it sees the confirmations.
        """
        line: Any = self._pubsub.connection  # redis-py leaves it untyped
        said = await line.read_response(
            timeout=math.inf, disconnect_on_error=False, push_request=True
        )
        kind, channel, data = said
        if kind == "message":
            self._hand_out(channel, parse_message(data))
            return
        await self._pubsub.handle_message(said)  # type: ignore[no-untyped-call]  # as above
        if kind == "subscribe":
            self._confirm(channel)

    async def _reconnect(self) -> None:
        """Subscribe anew to everything that is followed; each confirmation makes followers read.

        Whatever a line raises, the answer is another one: a connection that is closed under its
        user is a RuntimeError of uvloop's, or an AttributeError of redis-py's, as often as one of
        Redis, and a reader that ends leaves every follower of this process in the dark.
        """
        while True:
            try:
                async with self._changing:  # a wish in between would open a second line
                    await self._open_anew()
            except Exception:  # noqa: BLE001 - see above
                await asyncio.sleep(_RECONNECT_S)
            else:
                return

    async def _open_anew(self) -> None:
        await _close(self._pubsub)
        self._pubsub = self._door.subscription()
        await self._pubsub.connect()  # type: ignore[no-untyped-call]  # as above
        if self._mailboxes:
            await self._pubsub.subscribe(*self._mailboxes)

    def _confirm(self, channel: str) -> None:
        """Note that a subscription stands. After a reconnect it is a second one: read again."""
        confirmed = self._confirmed.get(channel)
        if confirmed is None:
            return
        if confirmed.is_set():
            self._hand_out(channel, None)
        confirmed.set()

    def _hand_out(self, channel: str, hint: _Hint) -> None:
        for mailbox in self._mailboxes.get(channel, ()):
            mailbox.put(hint)


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
            except (RedisError, OSError, RuntimeError):  # the last one is uvloop's
                await asyncio.sleep(_RECONNECT_S)
                await _close(self._pubsub)
                self._pubsub = self._door.subscription()

    async def close(self) -> None:
        """End the subscription."""
        await _close(self._pubsub)


async def _close(pubsub: PubSub) -> None:
    with contextlib.suppress(RedisError, OSError):
        await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
