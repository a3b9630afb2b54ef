"""What happens to a job, as clients see it: one numbered sequence per job.

Number 1 is the `queued` status and is never stored: it follows from the record. Everything later is
an entry of the job's stream whose id is its number. Deltas concatenate to the final text over all
attempts; the last event is a terminal status.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.contract.job import TERMINAL, Said

QUEUED_SEQ = 1
"""The number of a job's first event, which is never stored."""

STATUS = "status"
DELTA = "delta"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once
TERMINAL_KINDS = frozenset(str(status) for status in TERMINAL)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry: `seq` from 1, `kind` is status, delta or a terminal status, `data` is JSON text.

    A status carries `{"status","stage","attempt","at"}` (at: ms since the epoch), a delta
    `{"text","tokens"}` and, where it has them, `reasoning`, `tool_calls` and `logprobs`, a terminal
    event `{}`: the record then has everything.
    """

    seq: int
    kind: str
    data: str

    @property
    def is_last(self) -> bool:
        """True for the event after which there is none."""
        return self.kind in TERMINAL_KINDS

    @property
    def text(self) -> str:
        """The text of a delta, else nothing."""
        return self.said.text

    @property
    def said(self) -> Said:
        """What a delta says, else nothing."""
        if self.kind != DELTA:
            return Said()
        data = json.loads(self.data)
        return Said(
            text=data["text"],
            reasoning=data.get("reasoning", ""),
            tool_calls=tuple(data.get("tool_calls", ())),
            logprobs=tuple(data["logprobs"]["content"]) if "logprobs" in data else (),
        )


def delta_data(
    text: str,
    tokens: int,
    *,
    reasoning: str = "",
    tool_calls: Sequence[dict[str, Any]] = (),
    logprobs: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the wire form of a delta: what it says and how many tokens it holds."""
    delta: dict[str, Any] = {"text": text, "tokens": tokens}
    if reasoning:
        delta["reasoning"] = reasoning
    if tool_calls:
        delta["tool_calls"] = tool_calls
    if logprobs:
        delta["logprobs"] = {"content": logprobs}
    return _encode(delta)


def parse_message(message: str) -> Event:
    """Read what the scripts publish: `<seq> <kind> <data>`."""
    seq, kind, data = message.split(" ", 2)
    return Event(int(seq), kind, data)


def joined(events: Sequence[Event]) -> Said:
    """Return what these events say together."""
    pieces = [event.said for event in events]
    return Said(
        text="".join(piece.text for piece in pieces),
        reasoning="".join(piece.reasoning for piece in pieces),
        tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
    )
