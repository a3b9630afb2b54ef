"""The body of `POST /v1/responses` as callers write it, checked field by field.

What would change the answer and cannot be honoured is refused with a sentence; what changes
nothing here (a cache key, a neutral value) is taken and repeated in the Response.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from worker.contract.body import MAX_S, MAX_SEED, CallbackBody, Metadata, Stop, VideoBody
from worker.contract.formats import MAX_TOOLS, Described, JsonSchema, Name, Strict
from worker.contract.job import Priority
from worker.contract.responses.items import MAX_ITEMS, Item, Key


class TextFormat(Strict):
    """Plain text."""

    type: Literal["text"]


class JsonFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON that a schema describes."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    type: Literal["json_schema"]
    name: Name
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None
    description: Described | None = None


class TextBody(Strict):
    """What the answer shall look like."""

    format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] = (
        TextFormat(type="text")
    )
    verbosity: Literal["medium"] | None = None


class FunctionTool(Strict):
    """A function that the model may ask for."""

    type: Literal["function"]
    name: Name
    description: Described | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionChoice(Strict):
    """The one function that the model must ask for."""

    type: Literal["function"]
    name: Name


class Reasoning(Strict):
    """How to think before the answer: not at all, which is all that is on offer."""

    effort: Literal["none"] | None = None
    summary: Literal["auto"] | None = None


class StreamOptions(Strict):
    """How to stream. Padding against readers of encrypted traffic is not on offer."""

    include_obfuscation: Literal[False] | None = None


Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What a caller may ask to see. All but the log probabilities is shown anyway or never there."""


class ResponseBody(CallbackBody):
    """`POST /v1/responses`: OpenAI's body, and fields of ours that the jobs door has too."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"input": "Who are you?"},
        {"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "https://example.com/sheep.png"},
            {"type": "input_text", "text": "How many sheep are there?"}]}], "background": True},
    ]})  # fmt: skip

    model: str | None = Field(None, min_length=1, max_length=200)
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    previous_response_id: Key | None = None

    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Includable] | None = None

    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextBody | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=1)  # of built-in tools, of which there are none

    metadata: Metadata | None = None
    user: Key | None = None
    safety_identifier: Key | None = None
    prompt_cache_key: Key | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    reasoning: Reasoning | None = None
    conversation: None = None  # not on offer, as the next two; some clients send the nulls
    prompt: None = None
    context_management: None = None

    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    video: VideoBody = VideoBody()
    priority: Priority = Priority.NORMAL
    start_deadline_s: float | None = Field(None, gt=0, le=MAX_S)
    timeout_s: float | None = Field(None, gt=0, le=MAX_S)
    retention_s: float | None = Field(None, ge=60, le=MAX_S)

    @property
    def is_stored(self) -> bool:
        """True unless the caller wants nothing kept."""
        return self.store is not False

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.background and not self.is_stored:
            raise ValueError("background needs store: the answer is fetched later")
        if not self.is_stored and self.retention_s is not None:
            raise ValueError("retention_s needs store: without it nothing is kept")
        return self
