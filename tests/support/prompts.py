"""Prompts, pictures and whole answers for tests of engines."""

import asyncio
import hashlib
import io
import os
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.engine.base import (
    Delta,
    Engine,
    EngineOptions,
    Part,
    Picture,
    Prompt,
    TokenLogprob,
    ToolCall,
    Turn,
)


@dataclass(frozen=True)
class Answer:
    """All of what an engine gave for one prompt."""

    deltas: tuple[Delta, ...]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for delta in self.deltas for token in delta.token_ids)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.deltas)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(call for delta in self.deltas for call in delta.tool_calls)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(entry for delta in self.deltas for entry in delta.logprobs)

    @property
    def finish_reason(self) -> str | None:
        return self.deltas[-1].finish_reason

    @property
    def prompt_tokens(self) -> int:
        return self.deltas[-1].prompt_tokens


def ask(*parts: Part, after: Answer | None = None, key: str = "p", **options: Any) -> Prompt:
    """Return a one-turn prompt; `after` is what an earlier attempt has already streamed."""
    options.setdefault("max_tokens", 64)
    return Prompt(
        key=key,
        turns=(Turn("user", parts),),
        options=EngineOptions(**options),
        emitted_ids=after.token_ids if after else (),
        emitted_text=after.text if after else "",
        emitted_reasoning=after.reasoning if after else "",
        emitted_calls=len(after.tool_calls) if after else 0,
    )


async def answer_of(engine: Engine, prompt: Prompt) -> Answer:
    """Return the whole answer, within 30 s."""
    async with asyncio.timeout(30), aclosing(engine.generate(prompt)) as deltas:
        return Answer(tuple([delta async for delta in deltas]))


def picture(width: int = 84, height: int = 56, seed: int = 0) -> Picture:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return encoded(file.getvalue())


def encoded(data: bytes) -> Picture:
    """Return the picture that is in a file's bytes."""
    width, height = Image.open(io.BytesIO(data)).size
    return Picture(data, width, height, hashlib.sha256(data).hexdigest())


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return the pixels of an encoded picture, uint8 (height, width, 3)."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


DEADLY = b"ends the process"


def decode_or_die(data: bytes) -> NDArray[np.uint8]:
    """Do as `decode`, and at the bytes of DEADLY as one that the system kills."""
    return decode(data) if data != DEADLY else os._exit(9)
