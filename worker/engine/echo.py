"""An engine without a model: it says what the prompt tells it to, for users' own tests.

The answer is the last user text, word by word, unless that text holds commands:

    [[tokens=N rate=R]]  N tokens `tok1 tok2 …`, R per second (0 or left out: no pause);
                         `[[rate=R]]` alone paces the text itself
    [[media]]            a JSON list with kind, size and sha256 of every picture and video
    [[fail]] [[oom]]     end in EngineFailed, in OutOfMemory
    [[hang]] [[die]]     never go on; kill the engine's process

The last four happen after the tokens where `[[tokens=N]]` stands beside them, else at once.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from worker.contract.errors import ContextTooLong, EngineDied, EngineFailed, OutOfMemory
from worker.engine.answer import AnswerText
from worker.engine.base import Clip, Delta, ModelCard, Part, Picture, Prompt, Turn

CONTEXT_TOKENS = 131_072
PICTURE_TOKENS = 64
"""What one picture, or one frame of a video, adds to `prompt_tokens`."""
BURST_TOKENS = 32
"""Tokens per delta without a pause: the rate at which an asyncio loop can be passed is no token
rate, and one delta per token would measure the loop instead of what is built around the engine."""
DIE_STATUS = 86
"""Exit status of a process that `[[die]]` ended."""
_LAST_WORDS_S = 0.05  # what was said before [[die]] shall have left the process

_WIDE = r"\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_WORD = re.compile(rf"\s*(?:[{_WIDE}]|[^\s{_WIDE}]+)|\s+")
"""A word with the space before it; a Chinese character is a word; so is space at the end."""
_COMMAND = re.compile(
    r"\[\[(?:(?P<act>fail|oom|hang|die|media)"
    r"|(?:tokens=(?P<tokens>\d{1,9}))?\s*(?:rate=(?P<rate>\d{1,9}(?:\.\d{1,9})?))?)\]\]"
)


@dataclass(frozen=True, slots=True)
class Script:
    """What one prompt makes the engine say and do.

    `words` are the answer's tokens, or None for the counted `tok1 tok2 …`; `length` how many there
    are; `rate` tokens per second, 0 without a pause; `burst` tokens per delta then; `ending` what
    happens after the last one: fail, oom, hang, die, or nothing.
    """

    words: tuple[str, ...] | None
    length: int
    rate: float = 0.0
    burst: int = 1
    ending: str = ""

    def text(self, start: int, end: int) -> str:
        """Return the tokens from `start` to `end`, counted from 0, as one text."""
        if self.words is None:
            return "".join(f" tok{n + 1}" if n else "tok1" for n in range(start, end))
        if end <= len(self.words):
            return "".join(self.words[start:end])
        return "".join(self.words[n % len(self.words)] for n in range(start, end))


def read_script(turns: tuple[Turn, ...]) -> Script:
    """Return what the last user text asks for."""
    text = _last_user_text(turns)
    commands = list(_COMMAND.finditer(text)) if "[[" in text else []
    acts = [c["act"] for c in commands if c["act"]]
    tokens = next((int(c["tokens"]) for c in commands if c["tokens"]), None)
    rate = next((float(c["rate"]) for c in commands if c["rate"]), 0.0)
    ending = next((act for act in acts if act != "media"), "")
    if tokens is not None:
        return Script(None, tokens, rate, BURST_TOKENS, ending)
    if "media" in acts:
        return Script((_media_as_json(turns),), 1, rate, 1, ending)
    words = () if ending else tuple(_WORD.findall(_COMMAND.sub("", text) if commands else text))
    return Script(words, len(words), rate, 1, ending)


def prompt_tokens(turns: tuple[Turn, ...]) -> int:
    """Count a prompt: its words, and PICTURE_TOKENS for every picture and frame."""
    return sum(_part_tokens(part) for turn in turns for part in turn.parts)


class EchoEngine:
    """Says what it is told, `slots` prompts at a time; further ones wait. Deterministic."""

    def __init__(self, model: str = "echo", *, slots: int = 256) -> None:
        self._model = model
        self._slot_count = slots
        self._slots = asyncio.Semaphore(slots)
        self._closing: asyncio.Future[None] | None = None

    async def start(self) -> ModelCard:
        """Be ready at once."""
        self._slots = asyncio.Semaphore(self._slot_count)
        self._closing = asyncio.get_running_loop().create_future()
        return ModelCard(
            model=self._model,
            engine="echo",
            backend="echo",
            context_tokens=CONTEXT_TOKENS,
            slots=self._slot_count,
            is_multimodal=True,
            takes_video=True,
            max_pixels=1_003_520,
            pixel_multiple=28,
            frame_max_pixels=200_704,
            options=frozenset(
                {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"}
                | {"ignore_eos"}
            ),
        )

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the script's answer, after what earlier attempts have emitted.

        Raises:
            ContextTooLong: prompt and max_tokens are over CONTEXT_TOKENS.
            EngineFailed, OutOfMemory: the prompt asked for it.
            EngineDied: the engine was closed meanwhile.
        """
        answer = _Answer(prompt)
        async with self._slots:
            started = time.monotonic()
            while answer.has_tokens:
                await self._pause(started, answer)
                yield answer.advance(self._due(started, answer))
            if answer.reached_ending:
                await self._come_to(answer.script.ending)
            yield answer.last()

    async def close(self) -> None:
        """End every prompt that is inside with EngineDied."""
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def _due(self, started: float, answer: "_Answer") -> int:
        """Return how many tokens of this attempt should be out by now."""
        if not answer.script.rate:
            return answer.fresh + answer.script.burst
        return max(int((time.monotonic() - started) * answer.script.rate), answer.fresh + 1)

    async def _pause(self, started: float, answer: "_Answer") -> None:
        """Wait for the next token's moment; tokens that are late come together."""
        if not answer.script.rate:
            await asyncio.sleep(0)
            self._refuse_if_closed()
            return
        moment = started + (answer.fresh + 1) / answer.script.rate
        await self._wait(max(0.0, moment - time.monotonic()))

    async def _come_to(self, ending: str) -> None:
        if ending == "fail":
            raise EngineFailed("the prompt said [[fail]]")
        if ending == "oom":
            raise OutOfMemory("the prompt said [[oom]]")
        if ending == "die":
            await self._wait(_LAST_WORDS_S)
            os._exit(DIE_STATUS)
        if ending == "hang":
            await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        await asyncio.wait({self._alive()}, timeout=seconds)
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self._alive().done():
            raise EngineDied("the echo engine was closed while it answered")

    def _alive(self) -> asyncio.Future[None]:
        if self._closing is None:
            raise EngineFailed("the echo engine was not started")
        return self._closing


