"""What an answer must look like, in LMDeploy's words. Pure: nothing here imports LMDeploy.

A plain schema is its `json_schema`. Calls and reasoning take its `structural_tag`, in which formats
of XGrammar's stand one after another.
"""

import json
from collections.abc import Sequence
from typing import Any

from worker.engine.base import EngineOptions, ToolUse
from worker.engine.channels import CALL, CALL_END, THINK, THINK_END

Format = dict[str, Any]

_WHITE_SPACE = 16
"""Characters between two parts of JSON at most, else a model can write nothing but them."""


def is_free(options: EngineOptions) -> bool:
    """Return whether an answer may be any text."""
    return _form(options) is None


def response_format(
    options: EngineOptions, *, reasons: bool = False, is_thinking: bool = False
) -> Format | None:
    """Return what an answer must look like, None where it is free.

    Calls have the form that `channels` reads. Where the model is free to call and one function is
    `strict`, text is free but every call in it is checked. `reasons` and `is_thinking` as there:
    reasoning is never constrained.
    """
    form = _form(options)
    if form is None:
        return None
    if options.tools is None and not (reasons or is_thinking):
        return {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": options.json_schema},
        }
    before = _reasoning(is_thinking=is_thinking) if reasons or is_thinking else []
    return {"type": "structural_tag", "format": _in_order([*before, form])}


def _form(options: EngineOptions) -> Format | None:
    tools, schema = options.tools, options.json_schema
    if tools is not None and tools.must_call:
        return _calls(tools)
    if schema is not None:
        return _either(_json(schema), _calls(tools)) if tools else _json(schema)
    if tools is not None and any(function.get("strict") for function in tools.functions):
        return {"type": "triggered_tags", "triggers": [CALL], "tags": _tags(tools)}
    return None


def _calls(tools: ToolUse) -> Format:
    return {
        "type": "tags_with_separator",
        "tags": _tags(tools),
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": tools.max_calls == 1,
    }


def _tags(tools: ToolUse) -> list[Format]:
    return [_call(f) for f in tools.functions if tools.only in {None, f["name"]}]


def _call(function: dict[str, Any]) -> Format:
    head = json.dumps({"name": function["name"]})[:-1] + ', "arguments": '
    schema = function.get("parameters") or {"additionalProperties": False}
    return {
        "type": "tag",
        "begin": f"{CALL}\n{head}",
        "content": _json(schema | {"type": "object"}),
        "end": f"}}\n{CALL_END}",
    }


def _json(schema: dict[str, Any]) -> Format:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _WHITE_SPACE}


def _reasoning(*, is_thinking: bool) -> Sequence[Format]:
    """Return free text up to the mark, which the prompt may have opened, and white space."""
    gap = {"type": "regex", "pattern": r"\n{0,2}"}
    begin = "" if is_thinking else THINK
    thinking = {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": THINK_END}
    if is_thinking:
        return [thinking, gap]
    return [{"type": "optional", "content": _in_order([thinking, gap])}]


def _in_order(elements: Sequence[Format]) -> Format:
    return elements[0] if len(elements) == 1 else {"type": "sequence", "elements": list(elements)}


def _either(*elements: Format) -> Format:
    return {"type": "or", "elements": list(elements)}
