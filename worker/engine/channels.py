"""Which of an engine's words are text, which reasoning, and which call a tool.

The marks are those of Qwen, Hermes and their many kin: `<think>…</think>` before the answer, and
`<tool_call>{"name": …, "arguments": {…}}</tool_call>` in it.
"""

import json
from dataclasses import dataclass

from worker.engine.answer import AnswerText
from worker.engine.base import Prompt, ToolCall

CALL, CALL_END = "<tool_call>", "</tool_call>"
THINK, THINK_END = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of an answer, by what it is; calls are whole."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: "Words") -> "Words":
        if self is NO_WORDS:
            return other
        return Words(
            self.text + other.text,
            self.reasoning + other.reasoning,
            self.tool_calls + other.tool_calls,
        )


NO_WORDS = Words()


class Channels:
    """Takes an answer's raw text piece by piece, in one attempt after others.

    What comes out does not depend on how the text is cut into pieces, ends before the first stop
    text or after the last call that is allowed, and leaves out what earlier attempts have streamed.
    White space around calls and reasoning belongs to nobody, but between two texts. What looks like
    a call and is none, or is one of a function that was not offered, stays text.

    Args:
        prompt: its stop texts and tools, and what was emitted. Without tools nothing is a call.
        reasons: reasoning at the answer's beginning is told apart.
        is_thinking: the prompt itself has opened the reasoning already.
    """

    def __init__(self, prompt: Prompt, *, reasons: bool = False, is_thinking: bool = False) -> None:
        self.is_stopped = False
        self.calls = 0
        """Calls of all attempts so far."""
        self._raw = AnswerText(prompt.options.stop)
        self._tools = prompt.options.tools
        self._place = _start(reasons, is_thinking)
        self._held = ""
        self._has_text = False
        self._gap = ""  # white space before what may be a call
        self._trims = is_thinking  # white space that comes next belongs to a mark
        self._skip_text = len(prompt.emitted_text)
        self._skip_reasoning = len(prompt.emitted_reasoning)
        self._skip_calls = prompt.emitted_calls
        self._is_plain = (  # and stays so
            not prompt.options.stop
            and self._tools is None
            and self._place == "text"
            and not self._trims
            and not prompt.emitted_text
        )

    def push(self, piece: str) -> Words:
        """Take the next piece; return what may be streamed now, possibly nothing."""
        if self._is_plain:  # nearly every answer
            return Words(piece)
        if self.is_stopped:
            return NO_WORDS
        raw = self._raw.push(piece)
        words = self._sorted(raw, is_last=self._raw.is_stopped)
        self.is_stopped = self.is_stopped or self._raw.is_stopped
        return words

    def reason(self, reason: str) -> str:
        """Return why the answer ended: `tool_calls` where it stopped with calls in it."""
        return "tool_calls" if reason == "stop" and self.calls else reason

    def finish(self) -> Words:
        """Return what was held back, once it is sure that no more text comes."""
        return NO_WORDS if self.is_stopped else self._sorted(self._raw.finish(), is_last=True)

    def _sorted(self, raw: str, *, is_last: bool) -> Words:
        if self._place == "text" and self._tools is None and not self._trims:
            return self._unsent(Words(raw))
        self._held += raw
        words = NO_WORDS
        before = None
        while before != (self._place, self._held) and not self.is_stopped:
            before = (self._place, self._held)
            words += self._step(is_last)
        return self._unsent(words)

    def _step(self, is_last: bool) -> Words:
        match self._place:
            case "start":
                return self._in_start(is_last)
            case "reasoning":
                return self._in_reasoning(is_last)
            case "call":
                return self._in_call(is_last)
        return self._in_text(is_last)

    def _in_start(self, is_last: bool) -> Words:
        """Find out whether the answer begins with reasoning."""
        said = self._held.lstrip()
        if said.startswith(THINK):
            self._place, self._held, self._trims = "reasoning", said[len(THINK) :], True
        elif is_last or not THINK.startswith(said):
            self._place = "text"
        return NO_WORDS

    def _in_reasoning(self, is_last: bool) -> Words:
        said, is_over = self._until(THINK_END, is_last)
        if is_over:
            self._place, self._trims = "text", True
        return Words(reasoning=said)

    def _in_text(self, is_last: bool) -> Words:
        if self._tools is None:
            said, self._held = self._trimmed(self._held), ""
            return Words(said)
        said, is_over = self._until(CALL, is_last)
        self._has_text = self._has_text or bool(said)
        if is_over:
            self._place = "call"
        return Words(said)

    def _in_call(self, is_last: bool) -> Words:
        body, mark, rest = self._held.partition(CALL_END)
        if not mark and not is_last:
            return NO_WORDS
        self._place, self._held = "text", rest
        assert self._tools is not None  # noqa: S101 - else nothing is a call
        call = _read_call(body)
        if call is None or all(call.name != offered["name"] for offered in self._tools.functions):
            return Words(self._gap + CALL + body + mark)
        self._trims = not self._has_text
        self.calls += 1
        self.is_stopped = self.calls == self._tools.max_calls
        return Words(tool_calls=(call,))

    def _until(self, mark: str, is_last: bool) -> tuple[str, bool]:
        """Take what is sure to stand before a mark, and the mark; return whether it was there.

        White space is held back, as a mark may follow.
        """
        said, found, rest = self._held.partition(mark)
        if found:
            text = self._trimmed(said.rstrip())
            self._gap = "" if self._trims else said[len(said.rstrip()) :]
            self._held = rest
            return text, True
        if is_last:
            self._held = ""
            return self._trimmed(said.rstrip() if self.calls else said), False
        sure = said[: len(said) - _open_length(said, mark)].rstrip()
        self._held = said[len(sure) :]
        return self._trimmed(sure), False

    def _trimmed(self, text: str) -> str:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text

    def _unsent(self, words: Words) -> Words:
        """Leave out what earlier attempts have streamed."""
        text, reasoning, calls = words.text, words.reasoning, words.tool_calls
        sent = Words(
            text[self._skip_text :], reasoning[self._skip_reasoning :], calls[self._skip_calls :]
        )
        self._skip_text = max(0, self._skip_text - len(text))
        self._skip_reasoning = max(0, self._skip_reasoning - len(reasoning))
        self._skip_calls = max(0, self._skip_calls - len(calls))
        return sent


def _start(reasons: bool, is_thinking: bool) -> str:
    if is_thinking:
        return "reasoning"
    return "start" if reasons else "text"


def _open_length(text: str, mark: str) -> int:
    """Return how many last characters are the beginning of a mark."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


def _read_call(body: str) -> ToolCall | None:
    """Return the call that a model wrote, None where it is none."""
    try:
        said = json.loads(body, parse_constant=_refuse)
        arguments = json.dumps(said.get("arguments", {}), ensure_ascii=False)
        arguments.encode()  # half a surrogate pair is no text
    except (ValueError, AttributeError, RecursionError):
        return None
    if not arguments.startswith("{") or not isinstance(said.get("name"), str):
        return None
    return ToolCall(said["name"], arguments)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
