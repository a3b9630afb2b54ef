"""What a process of its own adds to an engine: it can die, hang and be started again."""

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.prompts import Answer, answer_of, ask, decode, picture
from worker.contract.errors import EngineDied, EngineFailed, OutOfMemory
from worker.engine import EngineSpec, load_engine
from worker.engine.base import Delta
from worker.engine.process import EngineProcess


@pytest.fixture
async def engine() -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(EngineSpec("echo", "echo"))
    await engine.start()
    yield engine
    await engine.close()


async def test_death_ends_every_open_iterator_at_once_and_start_brings_a_fresh_one(
    engine: EngineProcess,
):
    waiting = [
        asyncio.create_task(answer_of(engine, ask("[[hang]]", key=f"{n}"))) for n in range(5)
    ]
    await until(lambda: engine.in_flight == 5)

    with pytest.raises(EngineDied, match="status 86"):
        await answer_of(engine, ask("[[die]]"))
    async with asyncio.timeout(1):
        ends = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(end) for end in ends] == [EngineDied] * 5
    assert await engine.wait_dead() == "the engine process ended with status 86"
    assert (engine.is_alive, engine.pid, engine.in_flight) == (False, None, 0)
    assert [end.was_inside for end in ends if isinstance(end, EngineDied)] == [True] * 5
    with pytest.raises(EngineDied) as late:
        await answer_of(engine, ask("too late"))
    assert not late.value.was_inside
    await engine.start()
    assert (await answer_of(engine, ask("back again"))).text == "back again"


async def test_memory_that_runs_out_is_the_fault_of_a_prompt_that_is_alone(engine: EngineProcess):
    with pytest.raises(OutOfMemory, match="no other inside"):
        await answer_of(engine, ask("[[tokens=3]][[starve]]"))

    assert await engine.wait_dead() == "the engine ran out of memory"
    assert not engine.is_alive


async def test_memory_that_runs_out_is_nobodys_fault_where_others_are_inside(
    engine: EngineProcess,
):
    other = asyncio.create_task(answer_of(engine, ask("[[hang]]", key="other")))
    await until(lambda: engine.in_flight == 1)

    with pytest.raises(EngineDied, match="out of memory"):
        await answer_of(engine, ask("[[starve]]"))
    with pytest.raises(EngineDied, match="out of memory"):
        await other


async def test_a_killed_process_says_by_what(engine: EngineProcess):
    deltas = engine.generate(ask("[[tokens=1]][[hang]]"))
    await anext(deltas)

    os.kill(engine.pid or 0, signal.SIGKILL)

    with pytest.raises(EngineDied, match="SIGKILL"):
        await anext(deltas)


async def test_tokens_that_were_sent_before_a_death_are_not_lost(engine: EngineProcess):
    deltas = engine.generate(ask("[[tokens=3]][[die]]"))

    assert (await anext(deltas)).text == "tok1 tok2 tok3"
    with pytest.raises(EngineDied):
        await anext(deltas)


async def test_a_hung_engine_is_seen_by_its_silence_and_can_be_killed(engine: EngineProcess):
    idle_until = time.monotonic() + 0.2
    await until(lambda: time.monotonic() > idle_until)
    assert engine.last_output_age_s == 0.0
    hung = asyncio.create_task(answer_of(engine, ask("[[hang]]")))
    await until(lambda: engine.in_flight == 1)
    assert engine.last_output_age_s < 0.1

    await until(lambda: engine.last_output_age_s > 0.1)
    engine.kill()

    with pytest.raises(EngineDied, match="SIGKILL"):
        await hung
    assert engine.last_output_age_s == 0.0


async def test_an_engine_that_gives_tokens_is_not_silent(engine: EngineProcess):
    deltas = engine.generate(ask("[[tokens=20 rate=50]]"))

    ages = [engine.last_output_age_s async for _ in deltas]

    assert max(ages) < 0.2
    assert engine.last_output_age_s == 0.0


