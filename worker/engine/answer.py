"""What of an engine's text may be streamed: nothing of a stop text, nothing that was sent."""

from collections.abc import Iterable


class AnswerText:
    """Lets an answer's text through piece by piece, in one attempt after others.

    Two rules, both independent of how the text is cut into pieces:

    1. The answer ends before the stop text that is complete first; text that could still become one
       is held back.
    2. The first `len(already)` characters were streamed by earlier attempts and are left out.

    `is_stopped` turns true with the first complete stop text and stays so.
    """

    def __init__(self, stops: Iterable[str] = (), already: str = "") -> None:
        self.is_stopped = False
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._skip = len(already)

    def push(self, piece: str) -> str:
        """Take the next piece; return what may be streamed now, possibly nothing."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        if not self._stops:
            return self._unsent(text)
        end, start = min(self._matches(text), default=(0, None))
        if start is not None and end:
            self.is_stopped, self._held = True, ""
            return self._unsent(text[:start])
        keep = self._open_length(text)
        self._held = text[len(text) - keep :]
        return self._unsent(text[: len(text) - keep])

    def finish(self) -> str:
        """Return what was held back, once it is sure that no more text comes."""
        held, self._held = self._held, ""
        return self._unsent(held)

    def _matches(self, text: str) -> Iterable[tuple[int, int | None]]:
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                yield start + len(stop), start

    def _open_length(self, text: str) -> int:
        """Return how many last characters are the beginning of a stop text."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def _unsent(self, text: str) -> str:
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]
