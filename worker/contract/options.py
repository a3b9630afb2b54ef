"""A body's generation options, checked together and reduced to what asks for something.

`logprobs: false` or a `text` format ask for nothing, so any engine honours them; what is left is
what an engine must be able to do.
"""

import json
from collections.abc import Iterator
from typing import Any

from jsonschema_rs import Draft202012Validator

from worker.contract.body import JobBody
from worker.contract.errors import InvalidRequest
from worker.contract.formats import NamedTool

MAX_SCHEMA_BYTES = 65_536
"""One JSON schema, written without spaces."""
MAX_TOOLS_BYTES = 131_072
"""All tools of a job together."""
MAX_LOGPROBS = 131_072
"""Entries of a job: one per token of its `max_tokens`, and `top_logprobs` beside each."""

_PLAIN = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty",
    "ignore_eos",
)  # fmt: skip
_SCHEMA_OF_SCHEMAS = Draft202012Validator({"$ref": "https://json-schema.org/draft/2020-12/schema"})
"""Not the schema that a stranger's `$schema` names: it would be fetched."""


def read_options(body: JobBody) -> dict[str, Any]:
    """Return what a body asks of the engine, by OpenAI's names.

    Raises InvalidRequest: options that contradict each other, a schema that is none, or too much
    of something; `param` names the place.
    """
    options = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    if body.stop is not None:
        options["stop"] = [body.stop] if isinstance(body.stop, str) else list(body.stop)
    return options | _logprobs(body) | _response_format(body) | _tools(body)


def _logprobs(body: JobBody) -> dict[str, Any]:
    if not body.logprobs:
        if body.top_logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        return {}
    entries = (body.max_tokens or 1) * (1 + (body.top_logprobs or 0))
    if entries > MAX_LOGPROBS:
        raise InvalidRequest(
            f"max_tokens × (1 + top_logprobs) is {entries}; the limit is {MAX_LOGPROBS}",
            param="top_logprobs" if body.top_logprobs else "max_tokens",
        )
    asked: dict[str, Any] = {"logprobs": True}
    return asked | ({"top_logprobs": body.top_logprobs} if body.top_logprobs else {})


def _response_format(body: JobBody) -> dict[str, Any]:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.json_schema is not None:
        _check_schema(wanted.json_schema.schema_, "response_format.json_schema.schema")
    return {"response_format": wanted.model_dump(by_alias=True, exclude_none=True)}


def _tools(body: JobBody) -> dict[str, Any]:
    choice = body.tool_choice or "auto"
    if not body.tools and choice not in {"auto", "none"}:
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    _check_tools(tools)
    if not tools or choice == "none":  # what must not be called is not offered
        return {}
    asked: dict[str, Any] = {"tools": tools}
    if isinstance(choice, NamedTool):
        _check_name(choice.function.name, tools)
        asked["tool_choice"] = choice.model_dump()
    elif choice != "auto":
        asked["tool_choice"] = choice
    return asked | ({"parallel_tool_calls": False} if body.parallel_tool_calls is False else {})


def _check_tools(tools: list[dict[str, Any]]) -> None:
    if (size := _size(tools)) > MAX_TOOLS_BYTES:
        raise InvalidRequest(
            f"{size} bytes of tools; the limit is {MAX_TOOLS_BYTES}", param="tools"
        )
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        function = tool["function"]
        if function["name"] in seen:
            raise InvalidRequest(
                f"two functions are called {function['name']}",
                param=f"tools[{number}].function.name",
            )
        seen.add(function["name"])
        _check_schema(function.get("parameters", {}), f"tools[{number}].function.parameters")


def _check_name(name: str, tools: list[dict[str, Any]]) -> None:
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise InvalidRequest(
            f"tool_choice names {name}; the tools are {', '.join(names)}", param="tool_choice"
        )


def _check_schema(schema: dict[str, Any], param: str) -> None:
    if (size := _size(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"a schema of {size} bytes; the limit is {MAX_SCHEMA_BYTES}", param=param
        )
    for error in _SCHEMA_OF_SCHEMAS.iter_errors(schema):
        place = "".join(f"/{step}" for step in error.instance_path)
        raise InvalidRequest(f"no JSON schema: {error.message} at '{place}'"[:500], param=param)
    for target in _references(schema):
        if not target.startswith("#"):
            raise InvalidRequest(
                f"$ref may only point into the schema itself ('#…'), not to {target[:200]!r}",
                param=param,
            )


def _references(schema: Any) -> Iterator[str]:
    match schema:
        case dict():
            for name, value in schema.items():
                if name in {"$ref", "$dynamicRef"} and isinstance(value, str):
                    yield value
                yield from _references(value)
        case list():
            for value in schema:
                yield from _references(value)


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