async def test_a_closed_iterator_returns_when_the_engine_has_dropped_the_prompt():
    engine = EngineProcess(EngineSpec("echo", "echo", slots=1))
    await engine.start()
    for n in range(50):  # each would wait for ever behind one that still holds the slot
        deltas = engine.generate(ask("[[tokens=9 rate=1000]][[hang]]", key="the same"))
        assert (await anext(deltas)).token_ids[0] == 1, n
        await deltas.aclose()
        assert engine.in_flight == 0

    await engine.close()


async def test_closing_an_iterator_waits_for_the_engines_word(engine: EngineProcess):
    deltas = engine.generate(ask("[[tokens=1]][[hang]]"))
    await anext(deltas)
    os.kill(engine.pid or 0, signal.SIGSTOP)

    closing = asyncio.create_task(deltas.aclose())
    done, _ = await asyncio.wait({closing}, timeout=0.1)
    os.kill(engine.pid or 0, signal.SIGCONT)
    await closing

    assert not done


async def test_an_answer_that_is_taken_is_the_one_that_an_iterator_gives(engine: EngineProcess):
    taken: list[Delta] = []

    await engine.answer(ask("[[tokens=9 rate=1000]]"), taken.append)

    assert Answer(tuple(taken)).text == (await answer_of(engine, ask("[[tokens=9]]"))).text
    assert len(taken) > 1
    assert engine.in_flight == 0


async def test_a_taken_answer_fails_and_dies_as_an_iterator_does(engine: EngineProcess):
    taken: list[Delta] = []

    with pytest.raises(OutOfMemory, match=r"\[\[oom\]\]"):
        await engine.answer(ask("[[oom]]"), taken.append)
    with pytest.raises(EngineDied):
        await engine.answer(ask("[[tokens=3]][[die]]"), taken.append)

    assert "".join(delta.text for delta in taken) == "tok1 tok2 tok3"


