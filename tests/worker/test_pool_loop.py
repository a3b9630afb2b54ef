import asyncio
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest

from worker.pool_loop import DaemonThreads, LoopThread, Outbox

WAIT_S = 5


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    outbox = Outbox()
    yield outbox
    outbox.close()


def is_readable(outbox: Outbox) -> bool:
    return bool(select.select([outbox], [], [], 0)[0])


def test_calls_are_made_in_order_and_an_error_stops_none(outbox: Outbox):
    made: list[object] = []
    calls: list[tuple[Callable[..., object], object]] = [
        (made.append, 1),
        ([].index, "nowhere"),
        (made.append, 2),
    ]

    for function, argument in calls:
        outbox.post(function, argument)
    was_readable = is_readable(outbox)
    outbox.deliver()

    assert made == [1, 2]
    assert was_readable
    assert not is_readable(outbox)


def test_a_call_posted_during_a_delivery_is_made_by_it(outbox: Outbox):
    made: list[str] = []

    outbox.post(lambda: outbox.post(made.append, "late"))
    outbox.deliver()

    assert made == ["late"]


def test_a_wake_without_a_call_returns_the_poller_once(outbox: Outbox):
    outbox.wake()

    assert is_readable(outbox)
    outbox.deliver()
    assert not is_readable(outbox)


def test_no_more_threads_are_started_than_allowed():
    threads, gate = DaemonThreads(2, "t"), threading.Event()

    def held() -> str:
        gate.wait(WAIT_S)
        return threading.current_thread().name

    calls = [threads.submit(held) for _ in range(5)]
    running = [thread for thread in threading.enumerate() if thread.name == "t"]
    gate.set()

    assert len(running) == 2
    assert all(thread.daemon for thread in running)
    assert [call.result(WAIT_S) for call in calls] == ["t"] * 5


def test_whatever_a_thread_raises_reaches_the_caller():
    def leave() -> None:
        raise SystemExit(3)

    call = DaemonThreads(1, "t").submit(leave)

    wait([call], WAIT_S)

    assert isinstance(call.exception(), SystemExit)


def test_a_closed_loop_has_cancelled_what_was_left():
    loop, started, ended = LoopThread(), threading.Event(), threading.Event()

    async def forever() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop.start()
    future = loop.submit(forever())
    started.wait(WAIT_S)
    loop.close()

    assert ended.is_set()
    assert future.cancelled() or future.done()
    with pytest.raises(RuntimeError):
        loop.call(print)
