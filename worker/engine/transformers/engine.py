"""The engine itself: slots, threads, and what a prompt goes through in them.

One thread and one seat (a copy of the model's modules on shared weights) per prompt inside. Threads
suit it: torch works outside the interpreter's lock. The cores are divided among the slots for good:
with 40 M and 180 M parameters on two cores, a lone prompt with one thread was as fast as with two,
and four with two each took half as long again as four with one each.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList, StoppingCriteriaList

from worker.contract.errors import ContextTooLong, EngineDied, EngineFailed, OutOfMemory
from worker.engine.base import Counters, Delta, ModelCard, Prompt
from worker.engine.transformers.answering import Answering, Ears, ears_for
from worker.engine.transformers.checkpoint import Checkpoint, open_checkpoint
from worker.engine.transformers.layout import Layout
from worker.engine.transformers.sampling import Sampling

DEFAULT_SLOTS = 4
FRAME_MAX_PIXELS = 200_704
"""448 × 448, the guide's tile; a video's frames are many, so each is small."""
OPTIONS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "ignore_eos"}
)
SPELLED_OPTIONS = frozenset({"logprobs", "top_logprobs", "response_format"})
"""What takes an alphabet: nearly every tokenizer has one."""
TOOL_OPTIONS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
_CLOSED = "the transformers engine is closed"
_CORES = torch.get_num_threads()
"""What torch found before anybody set it, OMP_NUM_THREADS included."""


class TransformersEngine:
    """Answers prompts on the CPU, `slots` at a time; further ones wait.

    Args:
        folder: a checkpoint folder, or a hub id in the local cache.
        name: what callers know the model as; the folder where not given.
        slots: prompts inside at once, DEFAULT_SLOTS where None.
        context_tokens: upper bound of prompt + answer below the model's own.
        threads: cores per prompt; None: the machine's, or OMP_NUM_THREADS, divided by the slots.
        decode: opens a picture's bytes as uint8 (height, width, 3) RGB; None: pictures are refused.
    """

    def __init__(
        self,
        folder: str,
        *,
        name: str | None = None,
        slots: int | None = None,
        context_tokens: int | None = None,
        threads: int | None = None,
        decode: Callable[[bytes], NDArray[np.uint8]] | None = None,
    ) -> None:
        self._folder = folder
        self._name = name or folder
        self._slots = slots or DEFAULT_SLOTS
        self._context_limit = context_tokens
        self._threads = threads or max(1, _CORES // self._slots)
        self._decode = decode
        self._running: set[_Run] = set()
        self._opened: _Opened | None = None

    async def start(self) -> ModelCard:
        """Load the model. Raises EngineFailed with a sentence that says what is missing."""
        await self.close()
        pool = ThreadPoolExecutor(
            self._slots, "generate", initializer=torch.set_num_threads, initargs=(self._threads,)
        )
        loop = asyncio.get_running_loop()
        try:
            checkpoint = await loop.run_in_executor(pool, open_checkpoint, self._folder)
        except BaseException:
            pool.shutdown(wait=False)
            raise
        seats: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(self._slots):
            seats.put_nowait(checkpoint.seat())
        self._opened = _Opened(checkpoint, Layout(checkpoint, self._decode), pool, seats)
        return self._card(checkpoint)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the answer. Closing the iterator returns when the prompt's thread has left it.

        Raises:
            ContextTooLong: prompt and max_tokens do not fit.
            OutOfMemory, EngineFailed: this prompt alone failed.
            EngineDied: the engine was closed meanwhile.
        """
        if (opened := self._opened) is None:
            raise EngineDied(_CLOSED)
        run = _Run(self, opened, await self._seat(opened), prompt)
        done = self._begin(run, opened)
        is_whole = False
        try:
            while (delta := await run.deltas.get()) is not None:
                is_whole = delta.finish_reason is not None
                yield delta
            done.result()
            if not is_whole:
                raise EngineDied(_CLOSED)
        finally:
            run.cancel()
            await asyncio.wait({done})

    async def counters(self) -> Counters:
        """Return how many prompts have a seat. Who waits for one is not counted."""
        if (opened := self._opened) is None:
            raise EngineDied(_CLOSED)
        return Counters(len(self._running), 0, self._slots - opened.seats.qsize())

    async def close(self) -> None:
        """Free the model. Prompts that are inside end with EngineDied after the token in work."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        for run in self._running:
            run.cancel()
        await asyncio.get_running_loop().run_in_executor(None, opened.pool.shutdown)

    def context_tokens(self, checkpoint: Checkpoint) -> int:
        """Return what prompt and answer may have together."""
        return min(checkpoint.context_tokens, self._context_limit or checkpoint.context_tokens)

    async def _seat(self, opened: "_Opened") -> Any:
        seat = await opened.seats.get()
        if self._opened is not opened:
            opened.seats.put_nowait(seat)  # whoever waits next must learn it as well
            raise EngineDied(_CLOSED)
        return seat

    def _begin(self, run: "_Run", opened: "_Opened") -> asyncio.Future[None]:
        """Start the prompt's thread. Its end, and not the reader's, gives the seat to the next."""
        self._running.add(run)
        done = asyncio.get_running_loop().run_in_executor(opened.pool, run.work)

        def leave(left: asyncio.Future[None]) -> None:
            left.exception()  # seen, although a reader that is gone never asks for the result
            self._running.discard(run)
            opened.seats.put_nowait(run.seat)
            run.deltas.put_nowait(None)

        done.add_done_callback(leave)
        return done

    def _card(self, checkpoint: Checkpoint) -> ModelCard:
        is_multimodal = checkpoint.processor is not None and self._decode is not None
        return ModelCard(
            model=self._name,
            engine="transformers",
            backend="cpu",
            context_tokens=self.context_tokens(checkpoint),
            slots=self._slots,
            is_multimodal=is_multimodal,
            takes_video=is_multimodal,
            max_pixels=checkpoint.max_pixels,
            pixel_multiple=checkpoint.pixel_multiple,
            frame_max_pixels=min(checkpoint.max_pixels, FRAME_MAX_PIXELS),
            options=options_of(checkpoint),
        )


def options_of(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the options that can be honoured with a checkpoint."""
    spelled = SPELLED_OPTIONS if checkpoint.alphabet is not None else frozenset()
    return OPTIONS | spelled | (TOOL_OPTIONS if checkpoint.knows_tools else frozenset())


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists while the engine is open."""

    checkpoint: Checkpoint
    layout: Layout
    pool: ThreadPoolExecutor
    seats: asyncio.Queue[Any]
    laying_out: threading.Lock = field(default_factory=threading.Lock)


class _Run:
    """One prompt on its way through a thread. `deltas` ends with None when the thread has left."""

    def __init__(
        self, engine: TransformersEngine, opened: _Opened, seat: Any, prompt: Prompt
    ) -> None:
        self.seat = seat
        self.deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._engine = engine
        self._opened = opened
        self._prompt = prompt
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End after the token in work. From any thread."""
        self._cancelled.set()

    def work(self) -> None:
        """Answer the prompt, in this thread."""
        try:
            self._work()
        except MemoryError as error:
            raise OutOfMemory("the prompt does not fit into this machine's memory") from error
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if "can't allocate memory" in str(error):  # torch's own allocator raises RuntimeError
                raise OutOfMemory("the prompt does not fit into this machine's memory") from error
            raise EngineFailed(f"the model failed on this prompt: {error}") from error

    def _work(self) -> None:
        with self._opened.laying_out:
            laid_out = self._opened.layout.lay_out(self._prompt)
        self._refuse_if_too_long(laid_out.length)
        ears = ears_for(self._prompt, self._opened.checkpoint, is_thinking=laid_out.is_thinking)
        answering = self._answering(ears, laid_out.length)
        if answering.is_over or self._cancelled.is_set():
            return
        sampling = Sampling.of(self._prompt, self._opened.checkpoint.sampling)
        steps = [step for step in (ears.watching, ears.constraint) if step is not None]
        self.seat.generate(
            **laid_out.tensors,
            max_new_tokens=answering.left,
            logits_processor=LogitsProcessorList([*steps, *sampling.processors(laid_out.length)]),
            stopping_criteria=StoppingCriteriaList([answering]),
        )

    def _answering(self, ears: Ears, prompt_tokens: int) -> Answering:
        tokenizer = self._opened.checkpoint.tokenizer
        return Answering(
            self._prompt,
            ears,
            prompt_tokens=prompt_tokens,
            eos_ids=self._opened.checkpoint.eos_ids,
            decode=partial(
                tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
            report=self._report,
            is_cancelled=self._cancelled.is_set,
        )

    def _report(self, delta: Delta) -> None:
        self._loop.call_soon_threadsafe(self.deltas.put_nowait, delta)

    def _refuse_if_too_long(self, prompt_tokens: int) -> None:
        limit = self._engine.context_tokens(self._opened.checkpoint)
        max_tokens = self._prompt.options.max_tokens
        if prompt_tokens + max_tokens > limit:
            raise ContextTooLong(
                f"the prompt has {prompt_tokens} tokens with its pictures and max_tokens is "
                f"{max_tokens}: together they must not be over {limit}"
            )
