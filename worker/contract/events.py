"""What happens to a job, as clients see it: one numbered sequence per job.

Number 1 is the `queued` status and is never stored: it follows from the record. Everything later is
an entry of the job's stream whose id is its number. Deltas concatenate to the final text over all
attempts; the last event is a terminal status.
"""

import json
from dataclasses import dataclass

from worker.contract.job import TERMINAL

STATUS = "status"
DELTA = "delta"
TERMINAL_KINDS = frozenset(str(status) for status in TERMINAL)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry: `seq` from 1, `kind` is status, delta or a terminal status, `data` is JSON text.

    A status carries `{"status","stage","attempt","at"}` (at: ms since the epoch), a delta
    `{"text","tokens"}`, a terminal event `{}`: the record then has everything.
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
        return str(json.loads(self.data)["text"]) if self.kind == DELTA else ""


def delta_data(text: str, tokens: int) -> str:
    """Return the wire form of a delta: its text and how many tokens it holds."""
    delta = {"text": text, "tokens": tokens}
    return json.dumps(delta, ensure_ascii=False, separators=(",", ":"))


def parse_message(message: str) -> Event:
    """Read what the scripts publish: `<seq> <kind> <data>`."""
    seq, kind, data = message.split(" ", 2)
    return Event(int(seq), kind, data)


def joined_text(events: list[Event]) -> str:
    """Return the text that these events hold."""
    return "".join(event.text for event in events)
