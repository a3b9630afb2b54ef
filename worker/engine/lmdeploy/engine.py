"""The engine: what a prompt goes through, from turns to deltas.

    read (in another process) → check the length → wait for a seat → stream → leave the seat

Reading comes before the seat, so that a freed seat's next prompt is ready when its turn comes.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from worker.contract.errors import ContextTooLong, EngineDied, EngineFailed, JobError
from worker.engine.base import Counters, Delta, ModelCard, Prompt
from worker.engine.lmdeploy import options as ours
from worker.engine.lmdeploy.answering import Answering
from worker.engine.lmdeploy.grammar import response_format
from worker.engine.lmdeploy.models import hub_id
from worker.engine.picture_limits import picture_limits

if TYPE_CHECKING:
    from worker.engine.lmdeploy.backend import Backend
    from worker.engine.lmdeploy.readers import Readers
    from worker.engine.lmdeploy.reading import Read, ReaderSpec

DEFAULT_SLOTS = 256
FRAME_MAX_PIXELS = 200_704
"""448 × 448, the guide's tile; a video's frames are many, so each is small."""
READ_AHEAD = 8
"""Prompts per reading process that may be inside beyond the seats: read while they wait."""
_CLOSED = "the LMDeploy engine is closed"
MAX_READERS = 8
"""Reading processes at most where none are asked for; a picture takes one of them 5 to 13 ms."""


class LmdeployEngine:
    """Answers prompts on the GPUs that CUDA_VISIBLE_DEVICES shows, `slots` at a time.

    Arguments as in `worker.engine.EngineSpec`. `folder` may also be a hub id or one of the guide's
    names; `name` is what callers know the model as, the folder where not given.
    """

    def __init__(
        self,
        folder: str,
        *,
        name: str | None = None,
        backend: str = "auto",
        tp: int = 1,
        slots: int | None = None,
        context_tokens: int | None = None,
        readers: int | None = None,
        has_prefix_cache: bool = True,
        trust_remote_code: bool = False,
        decode: Callable[[bytes], NDArray[np.uint8]] | None = None,
    ) -> None:
        self._folder = folder
        self._name = name or folder
        self._backend_name = backend
        self._tp = tp
        self._slots = slots or DEFAULT_SLOTS
        self._context_tokens = context_tokens
        self._reader_count = readers or max(1, min(MAX_READERS, _cores() // 2))
        self._has_prefix_cache = has_prefix_cache
        self._trust_remote_code = trust_remote_code
        self._decode = decode
        self._opened: _Opened | None = None
        self._inside = 0
        self._left = asyncio.Event()

    async def start(self) -> ModelCard:
        """Load the model. Raises EngineFailed with a sentence that says what is missing."""
        from worker.engine.lmdeploy.readers import Readers  # noqa: PLC0415 - imports torch

        await self.close()
        folder = _fetched(hub_id(self._folder))
        readers = Readers(self._reader_count)
        async with AsyncExitStack() as unless_opened:
            unless_opened.push_async_callback(readers.close)
            await readers.start()  # first: they import while the model is loaded
            backend = self._backend(folder)
            unless_opened.callback(backend.close)
            await readers.open(self._reader_spec(folder, backend))
            defaults = ours.Defaults.in_folder(Path(folder))
            opened = _Opened(backend, readers, defaults, backend.eos_ids)
            card = self._card(opened)
            unless_opened.pop_all()
        self._opened = opened
        return card

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the answer. Closing the iterator takes the prompt out of the engine at once.

        Raises:
            ContextTooLong: prompt and max_tokens do not fit.
            OutOfMemory, EngineFailed, OptionUnsupported: this prompt alone failed.
            EngineDied: the engine is broken, or was closed meanwhile.
        """
        opened = self._living()
        read = await opened.readers.read(prompt.turns, prompt.options)
        self._check_length(prompt, len(read.token_ids), opened)
        answering = _answering(prompt, read, opened)
        if answering.is_over:
            yield answering.last()
            return
        emitted = () if ours.repeats(prompt) else prompt.emitted_ids
        handle = await self._seat(opened)
        self._inside += 1
        try:
            outputs = opened.backend.stream(
                handle,
                [*read.token_ids, *emitted],
                read.multimodal,
                _generation(prompt, read, opened, emitted=len(emitted)),
            )
            async with aclosing(outputs):
                async for sampled in outputs:
                    delta = answering.take(sampled)
                    yield delta
                    if delta.finish_reason:
                        return
                    if opened.is_closed:
                        raise EngineDied(_CLOSED)
        finally:
            self._inside -= 1
            self._left.set()
            opened.backend.leave(handle)

    async def counters(self) -> Counters:
        """Return LMDeploy's own counters."""
        return self._living().backend.counters()

    async def close(self) -> None:
        """Free the device. Prompts that are inside end with EngineDied."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        opened.is_closed = True
        await opened.readers.close()
        while self._inside:
            self._left.clear()
            await self._left.wait()
        opened.backend.close()

    async def _seat(self, opened: "_Opened") -> Any:
        """Wait for a handle. After `close` each waiter hands its on to the next, and raises."""
        handle = await opened.backend.seat()
        if self._opened is not opened:
            opened.backend.leave(handle)
            raise EngineDied(_CLOSED)
        return handle

    def _backend(self, folder: str) -> "Backend":
        """Open LMDeploy's engine. It blocks this loop, on which nothing else runs yet."""
        from worker.engine.lmdeploy.backend import Backend, BackendSpec  # noqa: PLC0415 - LMDeploy

        spec = BackendSpec(
            folder=folder,
            name=self._backend_name,
            tp=self._tp,
            slots=self._slots,
            context_tokens=self._context_tokens,
            has_prefix_cache=self._has_prefix_cache,
            trust_remote_code=self._trust_remote_code,
        )
        try:
            return Backend(spec, lambda: self._inside)
        except JobError:
            raise
        except Exception as error:  # each library that reads a checkpoint has errors of its own
            raise EngineFailed(
                f"LMDeploy cannot load {self._folder}: {reason_of(error)}"
            ) from error

    def _reader_spec(self, folder: str, backend: "Backend") -> "ReaderSpec":
        from worker.engine.lmdeploy.reading import ReaderSpec  # noqa: PLC0415 - imports LMDeploy

        return ReaderSpec(
            folder,
            backend.feature_dtype,
            self._trust_remote_code,
            self._decode,
            reasons=backend.reasons,
        )

    def _check_length(self, prompt: Prompt, prompt_tokens: int, opened: "_Opened") -> None:
        limit, asked = opened.backend.context_tokens, prompt.options.max_tokens
        if prompt_tokens + asked > limit:
            raise ContextTooLong(
                f"the prompt has {prompt_tokens} tokens and max_tokens is {asked}: together they "
                f"must not be over {limit}"
            )

    def _living(self) -> "_Opened":
        if self._opened is None:
            raise EngineDied(_CLOSED)
        return self._opened

    def _card(self, opened: "_Opened") -> ModelCard:
        from worker.engine.lmdeploy.reading import takes_video  # noqa: PLC0415 - imports LMDeploy

        backend = opened.backend
        max_pixels, multiple = picture_limits(getattr(backend.vision, "processor", None))
        sees = backend.vision is not None and self._decode is not None
        return ModelCard(
            model=self._name,
            engine="lmdeploy",
            backend=backend.name,
            context_tokens=backend.context_tokens,
            slots=backend.slots + READ_AHEAD * self._reader_count,
            is_multimodal=sees,
            takes_video=sees and takes_video(backend.vision),
            max_pixels=max_pixels,
            pixel_multiple=multiple,
            frame_max_pixels=min(max_pixels, FRAME_MAX_PIXELS),
            options=ours.honoured(
                has_logprobs=backend.has_logprobs, knows_tools=backend.knows_tools
            ),
            capacity_tokens=backend.capacity_tokens,
        )


