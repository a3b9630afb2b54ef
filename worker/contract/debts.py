"""What receivers are owed: claim what is due, settle it, look at it. See `debt_scripts`.

Every method raises StoreUnavailable when Redis does not answer; each may be said again.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from worker.contract import callbacks, keys
from worker.contract.callbacks import ENDPOINT_PREFIX, EventType
from worker.contract.door import RedisDoor, dump
from worker.contract.errors import WebhookConflict, WebhookNotFound

_SWEEP_LANES = 1000
_FIELDS = (
    "type", "kind", "object_id", "at", "state", "tries", "lane", "receiver", "settled_at", "log",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Owed:
    """One event for one receiver, claimed: to be tried now.

    `attempt` counts all tries and is the fence; `step` counts those of the schedule, which starts
    anew by hand. `kind` is job, response, batch or test; `turn` the life of the object in which the
    transition was; `at_ms` its moment, ms since the epoch.
    """

    event_id: str
    attempt: int
    step: int
    type: EventType
    kind: str
    object_id: str
    turn: int
    at_ms: int
    url: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """What is due in a lane. `secrets` is empty where the installation's own sign."""

    events: tuple[Owed, ...]
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settled:
    """How a try ended.

    `result` is delivered, failed or gone (410: the receiver wants no more); `wait_s` passes until
    the next try, None for none; `status` is the answer's, None where there was none; `answer` the
    beginning of its body, or what went wrong; `took_s` the seconds that it took.
    """

    event: Owed
    result: str
    wait_s: float | None
    at_s: float
    took_s: float
    status: int | None
    answer: str

    def values(self) -> list[Any]:
        """Return its five values for the script."""
        line = {
            "at": round(self.at_s, 3),
            "status_code": self.status,
            "took_s": round(self.took_s, 3),
            "answer": self.answer[: callbacks.ANSWER_CHARS],
        }
        wait_ms = -1 if self.wait_s is None else int(self.wait_s * 1000)
        return [self.event.event_id, self.event.attempt, self.result, wait_ms, dump(line)]


@dataclass(frozen=True, slots=True)
class Disabled:
    """An endpoint that gets nothing any more, until somebody enables it."""

    endpoint_id: str
    url: str
    reason: str


class Debts:
    """Reads and settles debts. Safe for many tasks at once.

    `ahead_ms` is how far its clock is ahead of Redis's: 0 but in tests, where days must pass.
    """

    def __init__(self, door: RedisDoor) -> None:
        self._door = door
        self._log_s = door.settings.retention_s
        self.ahead_ms = 0

    async def claim(self, lane: str, limit: int) -> Claimed:
        """Take up to `limit` events that are due in a lane, those due first; each under a lease."""
        endpoint, *rows = await self._door.call(
            "hook_claim", lane, limit, keys.HOOK_LEASE_MS, self._log_s, self.ahead_ms
        )
        url, *signing = endpoint
        events = tuple(_owed(row, url) for row in rows)
        return Claimed(events, tuple(secret for secret in signing if secret))

    async def leave(self, lane: str) -> bool:
        """Stop looking after a lane; False where something is due there."""
        return bool(await self._door.call("hook_leave", lane, self.ahead_ms))

    async def settle(self, tried: Sequence[Settled]) -> list[Disabled]:
        """Write down how tries ended; return the endpoints that are disabled by that."""
        values = [value for one in tried for value in one.values()]
        rows = await self._door.call("hook_settle", self._log_s, self.ahead_ms, *values)
        return [Disabled(*row) for row in rows]

    async def sweep(self) -> list[tuple[str, float]]:
        """Give up what is too old; return lanes that nobody looks after, and s overdue."""
        rows = await self._door.call("hook_sweep", self._log_s, self.ahead_ms, _SWEEP_LANES)
        return [(lane, int(overdue_ms) / 1000) for lane, overdue_ms in rows]

    async def redeliver(self, event_id: str) -> dict[str, Any]:
        """Owe an event again, due now, under its id. Raises WebhookNotFound, WebhookConflict."""
        answer = str(await self._door.call("hook_again", event_id, self.ahead_ms))
        if answer == "missing":
            _missing(event_id)
        if answer != "ok":
            raise WebhookConflict(_why_not(answer))
        return await self.delivery(event_id)

    async def test(self, receiver: str, event_type: EventType) -> str:
        """Owe a sample to an endpoint (its id) or a URL; return the event's id.

        Raises WebhookNotFound, WebhookConflict.
        """
        is_endpoint = receiver.startswith(ENDPOINT_PREFIX)
        lane = receiver if is_endpoint else callbacks.lane_of(receiver)
        made = await self._door.call(
            "hook_test", receiver, lane, event_type, f"test_{secrets.token_hex(16)}"
        )
        if made == "deleted":
            raise WebhookNotFound(f"there is no webhook endpoint {receiver}")
        if made == "disabled":
            raise WebhookConflict(_why_not(made))
        return str(made)

    async def delivery(self, event_id: str) -> dict[str, Any]:
        """Return an event's state and the log of its tries. Raises WebhookNotFound."""
        found = await self._views([event_id])
        return found[0] if found else _missing(event_id)

    async def deliveries(self, of: str, limit: int) -> list[dict[str, Any]]:
        """Return the events of a job, a batch or an endpoint by its id, the youngest first."""
        ids = await self._door.command("LRANGE", self._door.key("hook_of", of), 0, limit - 1)
        return await self._views(ids)

    async def _views(self, event_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return what callers see of events; those that are forgotten are left out."""
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.hmget(self._door.key("hook", event_id), list(_FIELDS))
            rows = await self._door.guard(pipe.execute()) if event_ids else []
        records = {
            event_id: dict(zip(_FIELDS, row, strict=True))
            for event_id, row in zip(event_ids, rows, strict=True)
            if row[0] is not None
        }
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for event_id, record in records.items():
                pipe.zscore(self._door.key("hooks", record["lane"]), event_id)
            due = await self._door.guard(pipe.execute()) if records else []
        return [_view(*pair, at) for pair, at in zip(records.items(), due, strict=True)]


def _owed(row: Sequence[Any], endpoint_url: str | None) -> Owed:
    event_id, attempt, step, kind_of_event, kind, object_id, turn, at, receiver = row
    return Owed(
        event_id=event_id,
        attempt=attempt,
        step=step,
        type=EventType(kind_of_event),
        kind=kind,
        object_id=object_id,
        turn=int(turn),
        at_ms=int(at),
        url=endpoint_url or receiver,
    )


def _view(event_id: str, record: dict[str, Any], due_ms: float | None) -> dict[str, Any]:
    is_endpoint = record["lane"].startswith(ENDPOINT_PREFIX)
    lines = record["log"].split("\n") if record["log"] else []
    return {
        "id": event_id,
        "object": "webhook_delivery",
        "event_type": record["type"],
        "object_id": record["object_id"],
        "webhook_endpoint_id": record["receiver"] if is_endpoint else None,
        "url": None if is_endpoint else record["receiver"],
        "status": record["state"],
        "created_at": int(record["at"]) / 1000,
        "settled_at": int(record["settled_at"]) / 1000 if record["settled_at"] else None,
        "next_attempt_at": due_ms / 1000 if due_ms is not None else None,
        "attempts": [json.loads(line) for line in lines],
    }


def _missing(event_id: str) -> NoReturn:
    raise WebhookNotFound(f"there is no webhook delivery {event_id}, or it is forgotten")


def _why_not(answer: str) -> str:
    if answer == "disabled":
        return "the webhook endpoint is disabled: enable it first"
    return "the webhook endpoint was deleted"
