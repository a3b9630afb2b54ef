"""From token ids to text, as they come: a token may be half a character."""

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
_MAX_CONTEXT = 8
"""Tokens that are looked back for a beginning in front of which no character is open; a character
has four bytes at most, so this many are only needed in text that is broken anyway."""


class Detokenizer:
    """Decodes a growing answer without decoding it from the start each time.

    `decode` turns ids into text, without special tokens. Text that ends in an incomplete character
    is held back. A few tokens before the new ones are decoded with them, because some tokenizers
    write a token otherwise at the beginning of a text (no space before its first word).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._known = 0
        """Characters of the window's text that were returned before."""

    def push(self, *token_ids: int) -> str:
        """Take the next tokens; return the text that is complete with them, possibly none."""
        self._window += token_ids
        text = self._decode(self._window)
        if text.endswith(_BROKEN):
            return self._complete(text)
        fresh = text[self._known :]
        self._window, self._known = self._context(text)
        return fresh

    def finish(self) -> str:
        """Return what was held back, without the character that never became complete."""
        return self._decode(self._window)[self._known :].rstrip(_BROKEN)

    def _complete(self, text: str) -> str:
        """Return what stands before the open character, which stays in the window."""
        whole = text.rstrip(_BROKEN)
        fresh, self._known = whole[self._known :], max(self._known, len(whole))
        return fresh

    def _context(self, text: str) -> tuple[list[int], int]:
        for size in range(1, min(_MAX_CONTEXT, len(self._window)) + 1):
            context = self._window[-size:]
            kept = self._decode(context)
            if kept and _BROKEN not in kept:
                return context, len(kept)
        return self._window, len(text)