@dataclass(slots=True)
class _Opened:
    """What exists while the engine is open."""

    backend: "Backend"
    readers: "Readers"
    defaults: ours.Defaults
    eos_ids: frozenset[int]
    is_closed: bool = False


def _answering(prompt: Prompt, read: "Read", opened: _Opened) -> Answering:
    return Answering(
        prompt,
        prompt_tokens=len(read.token_ids),
        eos_ids=opened.eos_ids,
        decode=opened.backend.decode,
        spell=opened.backend.spell,
        reasons=opened.backend.reasons,
        is_thinking=read.is_thinking,
        repeats=ours.repeats(prompt),
    )


def _generation(prompt: Prompt, read: "Read", opened: _Opened, *, emitted: int) -> dict[str, Any]:
    form = response_format(
        prompt.options, reasons=opened.backend.reasons, is_thinking=read.is_thinking
    )
    return ours.generation(
        prompt.options,
        opened.defaults,
        seed=prompt.seed,
        emitted=emitted,
        eos_ids=opened.eos_ids,
        vocabulary=opened.backend.vocabulary,
        max_top_k=opened.backend.max_top_k,
        response_format=form,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _fetched(name: str) -> str:
    """Return a folder as it is, and the folder into which a hub model was downloaded.

    Raises:
        EngineFailed: it cannot be had; a private model needs HF_TOKEN.
    """
    if Path(name).is_dir():
        return name
    from lmdeploy.utils import get_model  # noqa: PLC0415 - only for hub models

    try:
        return str(get_model(name))
    except Exception as error:  # the hub's client has a dozen classes of errors
        raise EngineFailed(
            f"{name} is no folder and cannot be fetched from the hub (a private model needs "
            f"HF_TOKEN): {reason_of(error)}"
        ) from error


def reason_of(error: Exception) -> str:
    """Return an error's first line, with our own word for what its others ask for."""
    said = str(error).strip() or type(error).__name__
    hint = "; --trust-remote-code runs that code" if "trust_remote_code=True" in said else ""
    return said.splitlines()[0].rstrip(" .") + hint
