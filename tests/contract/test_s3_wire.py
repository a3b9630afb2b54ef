"""The quick way to small objects, against servers that answer well, oddly, or not at all."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from tests.support.tcp import listening
from worker.contract.s3_wire import Answer, NoAnswerError, TooLongError, Wires

REQUEST = (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",)
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n2\r\nne\r\n0\r\n\r\n"
VAST = CHUNKED.replace(b"0\r\n\r\n", 100 * (b"1000\r\n" + 4096 * b"x" + b"\r\n") + b"0\r\n\r\n")
LIMIT_S = 10.0


class Server:
    """Sends `answers` in turn, one per request; at their end it goes on with the last one."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.closes = False  # after each answer, without a word
        self.connections = self.at_once = self.most_at_once = 0
        self.gone = asyncio.Event()
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._answer_all(reader, writer)
        self.at_once -= 1
        self.gone.set()
        writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            self.asked.set()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if not self.is_open.is_set():
                await self._until_open_or_gone(reader)
            writer.write(answer)
            await writer.drain()
            if self.closes:
                return

    async def _until_open_or_gone(self, reader: asyncio.StreamReader) -> None:
        ends = [asyncio.create_task(reader.read(1)), asyncio.create_task(self.is_open.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()


@contextlib.asynccontextmanager
async def wires_to(
    server: Server, *, connections: int = 4, answer_s: float = LIMIT_S
) -> AsyncIterator[Wires]:
    async with listening(server.serve) as url:
        wires = Wires(
            url,
            ssl.create_default_context(),
            connections=connections,
            connect_s=LIMIT_S,
            answer_s=answer_s,
        )
        try:
            yield wires
        finally:
            wires.close()


@pytest.mark.parametrize("answer", [FINE, CHUNKED], ids=["announced", "chunked"])
async def test_a_connection_is_used_again(answer: bytes) -> None:
    server = Server(answer)

    async with wires_to(server) as wires:
        answers = [await wires.ask(REQUEST, 100) for _ in range(3)]

    assert answers == 3 * [Answer(200, b"fine")]
    assert server.connections == 1


async def test_no_more_connections_are_made_than_allowed() -> None:
    server = Server(FINE)

    async with wires_to(server, connections=2) as wires:
        answers = await asyncio.gather(*(wires.ask(REQUEST, 100) for _ in range(20)))

    assert len(answers) == 20
    assert server.most_at_once <= 2


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    server = Server(FINE)
    server.closes = True

    async with wires_to(server) as wires:
        first = await wires.ask(REQUEST, 100)
        await wires_are_down(wires)
        second = await wires.ask(REQUEST, 100)

    assert first == second == Answer(200, b"fine")
    assert server.connections == 2


async def test_a_body_that_is_too_long_is_refused_by_its_announcement() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", FINE)

    async with wires_to(server) as wires:
        with pytest.raises(TooLongError) as caught:
            await wires.ask(REQUEST, 100)
        again = await wires.ask(REQUEST, 100)

    assert caught.value.size == 101
    assert again == Answer(200, b"fine")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ntorn",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"220 mail.example.com ESMTP\r\n",
        b"",
        VAST,
    ],
    ids=["torn", "unannounced", "no number", "not final", "no HTTP", "nothing", "vast"],
)
async def test_what_is_not_a_whole_answer_is_none(answer: bytes) -> None:
    server = Server(answer, FINE)
    server.closes = True

    async with wires_to(server) as wires:
        with pytest.raises(NoAnswerError):
            await wires.ask(REQUEST, 100)
        again = await wires.ask(REQUEST, 100)

    assert again == Answer(200, b"fine")


async def test_a_second_answer_to_one_request_is_never_the_next_ones() -> None:
    server = Server(FINE + FINE.replace(b"fine", b"old!"), FINE)

    async with wires_to(server) as wires:
        answers = [(await wires.ask(REQUEST, 100)).body for _ in range(2)]

    assert answers == [b"fine", b"fine"]
    assert server.connections == 2


async def test_a_server_that_says_nothing_is_not_waited_for_long() -> None:
    server = Server(FINE)
    server.is_open.clear()

    async with wires_to(server, answer_s=0.05) as wires:
        with pytest.raises(NoAnswerError):
            await wires.ask(REQUEST, 100)


async def test_a_server_that_is_not_there_gives_no_answer() -> None:
    wires = Wires(
        "http://127.0.0.1:1", ssl.create_default_context(), connections=1, connect_s=5, answer_s=5
    )

    with pytest.raises(NoAnswerError):
        await wires.ask(REQUEST, 100)


async def test_cancelling_closes_the_connection_and_frees_its_place() -> None:
    server = Server(FINE)
    server.is_open.clear()

    async with wires_to(server, connections=1) as wires:
        asking = asyncio.create_task(wires.ask(REQUEST, 100))
        await within(server.asked.wait())
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await within(server.gone.wait())
        server.is_open.set()
        answer = await wires.ask(REQUEST, 100)

    assert answer == Answer(200, b"fine")


@pytest.mark.parametrize(
    "test",
    [
        lambda: test_a_connection_is_used_again(FINE),
        test_a_connection_that_the_server_has_closed_is_not_used_again,
        test_a_body_that_is_too_long_is_refused_by_its_announcement,
        lambda: test_what_is_not_a_whole_answer_is_none(FINE[:-1]),
        test_cancelling_closes_the_connection_and_frees_its_place,
    ],
    ids=["again", "closed", "too long", "torn", "cancelled"],
)
def test_it_is_the_same_on_the_loop_that_processes_run_on(
    test: Callable[[], Awaitable[None]],
) -> None:
    async def run() -> None:
        await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def wires_are_down(wires: Wires) -> None:
    """Return once the kept connection knows that it is closed."""
    async with asyncio.timeout(LIMIT_S):
        while any(wire.is_usable for wire in wires._idle):  # noqa: ASYNC110 - the loop tells them
            await asyncio.sleep(0.001)


async def within(awaitable: Awaitable[object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        await awaitable
