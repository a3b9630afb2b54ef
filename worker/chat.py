"""The work of the chat lane: one attempt at one answer.

load the pictures → wait for room in the engine → generate, streaming
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

from worker.batcher import Batcher
from worker.contract.errors import ExecutionTimeout, JobError
from worker.contract.job import ChatRequest, Hold, JobStatus, Outcome, PreparedMedia
from worker.contract.s3 import ObjectStore
from worker.contract.store import Piece
from worker.engine.base import (
    Clip,
    Delta,
    Engine,
    EngineOptions,
    Part,
    Picture,
    Prompt,
    Turn,
)
from worker.stream import DeltaStream

_SUSPECT_CRASHES = 2  # a job that was there when two engines died gets its last try alone
_PLAIN_OPTIONS = frozenset({
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop",
    "ignore_eos",
})  # fmt: skip


class ChatAttempt:
    """One attempt. `cost` tells how many tokens a prompt occupies at most."""

    def __init__(
        self,
        hold: Hold,
        *,
        engine: Engine,
        batcher: Batcher,
        stream: DeltaStream,
        objects: ObjectStore,
        cost: Callable[[Prompt], int],
        max_tokens: int,
        max_picture_bytes: int,
    ) -> None:
        self._hold = hold
        self._engine = engine
        self._batcher = batcher
        self._stream = stream
        self._objects = objects
        self._cost = cost
        self._max_tokens = max_tokens
        self._max_picture_bytes = max_picture_bytes
        self._texts: list[str] = []
        self._tokens = 0
        self._prompt_tokens = 0
        self._finish_reason: str | None = None
        self._began_at: float | None = None  # monotonic

    async def work(self) -> None:
        """Generate the answer into the stream."""
        prompt = await self._prompt()
        is_suspect = self._hold.crashes >= _SUSPECT_CRASHES
        goes_on = bool(self._hold.emitted_ids) and not is_suspect  # who would hold up all others
        async with self._batcher.room(self._cost(prompt), alone=is_suspect, first=goes_on):
            self._stream.begin(self._hold)
            self._began_at = time.monotonic()
            await self._generate(prompt)

    async def _generate(self, prompt: Prompt) -> None:
        timeout_s = self._hold.spec.timeout_s
        clock = asyncio.timeout(None if timeout_s is None else timeout_s - self._hold.ran_s)
        try:
            async with clock, aclosing(self._engine.generate(prompt)) as deltas:
                async for delta in deltas:
                    self._take(delta)
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise ExecutionTimeout(
                f"the job ran longer than its timeout_s of {timeout_s:g}"
            ) from error

    def _take(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._tokens += len(delta.token_ids)
        self._prompt_tokens = delta.prompt_tokens or self._prompt_tokens
        self._finish_reason = delta.finish_reason or self._finish_reason
        self._stream.add(self._hold, delta)

    def outcome(self, status: JobStatus, error: JobError | None = None) -> Outcome:
        """Return how it ended: text and counts over all attempts, time of this one."""
        runtime_s = time.monotonic() - self._began_at if self._began_at is not None else 0.0
        return Outcome(
            status=status,
            text=self._hold.emitted_text + "".join(self._texts),
            finish_reason=self._finish_reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._hold.emitted_ids) + self._tokens,
            runtime_s=round(runtime_s, 6),
            error=error.as_dict() if error else None,
        )

    async def unwritten(self) -> Sequence[Piece]:
        """Stop streaming; what is left goes with the job's end, in one step."""
        return await self._stream.end(self._hold)

    async def hand_on(self) -> None:
        """Return None: an answer ends the job."""

    async def _prompt(self) -> Prompt:
        request = self._hold.request
        media = await asyncio.gather(*(self._load(item) for item in self._hold.media))
        turns = tuple(
            Turn(message.role, tuple(_part(part, media) for part in message.parts))
            for message in request.messages
        )
        return Prompt(
            key=f"{self._hold.job_id}.{self._hold.fence}",
            turns=turns,
            options=engine_options(request, self._max_tokens),
            emitted_ids=self._hold.emitted_ids,
            emitted_text=self._hold.emitted_text,
        )

    async def _load(self, media: PreparedMedia) -> Picture | Clip:
        frames = await asyncio.gather(
            *(
                self._objects.get_bytes(frame.object_key, self._max_picture_bytes)
                for frame in media.frames
            )
        )
        pictures = tuple(
            Picture(data, frame.width, frame.height, media.sha256)
            for data, frame in zip(frames, media.frames, strict=True)
        )
        return pictures[0] if media.times_s is None else Clip(pictures, media.times_s, media.sha256)


def _part(part: str | int, media: Sequence[Picture | Clip]) -> Part:
    return part if isinstance(part, str) else media[part]


def engine_options(request: ChatRequest, default_max_tokens: int) -> EngineOptions:
    """Return a request's options for an engine; those that only some engines take in `extra`."""
    given = request.options
    plain = {name: given[name] for name in _PLAIN_OPTIONS & given.keys()}
    plain["stop"] = tuple(given.get("stop", ()))
    plain.setdefault("max_tokens", default_max_tokens)
    extra = {name: value for name, value in given.items() if name not in _PLAIN_OPTIONS}
    return EngineOptions(**plain, extra=extra)


def estimate_tokens(prompt: Prompt) -> int:
    """Return about how many tokens a prompt and its answer occupy at most, for admission.

    Three characters a token errs on the high side for most languages but Chinese, where a token is
    about one; a picture gives a token per 28 × 28 pixels (Qwen2-VL's, the finest in use).
    """
    total = prompt.options.max_tokens
    for turn in prompt.turns:
        for part in turn.parts:
            match part:
                case str():
                    total += len(part.encode()) // 3 + 1
                case Picture():
                    total += _picture_tokens(part)
                case Clip(frames):
                    total += sum(map(_picture_tokens, frames))
    return total


def _picture_tokens(picture: Picture) -> int:
    return picture.width * picture.height // (28 * 28) + 2
