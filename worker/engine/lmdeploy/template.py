"""What a model's chat template can say, seen by what it writes. Pure: imports no LMDeploy.

LMDeploy's own templates take `tools` and leave them out without a word, as some checkpoints' do;
and calls are written in a dozen forms, of which `channels` reads one.
"""

from typing import Any

from worker.engine.base import EngineOptions, Prompt, ToolCall, ToolUse
from worker.engine.channels import CALL, Channels

_FUNCTION = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
}
_ASKED = {"role": "user", "content": "What is a word?"}
_CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "look_up", "arguments": {"word": "sheep"}}}
    ],
}
_ANSWERED = {"role": "tool", "content": "an animal", "name": "look_up"}


def knows_tools(template: Any, specials: frozenset[str]) -> bool:
    """Return whether a template offers tools, and writes calls in the form that we read.

    `template` is LMDeploy's: `messages2prompt` renders a chat. `specials` are tokens that are no
    text: a mark among them would never be seen.
    """
    if CALL in specials:
        return False
    tools = [{"type": "function", "function": _FUNCTION}]
    try:
        offered = template.messages2prompt([_ASKED], tools=tools)
        called = template.messages2prompt([_ASKED, _CALLED, _ANSWERED], tools=tools)
    except Exception:  # noqa: BLE001 - a template may raise anything at what it does not know
        return False
    return "look_up" in offered and _calls(called) == (ToolCall("look_up", '{"word": "sheep"}'),)


def _calls(text: str) -> tuple[ToolCall, ...]:
    """Return the calls that would be read in an answer."""
    options = EngineOptions(max_tokens=1, tools=ToolUse((_FUNCTION,)))
    channels = Channels(Prompt("", (), options))
    return (channels.push(text) + channels.finish()).tool_calls