class _Answer:
    """How far one prompt's answer has come. The tokens are 1, 2, 3 and so on."""

    def __init__(self, prompt: Prompt) -> None:
        self.script = read_script(prompt.turns)
        self._limit = prompt.options.max_tokens
        self._is_endless = prompt.options.ignore_eos and self.script.words != ()
        self._end = self._limit if self._is_endless else min(self.script.length, self._limit)
        self._emitted = self._position = len(prompt.emitted_ids)
        self._prompt_tokens = prompt_tokens(prompt.turns)
        self._text = AnswerText(prompt.options.stop, prompt.emitted_text)
        self._unsent = self._text.push(self.script.text(0, self._position))
        self._refuse_if_too_long()

    @property
    def fresh(self) -> int:
        """Tokens of this attempt so far."""
        return self._position - self._emitted

    @property
    def has_tokens(self) -> bool:
        """True while neither a stop text nor the script's or the options' end is reached."""
        return self._position < self._end and not self._text.is_stopped

    @property
    def reached_ending(self) -> bool:
        """True where the script was said to its end and nothing else ended it."""
        return self._position >= self.script.length and not self._text.is_stopped

    def advance(self, fresh: int) -> Delta:
        """Go on until `fresh` tokens of this attempt are out; return what is new."""
        start, self._position = self._position, min(self._emitted + fresh, self._end)
        text = self._unsent + self._text.push(self.script.text(start, self._position))
        self._unsent = ""
        return Delta(text, tuple(range(start + 1, self._position + 1)), self._prompt_tokens)

    def last(self) -> Delta:
        """Return the last delta: text that was held back, and why the answer ended."""
        is_whole = self._position >= self.script.length and not self._is_endless
        reason = "stop" if is_whole or self._text.is_stopped else "length"
        return Delta(self._unsent + self._text.finish(), (), self._prompt_tokens, reason)

    def _refuse_if_too_long(self) -> None:
        if self._prompt_tokens + self._limit > CONTEXT_TOKENS:
            raise ContextTooLong(
                f"the prompt has {self._prompt_tokens} tokens and max_tokens is {self._limit}: "
                f"together they must not be over {CONTEXT_TOKENS}"
            )


def _last_user_text(turns: tuple[Turn, ...]) -> str:
    for turn in reversed(turns):
        if turn.role == "user":
            return "".join(part for part in turn.parts if isinstance(part, str))
    return ""


def _part_tokens(part: Part) -> int:
    if isinstance(part, str):
        return len(_WORD.findall(part))
    return PICTURE_TOKENS * (len(part.frames) if isinstance(part, Clip) else 1)


def _media_as_json(turns: tuple[Turn, ...]) -> str:
    """Return the media in the order of the prompt; without spaces it is one token."""
    media = [_described(p) for turn in turns for p in turn.parts if not isinstance(p, str)]
    return json.dumps(media, separators=(",", ":"))


def _described(part: Picture | Clip) -> dict[str, Any]:
    if isinstance(part, Picture):
        return {"kind": "image", "width": part.width, "height": part.height, "sha256": part.sha256}
    first = part.frames[0]
    return {
        "kind": "video",
        "frames": len(part.frames),
        "times_s": list(part.times_s),
        "width": first.width,
        "height": first.height,
        "sha256": part.sha256,
    }
