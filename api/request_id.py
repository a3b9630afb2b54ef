"""An id on every answer: the caller's own where it is sane, else a fresh one."""

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_SANE = re.compile(rb"[\w.:/+=-]{1,128}")


class RequestId:
    """Puts `x-request-id` on every response, and the same id into the request's state."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _chosen(dict(scope["headers"]).get(HEADER, b""))
        scope.setdefault("state", {})["request_id"] = request_id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (HEADER, request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


def _chosen(given: bytes) -> bytes:
    return given if _SANE.fullmatch(given) else f"req_{secrets.token_hex(16)}".encode()
