"""What every engine does: one suite for all of them."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from tests.engine.conftest import SLOTS
from tests.support.prompts import Answer, answer_of, ask, picture
from worker.contract.errors import ContextTooLong, EngineDied
from worker.engine.base import Clip, Engine, Prompt

QUESTION = "图片中有几只羊？ How many sheep are there,\nand where do they graze? 🐑"
ENDLESS = "[[tokens=100000 rate=100]]"  # the echo engine's; any other takes it for a question
GREEDY = {"temperature": 0.0, "ignore_eos": True}
SEEDED = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "seed": 7, "ignore_eos": True}


async def test_deltas_have_one_finish_reason_at_the_end_and_the_same_prompt_tokens(engine: Engine):
    answer = await answer_of(engine, ask(QUESTION, max_tokens=12, **GREEDY))

    assert [delta.finish_reason for delta in answer.deltas[:-1]] == [None] * (
        len(answer.deltas) - 1
    )
    assert answer.finish_reason == "length"
    assert len({delta.prompt_tokens for delta in answer.deltas}) == 1
    assert answer.prompt_tokens > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
async def test_max_tokens_is_exact(engine: Engine, max_tokens: int):
    answer = await answer_of(engine, ask(QUESTION, max_tokens=max_tokens, **GREEDY))

    assert len(answer.token_ids) == max_tokens
    assert answer.finish_reason == "length"


async def test_the_same_greedy_prompt_gets_the_same_answer(engine: Engine):
    first = await answer_of(engine, ask(QUESTION, max_tokens=24, **GREEDY))
    second = await answer_of(engine, ask(QUESTION, max_tokens=24, **GREEDY))

    assert (first.text, first.token_ids) == (second.text, second.token_ids)
    assert first.text


async def test_pictures_and_clips_count_into_the_prompt(engine: Engine):
    clip = Clip((picture(seed=1), picture(seed=2)), (0.5, 1.5), "sha")

    plain = await answer_of(engine, ask(QUESTION, max_tokens=1))
    one = await answer_of(engine, ask(picture(), QUESTION, max_tokens=1))
    two = await answer_of(engine, ask(clip, QUESTION, max_tokens=1))

    assert plain.prompt_tokens < one.prompt_tokens < two.prompt_tokens


@pytest.mark.parametrize("options", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_an_answer_goes_on_at_any_token_as_if_nothing_had_happened(
    engine: Engine, options: dict[str, Any]
):
    if "temperature" in options and options["temperature"] > 0 and _begins_random_anew(engine):
        pytest.skip("LMDeploy's random numbers begin anew with each attempt")
    whole = await answer_of(engine, ask(picture(), QUESTION, max_tokens=16, **options))

    for cut in range(len(whole.deltas)):
        start = Answer(whole.deltas[:cut])
        prompt = ask(picture(), QUESTION, after=start, max_tokens=16, **options)
        rest = await answer_of(engine, prompt)

        assert start.text + rest.text == whole.text
        assert start.token_ids + rest.token_ids == whole.token_ids
        assert rest.finish_reason == "length"
        assert rest.prompt_tokens == whole.prompt_tokens


async def test_an_answer_that_was_already_whole_ends_at_once(engine: Engine):
    whole = await answer_of(engine, ask(QUESTION, max_tokens=9, **GREEDY))

    rest = await answer_of(engine, ask(QUESTION, after=whole, max_tokens=9, **GREEDY))

    assert (rest.text, rest.token_ids, rest.finish_reason) == ("", (), "length")


@pytest.mark.parametrize("length", [1, 2, 5])
async def test_a_stop_text_ends_the_answer_before_it_wherever_it_is_cut(
    engine: Engine, length: int
):
    whole = await answer_of(engine, ask(QUESTION, max_tokens=24, **GREEDY))
    stop = whole.text[11 : 11 + length]
    expected = whole.text[: whole.text.index(stop)]

    stopped = await answer_of(engine, ask(QUESTION, max_tokens=24, stop=(stop, "羊🐑羊"), **GREEDY))

    assert (stopped.text, stopped.finish_reason) == (expected, "stop")
    for cut in range(len(stopped.deltas)):
        start = Answer(stopped.deltas[:cut])
        prompt = ask(QUESTION, after=start, max_tokens=24, stop=(stop, "羊🐑羊"), **GREEDY)
        rest = await answer_of(engine, prompt)

        assert start.text + rest.text == expected
        assert start.token_ids + rest.token_ids == stopped.token_ids
        assert rest.finish_reason == "stop"


async def test_text_that_only_begins_like_a_stop_text_is_part_of_the_answer(engine: Engine):
    whole = await answer_of(engine, ask(QUESTION, max_tokens=24, **GREEDY))
    almost = tuple(f"{whole.text[at : at + 3]}\0" for at in range(0, len(whole.text), 3))

    answer = await answer_of(engine, ask(QUESTION, max_tokens=24, stop=almost[:16], **GREEDY))

    assert (answer.text, answer.finish_reason) == (whole.text, "length")


async def test_prompts_that_run_together_get_what_each_gets_alone(engine: Engine):
    prompts = [
        *(ask(f"{n} {QUESTION}", max_tokens=16, key=f"text {n}", **SEEDED) for n in range(3)),
        *(ask(picture(seed=n), QUESTION, max_tokens=16, key=f"picture {n}") for n in range(2)),
        ask(picture(28 * 3, 28), picture(28, 28 * 2), QUESTION, max_tokens=16, key="two", **GREEDY),
    ]
    alone = [await answer_of(engine, prompt) for prompt in prompts]

    together = await asyncio.gather(*(answer_of(engine, prompt) for prompt in prompts))

    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


async def test_one_prompts_error_leaves_the_others_alone(engine: Engine):
    too_long = ask(QUESTION, max_tokens=10_000_000, key="too long")
    good = ask(QUESTION, max_tokens=24, key="good", **GREEDY)

    results = await asyncio.gather(
        answer_of(engine, good), answer_of(engine, too_long), return_exceptions=True
    )

    assert isinstance(results[1], ContextTooLong)
    assert "10000000" in results[1].message
    assert isinstance(results[0], Answer)
    assert len(results[0].token_ids) == 24


async def test_a_closed_iterator_gives_its_slot_to_the_next_prompt(engine: Engine):
    holders = [engine.generate(_endless(f"holder {n}")) for n in range(SLOTS)]
    for holder in holders:
        await anext(holder)
    waiting = asyncio.create_task(answer_of(engine, ask(QUESTION, max_tokens=3, key="waiting")))
    for holder in holders:
        await anext(holder)
    assert not waiting.done()

    async with asyncio.timeout(2):  # the answer itself would take longer
        await holders[0].aclose()

    assert len((await waiting).token_ids) <= 3
    assert (await anext(holders[1])).token_ids
    await holders[1].aclose()


async def test_a_cancelled_reader_gives_its_slot_to_the_next_prompt(engine: Engine):
    first = asyncio.Event()
    readers = [
        asyncio.create_task(_read(engine, _endless(f"{n}"), first)) for n in range(SLOTS + 1)
    ]
    await first.wait()

    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)

    assert all(reader.cancelled() for reader in readers)
    answers = await asyncio.gather(
        *(answer_of(engine, ask(QUESTION, max_tokens=3, key=f"next {n}")) for n in range(SLOTS))
    )
    assert all(answer.finish_reason for answer in answers)


async def test_an_engine_counts_its_prompts_and_none_when_they_are_gone(engine: Engine):
    held = engine.generate(_endless("held"))
    await anext(held)
    during = await engine.counters()
    cut = [engine.generate(_endless(f"cut {n}")) for n in range(SLOTS - 1)]
    for one in cut:
        await anext(one)

    for one in (held, *cut):
        await one.aclose()
    await answer_of(engine, ask(QUESTION, max_tokens=3, key="whole"))
    after = await engine.counters()

    assert (during.running, during.seats_taken) == (1, 1)
    assert (after.running, after.waiting, after.seats_taken) == (0, 0, 0)


async def test_closing_the_engine_ends_the_prompts_inside_with_engine_died(engine: Engine):
    first = asyncio.Event()
    readers = [
        asyncio.create_task(_read(engine, _endless(f"{n}"), first)) for n in range(SLOTS + 1)
    ]
    await first.wait()

    await engine.close()
    ends = await asyncio.gather(*readers, return_exceptions=True)

    assert [type(end) for end in ends] == [EngineDied] * len(readers)


def _endless(key: str) -> Prompt:
    return ask(ENDLESS, max_tokens=1900, key=key, **GREEDY)


async def _read(engine: Engine, prompt: Prompt, first: asyncio.Event) -> None:
    async with aclosing(engine.generate(prompt)) as deltas:
        async for _ in deltas:
            first.set()


def _begins_random_anew(engine: Engine) -> bool:
    return type(engine).__name__ == "LmdeployEngine"
