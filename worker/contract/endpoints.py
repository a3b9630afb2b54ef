"""Registered receivers: endpoints that are told of every event that they want, each with a secret.

Objects are shaped as OpenAI's `client.webhooks` reads them, with what it does not know beside.
"""

import secrets
from collections.abc import Sequence
from typing import Any, NoReturn

from worker.contract import callbacks, keys
from worker.contract.callbacks import ENDPOINT_PREFIX, SECRET_PREFIX
from worker.contract.door import RedisDoor
from worker.contract.errors import WebhookConflict, WebhookNotFound

MAX_ENDPOINTS = 100  # each is looked at in every transition
_HINT_CHARS = 4

Record = dict[str, str]


class Endpoints:
    """Registers receivers and keeps their secrets. Raises StoreUnavailable throughout."""

    def __init__(self, door: RedisDoor) -> None:
        self._door = door
        self._default: str | None = None

    async def add(self, url: str, name: str, types: Sequence[str]) -> dict[str, Any]:
        """Register a receiver; the answer alone has its `signing_secret`.

        `url` is checked already; `types` empty: how jobs, responses and batches end. Raises
        WebhookConflict where there are MAX_ENDPOINTS.
        """
        endpoint_id, secret = f"{ENDPOINT_PREFIX}{secrets.token_hex(12)}", callbacks.new_secret()
        given = ("url", url, "name", name, "secret", secret)
        wanted = callbacks.filter_of(types)
        if not await self._door.call("endpoint_add", endpoint_id, MAX_ENDPOINTS, wanted, *given):
            raise WebhookConflict(f"there are {MAX_ENDPOINTS} endpoints already; delete one first")
        return await self.get(endpoint_id) | {"signing_secret": secret}

    async def get(self, endpoint_id: str) -> dict[str, Any]:
        """Return an endpoint, without its secret. Raises WebhookNotFound."""
        return _view(endpoint_id, await self._record(endpoint_id))

    async def list(self, after: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """Return endpoints, newest first, and whether there are more.

        `after` is the id of the page's last one before; raises WebhookNotFound for a wrong one.
        """
        index, start = self._door.key("endpoints"), 0
        if after is not None:
            rank = await self._door.command("ZREVRANK", index, after)
            start = _missing(after) if rank is None else rank + 1
        ids = await self._door.command("ZREVRANGE", index, start, start + limit)
        async with self._door.redis.pipeline(transaction=False) as pipe:
            for endpoint_id in ids[:limit]:
                pipe.hgetall(self._door.key("endpoint", endpoint_id))
            records = await self._door.guard(pipe.execute()) if ids else []
        found = [_view(*pair) for pair in zip(ids, records, strict=False) if pair[1]]
        return found, len(ids) > limit

    async def change(
        self, endpoint_id: str, *, url: str | None, name: str | None, types: Sequence[str] | None
    ) -> dict[str, Any]:
        """Change what is given. Raises WebhookNotFound."""
        given = {"url": url, "name": name}
        flat = [part for pair in given.items() if pair[1] is not None for part in pair]
        wanted = "" if types is None else callbacks.filter_of(types)
        return await self._done("endpoint_change", endpoint_id, wanted, *flat)

    async def rotate(self, endpoint_id: str, *, overlap: bool) -> dict[str, Any]:
        """Make a new secret and return the endpoint with it. Raises WebhookNotFound.

        `overlap`: the old one goes on signing for a day, beside the new one.
        """
        secret = callbacks.new_secret()
        overlap_ms = keys.HOOK_OVERLAP_MS if overlap else 0
        made = await self._done("endpoint_rotate", endpoint_id, secret, overlap_ms)
        return made | {"signing_secret": secret}

    async def enable(self, endpoint_id: str) -> dict[str, Any]:
        """Tell a disabled endpoint again, first of all what it missed. Raises WebhookNotFound."""
        return await self._done("endpoint_enable", endpoint_id)

    async def delete(self, endpoint_id: str) -> None:
        """Forget an endpoint and what it is owed. Raises WebhookNotFound."""
        if not await self._door.call("endpoint_delete", endpoint_id):
            _missing(endpoint_id)

    async def default_secrets(self) -> tuple[str, ...]:
        """Return what signs single jobs' callbacks: as configured, else one made at first use."""
        if configured := self._door.settings.webhook_secrets:
            return configured
        if self._default is None:  # once made it stays
            key = self._door.key("hook_secret")
            await self._door.command("SET", key, callbacks.new_secret(), "NX")
            self._default = str(await self._door.command("GET", key))
        return (self._default,)

    async def _done(self, script: str, endpoint_id: str, *args: Any) -> dict[str, Any]:
        if not await self._door.call(script, endpoint_id, *args):
            _missing(endpoint_id)
        return await self.get(endpoint_id)

    async def _record(self, endpoint_id: str) -> Record:
        record: Record = await self._door.command(
            "HGETALL", self._door.key("endpoint", endpoint_id)
        )
        return record or _missing(endpoint_id)


def _view(endpoint_id: str, record: Record) -> dict[str, Any]:
    return {
        "id": endpoint_id,
        "object": "webhook_endpoint",
        "name": record["name"],
        "url": record["url"],
        "event_types": record["filter"].split(),
        "created_at": int(record["created_at"]) // 1000,
        "updated_at": int(record["updated_at"]) // 1000,
        "signing_secret_hint": f"{SECRET_PREFIX}…{record['secret'][-_HINT_CHARS:]}",
        "status": "disabled" if "disabled" in record else "enabled",
        "disabled_reason": record.get("disabled"),
        "failing_since": _seconds(record, "failing_since"),
        "delivered_at": _seconds(record, "delivered_at"),
    }


def _seconds(record: Record, name: str) -> float | None:
    return int(record[name]) / 1000 if name in record else None


def _missing(endpoint_id: str) -> NoReturn:
    raise WebhookNotFound(f"there is no webhook endpoint {endpoint_id}")
