"""The work of the chat lane: one attempt at one answer.

load the pictures → wait for room in the engine → generate, streaming
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from worker.batcher import Batcher, Room
from worker.contract.card import check_options
from worker.contract.errors import ExecutionTimeout, JobError
from worker.contract.job import ChatRequest, Hold, JobStatus, Message, Outcome, PreparedMedia
from worker.contract.s3 import ObjectStore
from worker.contract.store import Piece
from worker.engine.base import (
    Clip,
    Delta,
    EngineOptions,
    Part,
    Picture,
    Prompt,
    ToolCall,
    ToolUse,
    Turn,
)
from worker.stream import DeltaStream, Line
from worker.telling import call_objects

_SUSPECT_CRASHES = 2  # a job that was there when two engines died gets its last try alone
_PLAIN_OPTIONS = frozenset({
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop",
    "ignore_eos",
})  # fmt: skip


Answer = Callable[[Prompt, Callable[[Delta], None]], Awaitable[None]]
"""Gives the deltas of a prompt's answer to who takes them; see `EngineProcess.answer`."""


class ChatAttempt:
    """One attempt. `card` is the model's, as announced; `cost` a prompt's tokens at most."""

    def __init__(
        self,
        hold: Hold,
        *,
        answer: Answer,
        batcher: Batcher,
        stream: DeltaStream,
        objects: ObjectStore,
        card: dict[str, Any],
        cost: Callable[[Prompt], int],
        max_tokens: int,
        max_picture_bytes: int,
    ) -> None:
        self._hold = hold
        self._answer = answer
        self._batcher = batcher
        self._stream = stream
        self._objects = objects
        self._card = card
        self._cost = cost
        self._max_tokens = max_tokens
        self._max_picture_bytes = max_picture_bytes
        self._line: Line | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._tokens = 0
        self._prompt_tokens = 0
        self._finish_reason: str | None = None
        self._began_at: float | None = None  # monotonic

    async def work(self) -> None:
        """Generate the answer into the stream."""
        check_options(self._hold.request, self._card)
        prompt = await self._prompt()
        is_suspect = self._hold.crashes >= _SUSPECT_CRASHES
        goes_on = bool(self._hold.emitted_ids) and not is_suspect  # who would hold up all others
        cost = self._cost(prompt)
        async with self._batcher.room(cost, alone=is_suspect, first=goes_on) as room:
            self._began_at = time.monotonic()
            await self._generate(prompt, room)

    async def _generate(self, prompt: Prompt, room: Room) -> None:
        self._line = line = self._stream.begin(self._hold)

        def take(delta: Delta) -> None:
            line.add(delta)
            self._take(delta)
            room.is_now(self._prompt_tokens + prompt.options.max_tokens)

        timeout_s = self._hold.spec.timeout_s
        clock = asyncio.timeout(None if timeout_s is None else timeout_s - self._hold.ran_s)
        try:
            async with clock:
                await self._answer(prompt, take)
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise ExecutionTimeout(
                f"the job ran longer than its timeout_s of {timeout_s:g}"
            ) from error

    def _take(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._reasoning.append(delta.reasoning)
        self._calls += delta.tool_calls
        self._tokens += len(delta.token_ids)
        self._prompt_tokens = delta.prompt_tokens or self._prompt_tokens
        self._finish_reason = delta.finish_reason or self._finish_reason

    def outcome(self, status: JobStatus, error: JobError | None = None) -> Outcome:
        """Return how it ended: answer and counts over all attempts, time of this one."""
        runtime_s = time.monotonic() - self._began_at if self._began_at is not None else 0.0
        earlier = self._hold.emitted_tool_calls
        return Outcome(
            status=status,
            text=self._hold.emitted_text + "".join(self._texts),
            reasoning=self._hold.emitted_reasoning + "".join(self._reasoning),
            tool_calls=(
                *earlier,
                *call_objects(self._hold.job_id, len(earlier), self._calls),
            ),
            has_logprobs="logprobs" in self._hold.request.options,
            finish_reason=self._finish_reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._hold.emitted_ids) + self._tokens,
            runtime_s=round(runtime_s, 6),
            error=error.as_dict() if error else None,
        )

    async def unwritten(self) -> Sequence[Piece]:
        """Stop streaming; what is left goes with the job's end, in one step."""
        return await self._stream.end(self._line) if self._line is not None else ()

    async def hand_on(self) -> None:
        """Return None: an answer ends the job."""

    async def _prompt(self) -> Prompt:
        request = self._hold.request
        media = await asyncio.gather(*(self._load(item) for item in self._hold.media))
        return Prompt(
            key=f"{self._hold.job_id}.{self._hold.fence}",
            turns=tuple(_turn(message, media) for message in request.messages),
            options=engine_options(request, self._max_tokens),
            emitted_ids=self._hold.emitted_ids,
            emitted_text=self._hold.emitted_text,
            emitted_reasoning=self._hold.emitted_reasoning,
            emitted_calls=len(self._hold.emitted_tool_calls),
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


def _turn(message: Message, media: Sequence[Picture | Clip]) -> Turn:
    return Turn(
        message.role,
        tuple(_part(part, media) for part in message.parts),
        tuple(
            ToolCall(c["function"]["name"], c["function"]["arguments"]) for c in message.tool_calls
        ),
        message.tool_call_id,
        message.name,
    )


def _part(part: str | int, media: Sequence[Picture | Clip]) -> Part:
    return part if isinstance(part, str) else media[part]


def engine_options(request: ChatRequest, default_max_tokens: int) -> EngineOptions:
    """Return a request's options, OpenAI's names, as an engine takes them."""
    given = request.options
    plain = {name: given[name] for name in _PLAIN_OPTIONS & given.keys()}
    plain["stop"] = tuple(given.get("stop", ()))
    plain.setdefault("max_tokens", default_max_tokens)
    return EngineOptions(
        **plain,
        top_logprobs=given.get("top_logprobs", 0) if "logprobs" in given else None,
        json_schema=_json_schema(given.get("response_format")),
        tools=_tool_use(given),
    )


def _json_schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    if response_format is None:
        return None
    described = response_format.get("json_schema", {})
    schema: dict[str, Any] = described.get("schema", {"type": "object"})
    return schema


def _tool_use(given: dict[str, Any]) -> ToolUse | None:
    if "tools" not in given:
        return None
    choice = given.get("tool_choice", "auto")
    only = choice["function"]["name"] if isinstance(choice, dict) else None
    return ToolUse(
        functions=tuple(tool["function"] for tool in given["tools"]),
        must_call=choice != "auto",
        only=only,
        max_calls=1 if only or given.get("parallel_tool_calls") is False else None,
    )


def estimate_tokens(prompt: Prompt) -> int:
    """Return about how many tokens a prompt and its answer occupy at most, for admission.

    Three characters a token errs on the high side for most languages but Chinese, where a token is
    about one; a picture gives a token per 28 × 28 pixels (Qwen2-VL's, the finest in use).
    """
    total = prompt.options.max_tokens
    if prompt.options.tools is not None:
        total += len(repr(prompt.options.tools.functions)) // 3
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
