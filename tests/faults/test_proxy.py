"""That a proxied server fails as it is told to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.faults.proxy import HOST, Fate, Proxy


@asynccontextmanager
async def echoing(fates: Sequence[Fate]) -> AsyncIterator[tuple[Proxy, int, list[bytes]]]:
    """Yield a proxy before a server that answers what it hears, its port, and what it heard."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while call := await reader.read(100):
            heard.append(call)
            writer.write(call)
        writer.close()

    to_come = iter(fates)
    server = await asyncio.start_server(answer, HOST, 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], lambda: next(to_come), refusal=b"no")
    async with server:
        yield proxy, await proxy.start(), heard
        await proxy.stop()


async def ask(port: int, *calls: bytes) -> bytes:
    """Send calls one after the other; return the last answer, b'' for none."""
    reader, writer = await asyncio.open_connection(HOST, port)
    said = b""
    async with asyncio.timeout(5):
        for call in calls:
            writer.write(call)
            try:
                said = await reader.read(100)
            except ConnectionError:
                said = b""
    writer.close()
    return said


async def test_calls_pass():
    async with echoing([Fate.PASS, Fate.PASS]) as (proxy, port, heard):
        said = await ask(port, b"one", b"two")

        assert (said, heard, proxy.failed_calls) == (b"two", [b"one", b"two"], 0)


async def test_a_cut_call_is_not_executed():
    async with echoing([Fate.PASS, Fate.CUT]) as (proxy, port, heard):
        said = await ask(port, b"one", b"two")

        assert (said, heard, proxy.failed_calls) == (b"", [b"one"], 1)


async def test_a_lost_answer_is_that_of_an_executed_call():
    async with echoing([Fate.PASS, Fate.LOSE]) as (proxy, port, heard):
        said = await ask(port, b"one", b"two")

        assert (said, heard, proxy.failed_calls) == (b"", [b"one", b"two"], 1)


async def test_a_refused_call_is_answered_by_the_proxy():
    async with echoing([Fate.REFUSE]) as (_, port, heard):
        said = await ask(port, b"one")

        assert (said, heard) == (b"no", [])


@pytest.mark.parametrize("is_closed", [True, False])
async def test_an_outage_lets_nobody_in(is_closed: bool):
    async with echoing([Fate.PASS]) as (proxy, port, heard):
        proxy.is_closed = is_closed

        said = await ask(port, b"one")

        assert (said == b"", heard == []) == (is_closed, is_closed)
