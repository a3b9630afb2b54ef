"""When answers are looked at: together, none forgotten, few at once."""

import asyncio
import threading
from collections import Counter

import pytest

from tests.support.processes import until_async as until
from worker.engine.lmdeploy import pulse as pulses
from worker.engine.lmdeploy.pulse import UNPACED, Pulse

MANY = UNPACED + 1


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_no_bell_of_another_thread_is_lost():
    heard: Counter[int] = Counter()
    pulse = Pulse(lambda: MANY)

    def play() -> None:
        for number in range(20_000):
            pulse.ring(lambda number=number: heard.update([number]))

    threads = [threading.Thread(target=play) for _ in range(2)]
    for thread in threads:
        thread.start()

    await until(lambda: heard.total() == 40_000)
    assert set(heard.values()) == {2}
    for thread in threads:
        thread.join()


async def test_with_many_inside_what_rings_after_a_beat_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pulses, "SHORTEST_S", 3600.0)
    monkeypatch.setattr(pulses, "LONGEST_S", 3600.0)
    heard: list[str] = []
    pulse = Pulse(lambda: MANY)

    for _ in range(3):
        pulse.ring(lambda: heard.append("first"))
    await _turns(3)
    pulse.ring(lambda: heard.append("second"))
    await _turns(3)

    assert heard == ["first"] * 3


async def test_with_few_inside_every_bell_is_heard_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pulses, "SHORTEST_S", 3600.0)
    heard: list[int] = []
    pulse = Pulse(lambda: UNPACED)

    for number in range(3):
        pulse.ring(lambda number=number: heard.append(number))
        await _turns(3)

    assert heard == [0, 1, 2]


@pytest.mark.parametrize(("tokens", "is_sooner"), [(35, True), (1, False)])
async def test_the_faster_the_tokens_come_the_sooner_is_the_next_beat(
    monkeypatch: pytest.MonkeyPatch, tokens: int, is_sooner: bool
):
    moment = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: moment)
    pulse = Pulse(lambda: MANY)
    pulse.ring(lambda: None)
    await _turns(3)
    moment += 0.03  # since the last beat, in which each answer gained `tokens`

    pulse.ring(lambda: pulse.looked(tokens))
    await _turns(3)

    after_s = pulse._next_at - moment
    assert after_s == pytest.approx(pulses.SHORTEST_S if is_sooner else pulses.LONGEST_S)
