"""What an `input` is made of: turns and their parts, calls of functions, what they gave.

Everything that stands in a Response's `output` may be sent back as it came.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from worker.contract.formats import Name, Strict

MAX_ITEMS = 1000

Key = Annotated[str, StringConstraints(max_length=512)]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict):
    """A piece of text."""

    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    """A piece of an earlier answer, as a Response holds it; only its text matters here."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class InputImage(Strict):
    """A picture: a URL (http, https, data) or the id of a file."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("give either image_url or file_id")
        return self


class InputVideo(Strict):
    """A video, which OpenAI's API does not have: a URL (http, https, data) or the id of a file."""

    type: Literal["input_video"]
    video_url: str | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.video_url is None) == (self.file_id is None):
            raise ValueError("give either video_url or file_id")
        return self


class InputFile(Strict):
    """A file, which must be a picture or a video by its data URL's type or by its name."""

    type: Literal["input_file"]
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = Field(None, max_length=255)
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.file_data, self.file_url, self.file_id].count(None) != 2:  # noqa: PLR2004
            raise ValueError("give one of file_data, file_url and file_id")
        return self


Part = Annotated[
    InputText | OutputText | InputImage | InputVideo | InputFile, Field(discriminator="type")
]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_ITEMS)]


class MessageItem(Strict):
    """One turn: a short message, a full one, or an item of an earlier Response's `output`."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts
    id: Key | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _answers_are_text(self) -> Self:
        parts = () if isinstance(self.content, str) else self.content
        if self.role == "assistant" and not all(
            isinstance(p, InputText | OutputText) for p in parts
        ):
            raise ValueError("what an assistant said is text")
        return self


class CallItem(Strict):
    """A function as the model called it; `arguments` is JSON text."""

    type: Literal["function_call"]
    call_id: CallId
    name: Name
    arguments: str
    id: Key | None = None
    status: ItemStatus | None = None


class CallOutputItem(Strict):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | Parts
    id: Key | None = None
    status: ItemStatus | None = None


class ReasoningItem(Strict):
    """What the model thought before an earlier answer; it is no part of what it is asked."""

    type: Literal["reasoning"]
    id: Key | None = None
    summary: list[dict[str, Any]] = Field(default_factory=list)
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


def _kind(item: Any) -> str:
    """Return an item's type; a message need not say that it is one."""
    if isinstance(item, dict):
        return str(item.get("type") or "message")
    return str(getattr(item, "type", "message"))


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]
