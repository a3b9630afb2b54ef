"""What the clients were told: kept by the load alone, outside every process under test."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Entry:
    """One question, and all that its caller saw of it.

    `key` is its Idempotency-Key, '' for none. `refusals` counts 429 and 5xx, the slowest of
    a new job came after `refused_after_s`; `breaks` counts connections that ended without an
    answer, `cuts` streams that were read on after a break. `outcome` is the status of the stream's
    last event, or of the poll that found the job over. Moments are monotonic seconds, None until
    they come.
    """

    number: int
    query: str
    answer: str
    key: str
    is_streamed: bool
    has_picture: bool
    job_id: str | None = None
    refusals: int = 0
    refused_after_s: float = 0.0
    breaks: int = 0
    cuts: int = 0
    last_seen: int = 0
    text: str = ""
    outcome: str | None = None
    accepted_s: float | None = None
    ended_s: float | None = None
    troubles: list[str] = field(default_factory=list)

    def accepted(self, job_id: str) -> None:
        """Note a 202."""
        if self.job_id not in {None, job_id}:
            self.troubles.append(f"two jobs for one key: {self.job_id} and {job_id}")
        self.job_id, self.accepted_s = job_id, time.monotonic()

    def refused(self, after_s: float) -> None:
        """Note a 429 or 5xx."""
        self.refusals += 1
        self.refused_after_s = max(self.refused_after_s, after_s)

    def saw(self, number: int, text: str) -> None:
        """Note an event of the stream; each must be numbered one above the last."""
        if number != self.last_seen + 1:
            self.troubles.append(f"event {number} after {self.last_seen}")
        self.last_seen = number
        self.text += text

    def ended(self, outcome: str, text: str) -> None:
        """Note the end, with the text as the ended job says it."""
        if self.outcome is not None:
            self.troubles.append(f"ended twice: {self.outcome}, then {outcome}")
        if self.is_streamed and self.text != text:
            self.troubles.append(f"streamed {len(self.text)} characters of {len(text)}")
        self.outcome, self.ended_s = outcome, time.monotonic()

    @property
    def took_s(self) -> float | None:
        """Seconds from the 202 to the end."""
        if self.accepted_s is None or self.ended_s is None:
            return None
        return self.ended_s - self.accepted_s
