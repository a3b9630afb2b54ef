"""The one protocol behind which every engine stands.

An engine is given prompts whose media are already fetched, checked and shrunk, and yields text. It
knows no job record, no Redis and no HTTP.
"""

import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

FRAME_LABEL = "Frame{number}: "
"""What stands before each frame of a video for models that take frames as pictures: the guide's
layout, `Frame1: <picture>\\nFrame2: <picture>\\n…` with one newline after each picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One prepared picture: upright RGB, already within the model's pixel limit.

    `data` is an encoded file (JPEG, PNG or WebP), `width` × `height` its size in pixels.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Clip:
    """A video as its sampled frames, in time order; `times_s` (one per frame) from the start."""

    frames: tuple[Picture, ...]
    times_s: tuple[float, ...]
    sha256: str


Part = str | Picture | Clip


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function that the caller offered; `arguments` are JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One chat message: `role` is system, user, assistant or tool; parts in the sender's order.

    `tool_calls` are what an assistant's turn asked for, `tool_call_id` is the call that a tool's
    turn answers, `name` who speaks, where that was said.
    """

    role: str
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which functions the model may call.

    `functions` are OpenAI's objects (`name`, and where given `description`, `parameters` as a JSON
    schema, `strict`); `must_call`: the answer is at least one call; `only` the one name it may be,
    where the caller says; `max_calls` ends the answer after so many.
    """

    functions: tuple[dict[str, Any], ...]
    must_call: bool = False
    only: str | None = None
    max_calls: int | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to generate. None means: the model's generation_config, then the engine's default.

    Units and ranges: `max_tokens` ≥ 1 new tokens; `temperature` 0 (greedy) to 2; `top_p` in (0, 1];
    `top_k` ≥ 0 (0 = off); `min_p` in [0, 1]; `repetition_penalty` > 0 (1 = off); `seed` 0 to
    2^63-1; `stop` up to 16 texts, never part of the answer.

    What only some engines take, by the names in `ModelCard.options`: `top_logprobs` 0 to 20 more
    likely tokens beside each that was chosen, None for no logprobs at all; `json_schema` (the
    option response_format) what the answer is an instance of, `{"type": "object"}` where any JSON
    object will do; `tools`.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    json_schema: dict[str, Any] | None = None
    tools: ToolUse | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One attempt at one job.

    `key` is unique per attempt: the job's id, a dot, which attempt it is. `emitted_…` is what
    earlier attempts have already streamed (of calls: how many): the engine goes on from there and
    yields only what comes after, so that emitted_text + all deltas is the whole answer;
    `options.max_tokens` counts the emitted tokens in.
    """

    key: str
    turns: tuple[Turn, ...]
    options: EngineOptions
    emitted_ids: tuple[int, ...] = ()
    emitted_text: str = ""
    emitted_reasoning: str = ""
    emitted_calls: int = 0

    @property
    def seed(self) -> int:
        """What random numbers begin with, 0 to 2^63-1: the same for all attempts at a job.

        Without one in the options it is the job's own. An attempt that has to begin an answer anew
        must come upon the same tokens again.
        """
        if self.options.seed is not None:
            return self.options.seed
        digest = hashlib.sha256(self.key.partition(".")[0].encode()).digest()
        return int.from_bytes(digest[:8]) >> 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely one token was.

    `data` are the token's bytes, perhaps no whole character; `logprob` the natural logarithm of its
    probability by the model's own scores, before temperature, penalties and constraints; `top` the
    likeliest tokens at its place, best first, themselves without `top`.
    """

    data: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


class Delta(NamedTuple):
    """A piece of the answer. A tuple: thousands a second are made, twice.

    `token_ids` are all tokens sampled since the last delta (also those whose bytes do not yet make
    a whole character: `text` may then be empty; where neither tools nor reasoning are in play,
    decoding all ids so far gives all text so far plus at most one incomplete character and what may
    become a stop text). The token that ends a text is not among them. `prompt_tokens` is the whole
    prompt with picture tokens, the same in every delta. The last delta has `finish_reason`: stop,
    length or tool_calls. `reasoning` and `tool_calls` (whole ones) are no part of `text`;
    `logprobs` has one entry per token id where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int = 0
    finish_reason: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What callers and the media stage must know about a loaded model.

    `context_tokens` prompt + answer; `slots` jobs that fit into the engine at once; `max_pixels` a
    picture's width × height that the model uses at most (larger ones are shrunk before);
    `pixel_multiple` sides that need no further resize are multiples of it; `frame_max_pixels` the
    same for a frame of a video; `options` the optional request fields that the engine honours;
    `capacity_tokens` what all jobs inside may occupy together, prompts and answers, None where the
    slots alone bound it.
    """

    model: str
    engine: str
    backend: str
    context_tokens: int
    slots: int
    is_multimodal: bool
    takes_video: bool
    max_pixels: int
    pixel_multiple: int
    frame_max_pixels: int
    options: frozenset[str]
    capacity_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """What an engine itself counts. With no prompt inside all are zero, or something leaked.

    `running` prompts that are generated, `waiting` that are not yet, `seats_taken` places for
    answers in use; `cache_share` of the key-value cache that running prompts occupy, 0 to 1.
    """

    running: int
    waiting: int
    seats_taken: int
    cache_share: float = 0.0


class Engine(Protocol):
    """Holds one model and answers many prompts at once.

    Errors of `generate`, raised from the iteration and meant for this prompt alone: ContextTooLong,
    OutOfMemory, EngineFailed. EngineDied means that every prompt inside is lost.
    """

    async def start(self) -> ModelCard:
        """Load the model; return once it can answer. Raises EngineFailed with a sentence."""
        ...

    def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the answer. Closing the iterator takes the prompt out of the engine at once."""
        ...

    async def counters(self) -> Counters:
        """Return the engine's own counters. Raises EngineDied where there is no engine."""
        ...

    async def close(self) -> None:
        """Free the device. Prompts that are still inside end with EngineDied."""
        ...


def frames_as_pictures(turns: tuple[Turn, ...], after: str = "\n") -> tuple[Turn, ...]:
    """Lay every clip out as labelled pictures, for models that take no video.

    `after` follows each picture: nothing where the engine itself sets the newline.

    Source: the guide's prompt for InternVL2: `Frame1: <image>`, a newline, … `Frame8: <image>`, a
    newline, and then the text.
    """
    return tuple(replace(turn, parts=tuple(_laid_out(turn.parts, after))) for turn in turns)


def _laid_out(parts: tuple[Part, ...], after: str) -> list[Part]:
    out: list[Part] = []
    for part in parts:
        if not isinstance(part, Clip):
            out.append(part)
            continue
        for number, frame in enumerate(part.frames, start=1):
            out += [FRAME_LABEL.format(number=number), frame, *([after] if after else [])]
    return out
