"""A response of server-sent events: frames as they come, and a comment in every long silence."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

PING_S = 10.0
"""Every proxy in the field keeps an idle stream open for at least 15 s."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_PING = b": ping\n\n"


class EventStream(StreamingResponse):
    """Sends frames until there are no more or the client has hung up; then runs `background`.

    Starlette's own response knows no silence, and a task per frame to add it costs more than all
    else that is done for one. Here one task per stream listens for the client and says something
    where nothing was said for `ping_s`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        headers: Mapping[str, str] | None = None,
        *,
        background: BackgroundTask | None = None,
        ping_s: float = PING_S,
    ) -> None:
        super().__init__(frames, headers=_HEADERS | dict(headers or {}), background=background)
        self._frames = frames
        self._ping_s = ping_s
        self._told_at = 0.0  # by the loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Serve one request."""
        is_whole = False
        # Frames end with their follower now, not when the garbage is collected.
        async with aclosing(self._frames):
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            with suppress(_HungUp):
                await self._tell(receive, send)
                is_whole = True
        if is_whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        if self.background is not None:
            await self.background()

    async def _tell(self, receive: Receive, send: Send) -> None:
        """Send all frames. Raises _HungUp."""
        try:
            async with asyncio.timeout(None) as line:  # ended by hand
                self._told_at = asyncio.get_running_loop().time()
                listening = asyncio.create_task(self._listen(receive, send, line))
                try:
                    async for frame in self._frames:
                        await self._say(frame, send)
                finally:
                    listening.cancel()
                    await asyncio.wait({listening})
        except TimeoutError as error:
            if line.expired():
                raise _HungUp from error
            raise

    async def _listen(self, receive: Receive, send: Send, line: asyncio.Timeout) -> None:
        """Wait until the client hangs up, then cut the line; meanwhile keep it open."""
        while True:
            try:
                async with asyncio.timeout_at(self._told_at + self._ping_s):
                    message = await receive()
            except TimeoutError:
                if asyncio.get_running_loop().time() >= self._told_at + self._ping_s:
                    await self._say(_PING, send)
                continue
            if message["type"] == "http.disconnect":
                line.reschedule(0)
                return

    async def _say(self, frame: bytes, send: Send) -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": True})
        self._told_at = asyncio.get_running_loop().time()


class _HungUp(Exception):
    """The client is not there any more."""
