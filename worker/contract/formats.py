"""What an answer may have to look like, as callers write it: JSON by a schema, and tools.

Shapes only; `options` checks what the fields say together, and the schemas.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

MAX_TOOLS = 128

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _is_json(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse NaN and infinity: Python reads them, but an answer that repeats them is no JSON."""
    json.dumps(schema, allow_nan=False)
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_is_json)]
Described = Annotated[str, StringConstraints(max_length=16_384)]


class Strict(BaseModel):
    """A part of a body: unknown fields are refused, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NamedSchema(Strict):
    """A JSON schema. `strict` is accepted either way: the answer always fits."""

    name: Name
    description: Described | None = None
    schema_: JsonSchema = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's `response_format`: any text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and only there")
        return self


class Function(Strict):
    """A function that the model may call; `parameters` is a JSON schema, none: no arguments."""

    name: Name
    description: Described | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Strict):
    """An offered function."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """The name of an offered function."""

    name: Name


class NamedTool(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(Strict):
    """A function as an assistant called it; `arguments` is JSON text."""

    name: Name
    arguments: str


class CalledTool(Strict):
    """A call in an assistant's message; `index` is what streams number their calls by."""

    id: str = Field(min_length=1, max_length=200)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
