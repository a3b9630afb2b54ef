"""What OpenAI's chat and completions have in common: n choices, and options with one fair value."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker.contract.body import MAX_SEED, JobBody, QuestionBody
from worker.contract.errors import InvalidRequest, OptionUnsupported
from worker.contract.job import ChatRequest

MAX_CHOICES = 128  # OpenAI's own limit of n

JobView = Mapping[str, Any]
"""The job object, as polls have it."""


class StreamOptions(BaseModel):
    """`include_usage`: one more chunk with the token counts, before the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers; there is never any


_INSTEAD = {
    "presence_penalty": "repetition_penalty",
    "frequency_penalty": "repetition_penalty",
    "service_tier": "priority",
}


def without_nulls(body: Any) -> Any:
    """Return a body without the fields that are null; what is no object, as it is."""
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if value is not None}


def _document(schema: dict[str, Any], kind: type[BaseModel]) -> None:
    """Say in the OpenAPI document which values of an option are taken, and show a body."""
    assert issubclass(kind, ChoicesBody)  # noqa: S101 - whose configuration this is
    for name, values in kind.neutral.items():
        schema["properties"][name]["enum"] = [*values, None]
    schema["examples"] = [kind.example]


class ChoicesBody(QuestionBody):
    """The fields of both calls. A null is a field that was not given, as OpenAI has it.

    `neutral` are the options that no engine here has, with the values at which they change nothing.
    """

    model_config = ConfigDict(json_schema_extra=_document)

    example: ClassVar[dict[str, Any]] = {}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "num_beams": (1,),
        "length_penalty": (1,),
        "best_of": (1,),
        "audios": ([],),
    }

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=MAX_SEED)
    user: str | None = Field(None, max_length=512)
    on_disconnect: Literal["cancel", "continue"] | None = None

    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # These two are sent by clients of ms-swift, always.
    num_beams: int | None = None
    length_penalty: float | None = None
    best_of: int | None = None
    audios: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        return without_nulls(body)

    @model_validator(mode="after")
    def _stream_options_belong_to_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream=true")
        return self

    def refuse_unless_neutral(self) -> None:
        """Raise OptionUnsupported for an option that would have to change the answer."""
        for name, values in self.neutral.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                told = f"send {values[0]!r} or leave it out" if values else "leave it out"
                instead = f"; there is {_INSTEAD[name]}" if name in _INSTEAD else ""
                raise OptionUnsupported(f"{name} is not supported: {told}{instead}", param=name)

    @property
    def includes_usage(self) -> bool:
        """True where the stream shall end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


def shared_fields(body: ChoicesBody) -> dict[str, Any]:
    """Return what a body has in common with a job's, for `JobBody.model_construct`."""
    fields = {name: getattr(body, name) for name in QuestionBody.model_fields}
    if body.seed is not None:
        fields["seed"] = body.seed & MAX_SEED  # OpenAI's seeds may be negative
    return fields


def variants(question: ChatRequest, n: int) -> list[ChatRequest]:
    """Return the question once per choice, each with a seed of its own where one was given.

    The first keeps the given seed, so that n=1 and the first of many give the same answer.
    """
    seed = question.options.get("seed")
    if seed is None:
        return [question] * n
    options = [question.options | {"seed": _derived(seed, number)} for number in range(n)]
    return [replace(question, options=one) for one in options]


def _derived(seed: int, number: int) -> int:
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8]) & MAX_SEED


def check_total(questions: Sequence[JobBody], n: int) -> None:
    """Raise InvalidRequest where prompts × n are more choices than one request may have."""
    if len(questions) * n > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(questions)} prompts × n={n} choices; the limit is {MAX_CHOICES}", param="n"
        )


# --- what comes back ------------------------------------------------------------------------------


def finish_reason(job: JobView) -> str:
    """Return why a choice ended. A cancel cuts an answer, which in these calls is a length."""
    return str(job["output"]["finish_reason"] or "length")


def usage(jobs: Sequence[JobView], n: int = 1) -> dict[str, int]:
    """Return the token counts of a call: n jobs in a row share a prompt, which counts once."""
    counts = [job["usage"] or {"prompt_tokens": 0, "completion_tokens": 0} for job in jobs]
    prompt = sum(max(c["prompt_tokens"] for c in counts[i : i + n]) for i in range(0, len(jobs), n))
    completion = sum(count["completion_tokens"] for count in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def answer_id(prefix: str, job: JobView) -> str:
    """Return the id that a call's answer has: the first job's, under OpenAI's prefix."""
    return prefix + str(job["id"]).removeprefix("job_")
