"""When a child is started again, and when not."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.processes import command, is_running, until_async
from worker import keeper
from worker.children import Command
from worker.keeper import GaveUpError, Keeper, RestartPolicy

KILLED = -9


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make restarts quick; how long the pauses really are is a test of its own."""
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def keep() -> AsyncIterator[Callable[..., Keeper]]:
    kept: list[Keeper] = []

    def start(make: Callable[[], Command], **options: object) -> Keeper:
        kept.append(Keeper(make, **options))
        kept[-1].start()
        return kept[-1]

    yield start
    await asyncio.gather(*(one.stop(0.1) for one in kept))


def test_the_first_restart_is_at_once_and_pauses_double_up_to_a_minute():
    policy = RestartPolicy()

    pauses = [policy.after(KILLED, 0.0, "", now_s=n) for n in range(8)]

    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60]


def test_who_lived_longer_than_the_pause_is_started_again_at_once():
    policy = RestartPolicy()

    pauses = [policy.after(KILLED, 6.0, "", now_s=n) for n in range(6)]

    assert pauses == [0, 0, 0, 0, 2, 10]


def test_a_life_of_a_minute_makes_the_pauses_begin_anew():
    policy = RestartPolicy()
    for _ in range(4):
        policy.after(KILLED, 59.9, "", now_s=0)

    assert policy.after(KILLED, 60.0, "", now_s=0) == 0


@pytest.mark.parametrize("status", [keeper.EXIT_CONFIG, keeper.EXIT_USAGE, keeper.EXIT_GAVE_UP])
def test_a_child_that_says_that_restarting_is_no_use_is_believed(status: int):
    with pytest.raises(GaveUpError, match=r"^no such model$") as caught:
        RestartPolicy().after(status, 1.0, "no such model", now_s=0)

    assert caught.value.status == status


def test_the_third_death_of_an_engine_in_ten_minutes_is_the_last():
    policy = RestartPolicy()
    policy.after(keeper.EXIT_RESTART, 100, "", now_s=0)
    policy.after(keeper.EXIT_RESTART, 100, "", now_s=300)

    with pytest.raises(GaveUpError, match=r"died 3 times in ten minutes.*: out of memory"):
        policy.after(keeper.EXIT_RESTART, 100, "out of memory", now_s=600)


def test_engine_deaths_older_than_ten_minutes_do_not_count():
    policy = RestartPolicy()

    for now_s in (0, 300, 601, 902, 1203):
        policy.after(keeper.EXIT_RESTART, 100, "", now_s=now_s)


def test_six_failed_starts_in_a_row_are_enough():
    policy = RestartPolicy()
    for _ in range(5):
        policy.after(1, 0.5, "", now_s=0)

    with pytest.raises(GaveUpError, match=r"failed 6 times in a row.*: no Redis") as caught:
        policy.after(1, 0.5, "no Redis", now_s=0)

    assert caught.value.status == 1


def test_failures_with_a_long_life_between_are_not_in_a_row():
    policy = RestartPolicy()

    for lived_s in (0.5, 0.5, 0.5, 0.5, 0.5, 61, 0.5, 0.5, 0.5):
        policy.after(1, lived_s, "", now_s=0)


def test_being_killed_is_never_a_reason_to_give_up():
    policy = RestartPolicy()

    for _ in range(100):
        policy.after(KILLED, 0.1, "", now_s=0)


@pytest.mark.usefixtures("pauses")
async def test_a_child_that_is_killed_comes_back(tmp_path: Path, keep: Callable[..., Keeper]):
    log = tmp_path / "log"
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    kept = keep(lambda: command(code, log=log))
    await until_async(lambda: log.exists() and len(log.read_text().split()) == 1)

    kept.send(signal.SIGKILL)

    await until_async(lambda: len(log.read_text().split()) == 2)
    first, second = (int(pid) for pid in log.read_text().split())
    assert not is_running(first)
    assert is_running(second)


@pytest.mark.usefixtures("pauses")
async def test_what_is_owed_to_a_dead_child_is_done_before_the_next_begins(
    tmp_path: Path, keep: Callable[..., Keeper]
):
    log = tmp_path / "log"

    async def on_end() -> None:
        with log.open("a") as file:
            file.write("ended\n")

    keep(lambda: command("print('began')", log=log), on_end=on_end)

    await until_async(lambda: log.exists() and len(log.read_text().split()) >= 4)
    assert log.read_text().split()[:4] == ["began", "ended", "began", "ended"]


async def test_a_keeper_stopped_in_a_pause_ends_at_once(
    tmp_path: Path, keep: Callable[..., Keeper]
):
    ended = asyncio.Event()

    async def on_end() -> None:
        ended.set()

    kept = keep(lambda: command("pass", log=tmp_path / "log"), on_end=on_end)
    await ended.wait()

    await asyncio.wait_for(kept.stop(10), 0.5)

    await kept.ended()


async def test_a_keeper_that_never_started_can_be_stopped():
    await Keeper(lambda: command("pass")).stop(1)
