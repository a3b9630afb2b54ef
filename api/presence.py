"""Whether the client of a call that waits is still there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")

CLIENT_GONE = 499
"""The status of an answer that nobody reads; nginx's number for it, for the log."""


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Return what the work gives; None, with the work cancelled, once the client has hung up."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # the body is read already; what comes is its empty end
