"""An engine without a model: it says what the prompt tells it to, for users' own tests.

The commands are in `script`. Every token has a made-up logprob, the same each time.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator

from worker.contract.errors import ContextTooLong, EngineDied, EngineFailed, OutOfMemory
from worker.engine.base import Counters, Delta, ModelCard, Prompt, TokenLogprob
from worker.engine.channels import Channels, Words
from worker.engine.script import prompt_tokens, read_script, shaped

CONTEXT_TOKENS = 131_072
DIE_STATUS = 86
"""Exit status of a process that `[[die]]` ended."""
_LAST_WORDS_S = 0.05  # what was said before [[die]] shall have left the process


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
                | {"ignore_eos", "logprobs", "top_logprobs", "response_format"}
                | {"tools", "tool_choice", "parallel_tool_calls"}
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

    async def counters(self) -> Counters:
        """Return how many prompts have a slot and how many wait for one."""
        taken = self._slot_count - self._slots._value  # noqa: SLF001 - asyncio tells it no other way
        return Counters(taken, len(self._slots._waiters or ()), taken)  # noqa: SLF001

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
        if ending == "starve":
            raise EngineDied("the prompt said [[starve]]") from MemoryError()
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
        options = prompt.options
        self.script = shaped(read_script(prompt.turns), prompt.turns, options)
        self._limit = options.max_tokens
        self._top_logprobs = options.top_logprobs
        is_shaped = options.json_schema is not None or options.tools is not None
        self._is_endless = options.ignore_eos and self.script.words != () and not is_shaped
        self._end = self._limit if self._is_endless else min(self.script.length, self._limit)
        self._emitted = self._position = len(prompt.emitted_ids)
        self._prompt_tokens = prompt_tokens(prompt.turns)
        self._channels = Channels(prompt, reasons=bool(self.script.thought))
        self._unsent = self._channels.push(self.script.text(0, self._position))
        self._refuse_if_too_long()

    @property
    def fresh(self) -> int:
        """Tokens of this attempt so far."""
        return self._position - self._emitted

    @property
    def has_tokens(self) -> bool:
        """True while neither a stop text nor the script's or the options' end is reached."""
        return self._position < self._end and not self._channels.is_stopped

    @property
    def reached_ending(self) -> bool:
        """True where the script was said to its end and nothing else ended it."""
        return self._position >= self.script.length and not self._channels.is_stopped

    def advance(self, fresh: int) -> Delta:
        """Go on until `fresh` tokens of this attempt are out; return what is new."""
        start, self._position = self._position, min(self._emitted + fresh, self._end)
        words = self._unsent + self._channels.push(self.script.text(start, self._position))
        self._unsent = Words()
        return self._delta(words, range(start, self._position))

    def last(self) -> Delta:
        """Return the last delta: text that was held back, and why the answer ended."""
        is_whole = self._position >= self.script.length and not self._is_endless
        is_stopped = self._channels.is_stopped
        words = self._unsent + self._channels.finish()
        reason = self._channels.reason("stop" if is_whole or is_stopped else "length")
        return self._delta(words, range(0))._replace(finish_reason=reason)

    def _delta(self, words: Words, places: range) -> Delta:
        """Return what is said with the tokens at these places, counted from 0."""
        top = self._top_logprobs
        return Delta(
            words.text,
            tuple(place + 1 for place in places),
            self._prompt_tokens,
            reasoning=words.reasoning,
            tool_calls=words.tool_calls,
            logprobs=() if top is None else tuple(self._logprob(at, top) for at in places),
        )

    def _logprob(self, place: int, top: int) -> TokenLogprob:
        """Make up a token's logprob: it is the likeliest, `alt1` comes next, and so on."""
        data = self.script.text(place, place + 1).encode()
        logprob = -(place * 37 % 100 + 1) / 100
        others = (TokenLogprob(f"alt{n}".encode(), logprob - n) for n in range(1, top))
        likeliest = (TokenLogprob(data, logprob), *others) if top else ()
        return TokenLogprob(data, logprob, likeliest)

    def _refuse_if_too_long(self) -> None:
        if self._prompt_tokens + self._limit > CONTEXT_TOKENS:
            raise ContextTooLong(
                f"the prompt has {self._prompt_tokens} tokens and max_tokens is {self._limit}: "
                f"together they must not be over {CONTEXT_TOKENS}"
            )
