"""`/v1/completions`: prompts without roles. Each is one user turn, in the model's chat template."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from worker.contract import choices
from worker.contract.body import ChatMessage, JobBody
from worker.contract.choices import ChoicesBody, JobView
from worker.contract.events import Event


class CompletionBody(ChoicesBody):
    """The body of a completion: one prompt, or several that are answered on their own."""

    example: ClassVar[dict[str, Any]] = {"prompt": "There are four sheep on the"}
    neutral = ChoicesBody.neutral | {
        "echo": (False,),
        "suffix": ("",),
        "tools": ([],),
        "tool_choice": ("none",),
        "top_logprobs": (),  # here `logprobs` is their number
    }

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=choices.MAX_CHOICES)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None  # type: ignore[assignment]  # a number here, a flag in chat
    echo: bool | None = None
    suffix: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_text(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(isinstance(part, int | list) for part in prompt):
            raise ValueError("token ids are not taken; send the prompt as text")
        return prompt


def to_jobs(body: CompletionBody) -> list[JobBody]:
    """Return the job of each prompt, of which every one has n choices.

    Raises OptionUnsupported, and InvalidRequest for too many choices.
    """
    body.refuse_unless_neutral()
    fields = choices.shared_fields(body)
    if body.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": body.logprobs}
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    jobs = [JobBody.model_construct(messages=[_turn(text)], **fields) for text in prompts]
    choices.check_total(jobs, body.n)
    return jobs


def _turn(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def completion(*jobs: JobView, n: int = 1) -> dict[str, Any]:
    """Return the `text_completion` that ended jobs are: n in a row for each prompt."""
    listed = [_whole(number, job) for number, job in enumerate(jobs)]
    return _envelope(jobs[0], listed) | {"usage": choices.usage(jobs, n)}


def _envelope(first: JobView, listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": choices.answer_id("cmpl-", first),
        "object": "text_completion",
        "created": int(first["created_at"]),
        "model": first["model"],
        "choices": listed,
        "system_fingerprint": None,
    }


def _whole(number: int, job: JobView) -> dict[str, Any]:
    output = job["output"]
    logprobs = _logprobs((output.get("logprobs") or {}).get("content", ()))
    return _choice(number, output["text"], logprobs, choices.finish_reason(job))


def _choice(
    number: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(tokens: Sequence[dict[str, Any]], offset: int = 0) -> dict[str, Any] | None:
    """Return logprobs in this call's older form: lists side by side, and where tokens begin."""
    if not tokens:
        return None
    texts = [token["token"] for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens
        ],
        "text_offset": list(accumulate(map(len, texts), initial=offset))[: len(texts)],
    }


@dataclass(slots=True)
class Chunks:
    """The pieces of a streamed completion, made from its jobs' events.

    `offsets` is where each choice's text has come to, in characters.
    """

    first_job: JobView
    includes_usage: bool = False
    n: int = 1
    offsets: Counter[int] = field(default_factory=Counter)

    def begin(self, number: int) -> dict[str, Any]:
        """Return a choice's first chunk, which is empty: the stream has begun."""
        return self._chunk(_choice(number, "", None, None))

    def delta(self, number: int, event: Event) -> dict[str, Any] | None:
        """Return the chunk of a delta event, None where it has nothing to show yet."""
        said = event.said
        if not said.text and not said.logprobs:
            return None
        logprobs = _logprobs(said.logprobs, self.offsets[number])
        self.offsets[number] += len(said.text)
        return self._chunk(_choice(number, said.text, logprobs, None))

    def end(self, number: int, job: JobView) -> dict[str, Any]:
        """Return a choice's last chunk: why it ended."""
        return self._chunk(_choice(number, "", None, choices.finish_reason(job)))

    def usage(self, jobs: list[JobView]) -> dict[str, Any]:
        """Return the chunk without choices that counts the tokens of all jobs."""
        return _envelope(self.first_job, []) | {"usage": choices.usage(jobs, self.n)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = _envelope(self.first_job, [choice])
        return chunk | {"usage": None} if self.includes_usage else chunk
