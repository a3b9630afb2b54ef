"""What a prompt makes the echo engine say: its commands, and what the options demand.

The answer is the last user text, word by word, unless that text holds commands:

    [[tokens=N rate=R]]  N tokens `tok1 tok2 …`, R per second (0 or left out: no pause);
                         `[[rate=R]]` alone paces the text itself
    [[media]]            a JSON list with kind, size and sha256 of every picture and video
    [[fail]] [[oom]]     end in EngineFailed, in OutOfMemory
    [[hang]] [[die]]     never go on; kill the engine's process
    [[starve]]           have the engine run out of memory and end
    [[tool=NAME {…}]]    call a function with these arguments, after the text; a function that was
                         not offered, or arguments that are no JSON, give the text of a bad call
    [[think=TEXT]]       reason before the answer

The five ends happen after the tokens where `[[tokens=N]]` stands beside them, else at once.

Where JSON is asked for, a text that is JSON comes back as it is; any other becomes the strings of
an example that fits a simple schema, `{"text": …}` where there is none. Where a call must be made
and none is scripted, it is an example for the first function. `[[tokens=N]]` changes neither.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Self

from worker.engine.base import Clip, EngineOptions, Part, Picture, ToolUse, Turn
from worker.engine.channels import CALL, CALL_END, THINK, THINK_END
from worker.engine.example import example

PICTURE_TOKENS = 64
"""What one picture, or one frame of a video, adds to `prompt_tokens`."""
BURST_TOKENS = 32
"""Tokens per delta without a pause: the rate at which an asyncio loop can be passed is no token
rate, and one delta per token would measure the loop instead of what is built around the engine."""

_WIDE = r"\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_WORD = re.compile(rf"\s*(?:[{_WIDE}]|[^\s{_WIDE}]+)|\s+")
"""A word with the space before it; a Chinese character is a word; so is space at the end."""
_COMMAND = re.compile(
    r"\[\[(?:(?P<act>fail|oom|hang|die|starve|media)"
    r"|tool=(?P<tool>[\w-]{1,64})\s*(?P<arguments>\{.{0,2000}?\})?"
    r"|think=(?P<thought>[^\[\]]{0,2000})"
    r"|(?:tokens=(?P<tokens>\d{1,9}))?\s*(?:rate=(?P<rate>\d{1,9}(?:\.\d{1,9})?))?)\]\]",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Script:
    """What one prompt makes the engine say and do.

    `words` are the answer's tokens, or None for the counted `tok1 tok2 …`; `length` how many there
    are; `rate` tokens per second, 0 without a pause; `burst` tokens per delta then; `ending` what
    happens after the last one: fail, oom, hang, die, starve, or nothing. `calls` are the scripted
    calls as a model writes them; they and `thought` are among the words.
    """

    words: tuple[str, ...] | None
    length: int
    rate: float = 0.0
    burst: int = 1
    ending: str = ""
    calls: tuple[str, ...] = ()
    thought: str = ""

    @classmethod
    def of(cls, words: tuple[str, ...], **said: Any) -> Self:
        """Return the script that says these words, one token each."""
        return cls(words, len(words), **said)

    def text(self, start: int, end: int) -> str:
        """Return the tokens from `start` to `end`, counted from 0, as one text."""
        if self.words is None:
            return "".join(f" tok{n + 1}" if n else "tok1" for n in range(start, end))
        if end <= len(self.words):
            return "".join(self.words[start:end])
        return "".join(self.words[n % len(self.words)] for n in range(start, end))


def read_script(turns: tuple[Turn, ...]) -> Script:
    """Return what the last user text asks for."""
    text = _last_user_text(turns)
    commands = list(_COMMAND.finditer(text)) if "[[" in text else []
    acts = [c["act"] for c in commands if c["act"]]
    tokens = next((int(c["tokens"]) for c in commands if c["tokens"]), None)
    rate = next((float(c["rate"]) for c in commands if c["rate"]), 0.0)
    ending = next((act for act in acts if act != "media"), "")
    if tokens is not None:
        return Script(None, tokens, rate, BURST_TOKENS, ending)
    if "media" in acts:
        return Script.of((_media_as_json(turns),), rate=rate, ending=ending)
    words = () if ending else tuple(_WORD.findall(_COMMAND.sub("", text) if commands else text))
    calls = tuple(_call(c["tool"], c["arguments"] or "{}") for c in commands if c["tool"])
    thought = next((c["thought"] for c in commands if c["thought"]), "")
    begun = (f"{THINK}{thought}{THINK_END}",) if thought else ()
    said = {"rate": rate, "ending": ending, "calls": calls, "thought": thought}
    return Script.of((*begun, *words, *calls), **said)


def shaped(script: Script, turns: tuple[Turn, ...], options: EngineOptions) -> Script:
    """Return a script that says what the options demand: a call, or JSON by a schema."""
    text = _COMMAND.sub("", _last_user_text(turns)).strip()
    if script.calls or script.ending:
        return script
    if options.tools is not None and options.tools.must_call:
        return replace(script, words=(_example_call(options.tools, text),), length=1)
    if options.json_schema is None:
        return script
    thought = (script.words or ())[: bool(script.thought)]
    words = (*thought, *_WORD.findall(_as_json(text, options.json_schema)))
    return replace(script, words=words, length=len(words))


def _as_json(text: str, schema: dict[str, Any]) -> str:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    is_fit = said is not None and (isinstance(said, dict) or schema.get("type") != "object")
    return text if is_fit else json.dumps(example(schema, text), ensure_ascii=False)


def _example_call(tools: ToolUse, text: str) -> str:
    offered = (f for f in tools.functions if tools.only in {None, f["name"]})
    function = next(offered)
    arguments = example(function["parameters"], text) if "parameters" in function else {}
    return _call(function["name"], json.dumps(arguments, ensure_ascii=False))


def _call(name: str, arguments: str) -> str:
    return f'{CALL}{{"name": "{name}", "arguments": {arguments}}}{CALL_END}'


def prompt_tokens(turns: tuple[Turn, ...]) -> int:
    """Count a prompt: its words, and PICTURE_TOKENS for every picture and frame."""
    return sum(_part_tokens(part) for turn in turns for part in turn.parts)


def _last_user_text(turns: tuple[Turn, ...]) -> str:
    for turn in reversed(turns):
        if turn.role == "user":
            return "".join(part for part in turn.parts if isinstance(part, str))
    return ""


def _part_tokens(part: Part) -> int:
    if isinstance(part, str):
        return len(_WORD.findall(part))
    return PICTURE_TOKENS * (len(part.frames) if isinstance(part, Clip) else 1)


def _media_as_json(turns: tuple[Turn, ...]) -> str:
    """Return the media in the order of the prompt; without spaces it is one token."""
    media = [_described(p) for turn in turns for p in turn.parts if not isinstance(p, str)]
    return json.dumps(media, separators=(",", ":"))


def _described(part: Picture | Clip) -> dict[str, Any]:
    if isinstance(part, Picture):
        return {"kind": "image", "width": part.width, "height": part.height, "sha256": part.sha256}
    first = part.frames[0]
    return {
        "kind": "video",
        "frames": len(part.frames),
        "times_s": list(part.times_s),
        "width": first.width,
        "height": first.height,
        "sha256": part.sha256,
    }
