"""`forebay webhooks` as a client of a running server. Answers go to standard output."""

import time
from collections.abc import Sequence
from typing import Any

from worker.client import ClientError, checked, connect, print_json, reporting
from worker.contract.callbacks import key_of
from worker.listen import serve

_ENDPOINTS = "/v1/webhook_endpoints"
_PREFIX = "we_"
_TEST_S = 30.0  # the server waits for 20


def add(url: str | None, receiver: str, name: str, events: Sequence[str]) -> int:
    """Register a receiver and print it with its secret."""
    body = {"url": receiver, "name": name, "event_types": list(events)}
    return _print_answer(url, "POST", _ENDPOINTS, body)


def list_endpoints(url: str | None) -> int:
    """Print all receivers as a table."""
    with reporting(), connect(url) as client:
        rows = [("id", "status", "name", "url")]
        after: dict[str, str] = {}
        has_more = True
        while has_more:
            page = checked(client.get(_ENDPOINTS, params=after | {"limit": 100}))
            rows += [(one["id"], one["status"], one["name"], one["url"]) for one in page["data"]]
            after, has_more = {"after": page["last_id"]}, page["has_more"]
        return _print_columns(rows)
    return 1


def remove(url: str | None, endpoint_id: str) -> int:
    """Forget a receiver."""
    return _print_answer(url, "DELETE", f"{_ENDPOINTS}/{endpoint_id}")


def rotate(url: str | None, endpoint_id: str, *, overlap: bool) -> int:
    """Print a receiver with its new secret."""
    body = {"keep_old_secret_active_for_24_hours": overlap}
    return _print_answer(url, "POST", f"{_ENDPOINTS}/{endpoint_id}/rotate_secret", body)


def enable(url: str | None, endpoint_id: str) -> int:
    """Enable a receiver and print it."""
    return _print_answer(url, "POST", f"{_ENDPOINTS}/{endpoint_id}/enable")


def deliveries(url: str | None, of: str, limit: int) -> int:
    """Print the deliveries of a job or a receiver as a table."""
    is_endpoint = of.startswith(_PREFIX)
    path = f"{_ENDPOINTS}/{of}/deliveries" if is_endpoint else f"/v1/jobs/{of}/webhooks"
    with reporting(), connect(url) as client:
        found = checked(client.get(path, params={"limit": limit}))["data"]
        rows = [("id", "status", "type", "object", "tries", "last", "next"), *map(_row, found)]
        return _print_columns(rows)
    return 1


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    tries, due = one["attempts"], one["next_attempt_at"]
    last = str(tries[-1]["status_code"] or tries[-1]["answer"]) if tries else ""
    following = time.strftime("%m-%d %H:%M:%S", time.localtime(due)) if due else ""
    return (
        one["id"], one["status"], one["event_type"], one["object_id"], str(len(tries)), last,
        following,
    )  # fmt: skip


def redeliver(url: str | None, event_id: str) -> int:
    """Ask for an event to be delivered again and print it."""
    return _print_answer(url, "POST", f"/v1/webhook_deliveries/{event_id}/redeliver")


def test(url: str | None, receiver: str, event_type: str) -> int:
    """Send a sample and print what became of it; 0 if it was taken."""
    body = {"event_type": event_type}
    if receiver.startswith(_PREFIX):
        path = f"{_ENDPOINTS}/{receiver}/test"
    else:
        path, body = "/v1/webhook_tests", body | {"url": receiver}
    with reporting(), connect(url) as client:
        made = checked(client.post(path, json=body, timeout=_TEST_S))
        print_json(made)
        return 0 if made["success"] else 1
    return 1


def secret(url: str | None) -> int:
    """Print the secret that signs the callbacks of single jobs."""
    with reporting():
        print(_secret(url))  # noqa: T201 - what was asked for
        return 0
    return 1


def listen(url: str | None, host: str, port: int, signing: str | None) -> int:
    """Receive, verify and print callbacks until Ctrl-C; asks the server for its secret."""
    with reporting():
        signing = signing or _secret(url)
        try:
            key_of(signing)
        except ValueError as error:
            raise ClientError(f"--secret: {error}") from error
        try:
            serve(host, port, signing)
        except OSError as error:
            raise ClientError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
            ) from error
        return 0
    return 1


def _secret(url: str | None) -> str:
    with connect(url) as client:
        return str(checked(client.get("/v1/webhooks/default/secret"))["key"])


def _print_answer(
    url: str | None, method: str, path: str, body: dict[str, Any] | None = None
) -> int:
    with reporting(), connect(url) as client:
        return print_json(checked(client.request(method, path, json=body)))
    return 1


def _print_columns(rows: Sequence[tuple[str, ...]]) -> int:
    """Print rows under each other. Ids are to be copied: nothing is cut, whatever the width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())  # noqa: T201 - what was asked for
    return 0
