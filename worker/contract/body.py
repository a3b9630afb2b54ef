"""The body of a job as callers write it, in both forms, checked field by field.

One model for HTTP and for lines of a batch. `forms` turns it into a ChatRequest. Unknown fields are
refused: an option that is dropped in silence is a wrong answer.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints, model_validator

from worker.contract.callbacks import MAX_TYPES, MAX_URL_CHARS, EventType
from worker.contract.formats import MAX_TOOLS, CalledTool, ResponseFormat, Tool, ToolChoice
from worker.contract.formats import Strict as _Strict
from worker.contract.job import Priority

MAX_SEED = 2**63 - 1
MAX_S = 30 * 86_400  # no wait and no record is longer
_MAX_DEPTH = 64

Text64 = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_CHARS)]
Text512 = Annotated[str, StringConstraints(max_length=512)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Metadata = Annotated[dict[Text64, Text512], Field(max_length=16)]


class MediaLink(_Strict):
    """Where a picture or video is: a URL (http, https, data) or the id of an upload."""

    url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.url is None) == (self.file_id is None):
            raise ValueError("give either url or file_id")
        return self


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: MediaLink | str


class VideoPart(_Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: MediaLink | str


ContentPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class ChatMessage(_Strict):
    """One OpenAI chat message. A user's text may hold `<img>URL</img>`, `<video>URL</video>`.

    An assistant's turn may have `tool_calls` and then no content; a tool's says which call it
    answers. `refusal` is null in what OpenAI's clients send back.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: Text64 | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    refusal: None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to a message of the role tool, and only there")
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content, or an assistant's its tool_calls")
        return self


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]


class VideoBody(_Strict):
    """How frames are sampled: `frames` in equal segments or `fps` per second, of the cut clip."""

    frames: int | None = Field(None, ge=1, le=1024)
    fps: float | None = Field(None, gt=0, le=60)
    start_s: float | None = Field(None, ge=0)
    end_s: float | None = Field(None, gt=0)
    max_pixels: int | None = Field(None, ge=784)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.frames is not None and self.fps is not None:
            raise ValueError("give either frames or fps")
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError("end_s must be greater than start_s")
        return self


class WholeBody(_Strict):
    """What a door takes: every text in it can be kept."""

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, body: Any) -> Any:
        _refuse_surrogates(body)
        return body


class QuestionBody(WholeBody):
    """What every door takes beside the question itself."""

    model: str | None = Field(None, min_length=1, max_length=200)
    images: list[str] | str = Field(default_factory=list)
    videos: list[str] | str = Field(default_factory=list)

    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    priority: Priority = Priority.NORMAL
    start_deadline_s: float | None = Field(None, gt=0, le=MAX_S)
    timeout_s: float | None = Field(None, gt=0, le=MAX_S)
    retention_s: float | None = Field(None, ge=60, le=MAX_S)
    metadata: Metadata = Field(default_factory=dict)
    video: VideoBody = VideoBody()


class CallbackBody(WholeBody):
    """Where a job's end is told, and which of its transitions; without types, how it ended."""

    webhook_url: Url | None = None
    webhook_events: Annotated[list[EventType], Field(max_length=MAX_TYPES)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _events_belong_to_a_url(self) -> Self:
        if self.webhook_events and self.webhook_url is None:
            raise ValueError("webhook_events belongs to webhook_url")
        return self


class JobBody(QuestionBody, CallbackBody):
    """`POST /v1/jobs`: the OpenAI chat form (`messages`) or the ms-swift form (`query`)."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"query": "<image>图片中有几只羊", "images": ["https://example.com/sheep.png"]},
        {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.com/sheep.png"}},
            {"type": "text", "text": "How many sheep are there?"}]}], "max_tokens": 64},
    ]})  # fmt: skip

    messages: Messages | None = None
    query: str | None = None
    history: list[tuple[str, str]] = Field(default_factory=list, max_length=500)
    not_before: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) == (self.query is None):
            raise ValueError("give either messages (OpenAI form) or query (ms-swift form)")
        if self.history and self.query is None:
            raise ValueError("history belongs to query; with messages, send the turns themselves")
        return self


def _refuse_surrogates(value: Any, depth: int = 0) -> None:
    """Raise ValueError for half a surrogate pair: JSON can write one, UTF-8 and so Redis cannot.

    Nor does a body need more than _MAX_DEPTH levels; what reads it later may go down recursively.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"the body is nested more than {_MAX_DEPTH} levels deep")
    match value:
        case str():
            if not value.isascii():  # a whole data URL costs next to nothing
                _encode(value)
        case dict():
            for name, item in value.items():
                _refuse_surrogates(name, depth + 1)
                _refuse_surrogates(item, depth + 1)
        case list() | tuple():
            for item in value:
                _refuse_surrogates(item, depth + 1)


def _encode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text must be Unicode; half a surrogate pair: {error}") from error
