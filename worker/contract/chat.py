"""`/v1/chat/completions`: the body as OpenAI's client sends it, and jobs as it reads them.

Pure: the HTTP door and the lines of a batch use the same functions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from worker.contract import choices
from worker.contract.body import JobBody, Messages
from worker.contract.choices import ChoicesBody, JobView
from worker.contract.events import Event
from worker.contract.job import Said


class ChatBody(ChoicesBody):
    """The body of a chat completion: OpenAI's fields, ms-swift's, and the queue's own."""

    example: ClassVar[dict[str, Any]] = {
        "messages": [{"role": "user", "content": "How many sheep are there?"}],
        "images": ["https://example.com/sheep.png"],
    }
    neutral = ChoicesBody.neutral | {
        "service_tier": ("auto", "default"),
        "modalities": (["text"],),
        "verbosity": ("medium",),
        "reasoning_effort": (),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "moderation": (),
        "functions": ([],),
        "function_call": ("none",),
    }

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)

    # Where it is kept and who pays: nothing here depends on them.
    store: bool | None = None
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = Field(None, max_length=512)

    service_tier: str | None = None
    modalities: list[str] | None = None
    verbosity: str | None = None
    reasoning_effort: str | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_answers_back(cls, body: Any) -> Any:
        """Let an answer's message be sent again as it was read, with fields that are null."""
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return body
        return body | {"messages": [_as_sent(message) for message in body["messages"]]}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise ValueError("max_tokens and max_completion_tokens are one limit: give either")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self


def _as_sent(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    # `content` is null beside tool calls. What the model thought is not part of a history.
    return {
        name: value
        for name, value in message.items()
        if name == "content" or (value is not None and name != "reasoning_content")
    }


def to_job(body: ChatBody) -> JobBody:
    """Return the job that one choice is. Raises OptionUnsupported."""
    body.refuse_unless_neutral()
    fields = choices.shared_fields(body)
    fields["max_tokens"] = body.max_tokens or body.max_completion_tokens
    return JobBody.model_construct(messages=body.messages, **fields)


def completion(*jobs: JobView) -> dict[str, Any]:
    """Return the `chat.completion` that ended jobs are, one choice each."""
    first = jobs[0]
    return {
        "id": choices.answer_id("chatcmpl-", first),
        "object": "chat.completion",
        "created": int(first["created_at"]),
        "model": first["model"],
        "choices": [_choice(number, job) for number, job in enumerate(jobs)],
        "usage": choices.usage(jobs, len(jobs)),
        "system_fingerprint": None,
    }


def _choice(number: int, job: JobView) -> dict[str, Any]:
    output = job["output"]
    message = {"role": "assistant", "content": output["text"], "refusal": None}
    if calls := output.get("tool_calls"):
        message |= {"tool_calls": calls, "content": output["text"] or None}
    if reasoning := output.get("reasoning"):
        message["reasoning_content"] = reasoning
    return {
        "index": number,
        "message": message,
        "logprobs": _logprobs((output.get("logprobs") or {}).get("content")),
        "finish_reason": choices.finish_reason(job),
    }


def _logprobs(content: Sequence[Any] | None) -> dict[str, Any] | None:
    return {"content": list(content), "refusal": None} if content else None


@dataclass(slots=True)
class Chunks:
    """The `chat.completion.chunk`s of one call, made from its jobs' events.

    Every delta has a content, if only "": clients print `choices[0].delta.content` unlooked.
    `calls` counts the tools that each choice has called so far.
    """

    first_job: JobView
    includes_usage: bool = False
    calls: Counter[int] = field(default_factory=Counter)

    def begin(self, number: int) -> dict[str, Any]:
        """Return a choice's first chunk: who speaks."""
        return self._chunk(number, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, number: int, event: Event) -> dict[str, Any] | None:
        """Return the chunk of a delta event, None where it has nothing to show yet."""
        said = event.said
        if said == Said():
            return None
        delta: dict[str, Any] = {"content": said.text}
        if said.reasoning:
            delta["reasoning_content"] = said.reasoning
        if said.tool_calls:
            delta["tool_calls"] = [self._numbered(number, call) for call in said.tool_calls]
        return self._chunk(number, delta, _logprobs(said.logprobs))

    def _numbered(self, number: int, call: dict[str, Any]) -> dict[str, Any]:
        self.calls[number] += 1
        return {"index": self.calls[number] - 1, **call}

    def end(self, number: int, job: JobView) -> dict[str, Any]:
        """Return a choice's last chunk: why it ended."""
        return self._chunk(number, {"content": ""}, reason=choices.finish_reason(job))

    def usage(self, jobs: list[JobView]) -> dict[str, Any]:
        """Return the chunk without choices that counts the tokens of all jobs."""
        return self._frame([]) | {"usage": choices.usage(jobs, len(jobs))}

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._frame([choice])

    def _frame(self, listed: list[dict[str, Any]]) -> dict[str, Any]:
        frame: dict[str, Any] = {
            "id": choices.answer_id("chatcmpl-", self.first_job),
            "object": "chat.completion.chunk",
            "created": int(self.first_job["created_at"]),
            "model": self.first_job["model"],
            "choices": listed,
            "system_fingerprint": None,
        }
        return frame | {"usage": None} if self.includes_usage else frame
