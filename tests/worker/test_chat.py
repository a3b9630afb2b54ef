"""What a request becomes for an engine: options, turns, and an estimate of its size."""

import dataclasses

from tests.support.factories import question
from worker.chat import engine_options, estimate_tokens
from worker.engine.base import Clip, EngineOptions, Picture, Prompt, Turn

ALL = {
    "max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7,
    "stop": ["。"], "repetition_penalty": 1.1, "ignore_eos": True,
}  # fmt: skip


def prompt(*parts: str | Picture | Clip, max_tokens: int = 0) -> Prompt:
    return Prompt("k", (Turn("user", parts),), EngineOptions(max_tokens=max_tokens))


def picture(width: int, height: int) -> Picture:
    return Picture(b"", width, height, "0" * 64)


def test_every_plain_option_reaches_the_engine_under_its_own_name():
    options = engine_options(question(options=ALL), 256)

    assert {name: getattr(options, name) for name in ALL} == ALL | {"stop": ("。",)}
    assert options.extra == {}


def test_what_is_not_said_is_left_to_the_model_but_the_length():
    options = engine_options(question(), 256)

    assert options == EngineOptions(max_tokens=256)


def test_what_only_some_engines_take_stands_apart():
    extra = {"logprobs": True, "tools": [{"type": "function"}]}

    options = engine_options(question(options={"seed": 1} | extra), 256)

    assert (options.seed, options.extra) == (1, extra)


def test_every_option_of_the_protocol_can_be_asked_for():
    fields = {field.name for field in dataclasses.fields(EngineOptions)} - {"extra"}

    assert fields == ALL.keys()


def test_the_estimate_grows_with_texts_pictures_frames_and_the_answer():
    text = estimate_tokens(prompt("四" * 30))

    assert 30 <= text <= 35
    assert estimate_tokens(prompt("四" * 30, max_tokens=100)) == text + 100
    assert estimate_tokens(prompt(picture(280, 280))) >= 100
    frames = tuple(picture(280, 280) for _ in range(8))
    assert estimate_tokens(prompt(Clip(frames, (0.0,) * 8, "0" * 64))) >= 800