async def test_an_error_of_who_takes_ends_that_answer_alone(engine: EngineProcess):
    other = asyncio.create_task(answer_of(engine, ask("[[tokens=50 rate=500]]", key="other")))

    with pytest.raises(ZeroDivisionError):
        await engine.answer(ask("[[tokens=1000 rate=500]]"), lambda _: 1 // 0)

    assert engine.in_flight == 1
    assert (await engine.counters()).running == 1
    assert len((await other).token_ids) == 50


async def test_a_cancelled_answer_takes_nothing_more_and_returns_once_it_was_dropped(
    engine: EngineProcess,
):
    taken: list[Delta] = []
    answering = asyncio.create_task(
        engine.answer(ask("[[tokens=9000 rate=1000]]", max_tokens=9000), taken.append)
    )
    await until(lambda: bool(taken))

    answering.cancel()
    await asyncio.wait({answering})
    before = len(taken)

    assert answering.cancelled()
    assert (await engine.counters()).running == 0
    assert len(taken) == before


async def test_errors_arrive_as_what_they_were(engine: EngineProcess):
    with pytest.raises(OutOfMemory, match=r"\[\[oom\]\]"):
        await answer_of(engine, ask("[[oom]]"))
    with pytest.raises(EngineFailed, match=r"\[\[fail\]\]"):
        await answer_of(engine, ask("[[fail]]"))

    assert (await answer_of(engine, ask("alive"))).text == "alive"


async def test_pictures_arrive_whole(engine: EngineProcess):
    large = picture(1200, 900)  # noise: more than 3 MB, many times a socket's buffer

    answer = await answer_of(engine, ask(large, "[[media]]"))

    assert json.loads(answer.text)[0]["sha256"] == large.sha256


async def test_hundreds_of_prompts_keep_their_tokens_apart(engine: EngineProcess):
    prompts = [ask(f"[[tokens=90]] {n}", key=f"{n}", max_tokens=n + 1) for n in range(200)]

    answers = await asyncio.gather(*(answer_of(engine, prompt) for prompt in prompts))

    assert [len(answer.token_ids) for answer in answers] == [min(n + 1, 90) for n in range(200)]
    assert all(a.text == " ".join(f"tok{t}" for t in a.token_ids) for a in answers)


async def test_ctrl_c_and_sigterm_are_left_to_the_parent(engine: EngineProcess):
    deltas = engine.generate(ask("[[tokens=20 rate=100]]"))
    await anext(deltas)

    os.kill(engine.pid or 0, signal.SIGINT)
    os.kill(engine.pid or 0, signal.SIGTERM)

    assert [delta async for delta in deltas][-1].finish_reason == "stop"


async def test_a_model_that_cannot_be_loaded_is_told_in_the_engines_own_words():
    engine = EngineProcess(EngineSpec("demo", "lmdeploy"))

    with pytest.raises(EngineFailed, match="needs"):
        await engine.start()

    assert not engine.is_alive


async def test_a_real_model_answers_from_a_process_as_it_does_here(tiny_model: Path):
    spec = EngineSpec(str(tiny_model), "transformers", slots=2, decode=decode)
    prompt = ask(picture(), "羊", max_tokens=20, temperature=1.0, seed=1, ignore_eos=True)
    here, there = load_engine(spec), EngineProcess(spec)

    cards = [await here.start(), await there.start()]
    answers = [await answer_of(here, prompt), await answer_of(there, prompt)]

    assert cards[0] == cards[1]
    assert answers[0].deltas == answers[1].deltas
    await here.close()
    await there.close()


async def test_the_process_imports_what_its_parent_did_and_not_the_users_own_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    engine = EngineProcess(EngineSpec("echo", "echo"))

    await engine.start()

    assert (await answer_of(engine, ask("ours"))).text == "ours"
    await engine.close()


async def test_a_start_that_takes_too_long_is_given_up():
    engine = EngineProcess(EngineSpec("echo", "echo"), start_timeout_s=0.001)

    with pytest.raises(EngineFailed, match=r"not loaded within 0\.001 s"):
        await engine.start()

    assert not engine.is_alive


async def test_a_running_process_is_not_started_twice(engine: EngineProcess):
    with pytest.raises(EngineFailed, match="runs already"):
        await engine.start()

    assert engine.is_alive


async def test_without_a_start_there_is_no_answer():
    engine = EngineProcess(EngineSpec("echo", "echo"))

    with pytest.raises(EngineFailed, match="never started"):
        await answer_of(engine, ask("hello"))


_STICK = "engine._child.outbox.post(Stuck()); await engine._child.outbox.drain()"


@pytest.mark.parametrize("state", ["pass", _STICK])
async def test_the_process_dies_with_its_parent_even_if_it_is_stuck(state: str):
    code = (
        "import asyncio, os, signal, time\n"
        "from worker.engine import EngineSpec\n"
        "from worker.engine.process import EngineProcess\n"
        "class Stuck:\n"
        "    def __reduce__(self):\n"
        "        return time.sleep, (60,)  # this is how the other end reads it\n"
        "async def main():\n"
        "    engine = EngineProcess(EngineSpec('echo', 'echo'))\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        f"    {state}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE)

    said, _ = await parent.communicate()

    assert parent.returncode == -signal.SIGKILL
    await until(lambda: not is_running(int(said)))


async def test_no_process_is_left_after_close_with_a_prompt_inside(engine: EngineProcess):
    pid = engine.pid or 0
    inside = asyncio.create_task(answer_of(engine, ask("[[hang]]")))
    await until(lambda: engine.in_flight == 1)

    await engine.close()

    with pytest.raises(EngineDied):
        await inside
    assert not is_running(pid)
    assert await engine.wait_dead() == "the engine process ended with status 0"


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, 5 s at most."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.005)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
