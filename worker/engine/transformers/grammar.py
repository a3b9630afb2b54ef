"""What an answer must look like, as a grammar in llguidance's dialect of Lark."""

import json
from collections.abc import Iterable
from typing import Any

from worker.engine.base import EngineOptions, ToolUse
from worker.engine.channels import CALL, CALL_END, THINK, THINK_END

_JSON = {"whitespace_pattern": r"\n?[ ]{0,16}"}
"""White space in JSON has a bound, else a model can write nothing but that to the end."""


def grammar_of(options: EngineOptions, *, reasons: bool, is_thinking: bool) -> str | None:
    """Return what an answer must look like, None where it is free.

    Calls have the form that `channels` reads. Where the model is free to call and one function is
    `strict`, text is free but every call in it is checked. `reasons` and `is_thinking` as there:
    reasoning is never constrained.
    """
    tools, schema = options.tools, options.json_schema
    if tools is not None and tools.must_call:
        return _grammar("calls", _calls(tools), reasons, is_thinking)
    if schema is not None:
        answer = f"(json{' | calls' if tools else ''})"
        rules = [f"json: {_json(schema)}", *(_calls(tools) if tools else ())]
        return _grammar(answer, rules, reasons, is_thinking)
    if tools is not None and any(function.get("strict") for function in tools.functions):
        rules = [f'beginning[lazy]: TEXT "{CALL}"', "TEXT: /(.|\\n)*/", *_bodies(tools)]
        return _grammar("(beginning body)* TEXT", rules, reasons, is_thinking)
    return None


def _grammar(answer: str, rules: Iterable[str], reasons: bool, is_thinking: bool) -> str:
    thoughts = [f'thinking[lazy]: /(.|\\n)*/ "{THINK_END}"', "gap: /\\n{0,2}/"]
    before = "thinking gap " if is_thinking else f'("{THINK}" thinking gap)? '
    if not (reasons or is_thinking):
        thoughts, before = [], ""
    return "\n".join(["%llguidance {}", f"start: {before}{answer}", *thoughts, *rules])


def _calls(tools: ToolUse) -> list[str]:
    more = "" if tools.max_calls == 1 else ' ("\\n" call)*'
    return [f"calls: call{more}", f'call: "{CALL}" body', *_bodies(tools)]


def _bodies(tools: ToolUse) -> list[str]:
    functions = [f for f in tools.functions if tools.only in {None, f["name"]}]
    names = " | ".join(f"body_{n}" for n in range(len(functions)))
    return [
        f'body: "\\n" ({names}) "\\n{CALL_END}"',
        *(f"body_{n}: {_body(function)}" for n, function in enumerate(functions)),
    ]


def _body(function: dict[str, Any]) -> str:
    head = json.dumps(f'{{"name": "{function["name"]}", "arguments": ')
    schema = function.get("parameters") or {"additionalProperties": False}
    return f'{head} {_json(schema | {"type": "object"})} "}}"'


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema | {'x-guidance': _JSON})}"
