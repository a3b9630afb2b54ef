"""HTTP-only views, for the OpenAPI document. Responses are made by `contract.view`."""

from typing import Any, Literal

from pydantic import BaseModel

from api.errors import ErrorView

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorView}
    for code in (400, 401, 404, 405, 408, 409, 410, 413, 415, 416, 429, 500, 503)
}  # fmt: skip


class Output(BaseModel):
    """An answer, or what there is of it; the last three only where there is something to say."""

    text: str
    finish_reason: str | None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, list[dict[str, Any]]] | None = None


class JobView(BaseModel):
    """A job. Moments are seconds since the epoch; fields that do not apply yet are null."""

    id: str
    object: str
    status: str
    stage: str | None
    model: str
    priority: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    attempt: int
    attempts: list[dict[str, Any]]
    queue_position: int | None
    eta_s: float | None
    cancel_requested: bool
    progress: dict[str, int]
    output: Output
    history: list[list[str]] | None
    usage: dict[str, int] | None
    generation_info: dict[str, float] | None
    timings: dict[str, float | None]
    media: list[dict[str, Any]]
    error: dict[str, str | None] | None
    metadata: dict[str, str]
    links: dict[str, str]


class JobList(BaseModel):
    """One page of jobs; `next` is the cursor of the following page."""

    object: str
    data: list[JobView]
    has_more: bool
    next: str | None


class Trouble(BaseModel):
    """A worker that failed, or loads its model again, and why."""

    role: str
    state: str
    reason: str
    model: str | None = None
    gpus: str = ""


class Ready(BaseModel):
    """Whether jobs are answered, and what is missing."""

    status: str
    reason: str | None = None
    reasons: list[Trouble] = []
    workers: dict[str, dict[str, int]] = {}
    models: list[str] = []
    queued: dict[str, int] = {}


class ModelView(BaseModel):
    """A served model. What only its worker knows is null until one has announced it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    is_chat: bool
    is_multimodal: bool | None
    engine: str | None
    context_tokens: int | None
    options: list[str] | None
    status: Literal["ready", "loading"]


class ModelList(BaseModel):
    """The served models, the default one first."""

    object: Literal["list"]
    data: list[ModelView]


class Usage(BaseModel):
    """Token counts of a call: prompts once, answers of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """The answer of a chat or text completion, one choice for each of its jobs."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    system_fingerprint: str | None


COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Completion,
        "description": "The answer; with stream=true its chunks, then [DONE].",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {
            "x-forebay-job-id": {
                "description": "The ids of the jobs, one per choice, commas between.",
                "schema": {"type": "string"},
            }
        },
    }
}


class ResponseView(BaseModel):
    """A Response, as OpenAI has it. Moments are seconds since the epoch."""

    id: str
    object: str
    created_at: int
    completed_at: int | None
    status: str
    background: bool
    store: bool
    error: dict[str, str | None] | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt: None
    conversation: None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: str
    usage: dict[str, Any] | None
    user: str | None


class ResponseDeleted(BaseModel):
    """A response that is no more."""

    id: str
    object: str
    deleted: bool


class InputItemList(BaseModel):
    """One page of what went into a response; `last_id` is the cursor of the following page."""

    object: str
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
