"""The body of a callback: what happened, when, and the object as a poll shows it now.

Beside the specification's `type`, `timestamp` and `data` it has `id`, `object` and `created_at`, as
OpenAI's events have them. It is made anew for each try.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from worker.contract import view
from worker.contract.debts import Owed
from worker.contract.door import dump
from worker.contract.reader import JobReader


async def payloads(events: Sequence[Owed], reader: JobReader) -> list[bytes]:
    """Return the bodies of events, in order. Raises StoreUnavailable."""
    jobs = [event.object_id for event in events if event.kind in {"job", "response"}]
    found = await reader.many(list(dict.fromkeys(jobs)))
    return [_body(event, found.get(event.object_id)) for event in events]


def _body(event: Owed, found: tuple[view.Record, dict[str, Any]] | None) -> bytes:
    moment = datetime.fromtimestamp(event.at_ms / 1000, UTC)
    body = {
        "id": event.event_id,
        "object": "event",
        "type": event.type,
        "created_at": event.at_ms // 1000,
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": _data(event, found),
    }
    return dump(body).encode()


def _data(event: Owed, found: tuple[view.Record, dict[str, Any]] | None) -> dict[str, Any]:
    match event.kind:
        case "response":
            return {"id": f"resp_{event.object_id.removeprefix('job_')}"}
        case "job":
            return _job(event, found)
        case "test":
            return {"id": event.object_id, "test": True}
        case _:
            return {"id": event.object_id}


def _job(event: Owed, found: tuple[view.Record, dict[str, Any]] | None) -> dict[str, Any]:
    """Return the job, or of one that was erased or lives again what the event itself knows."""
    if found is not None and int(found[0].get("turn", 0)) == event.turn:
        return found[1]
    what = event.type.removeprefix("job.")
    status = "in_progress" if what == "started" else what
    return {
        "id": event.object_id,
        "object": "job",
        "status": status,
        "links": view.links(event.object_id),
    }
