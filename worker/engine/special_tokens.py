"""Special tokens that a user wrote are text: they would be turns or pictures that are none."""

import re
from typing import Any

_JOINER = "\u2060"  # no width, no line break: the text reads the same


class SpecialTokens:
    """Breaks the special tokens of one tokenizer, and `more` texts that mean something, in text."""

    def __init__(self, tokenizer: Any, *more: str) -> None:
        added = tokenizer.added_tokens_decoder.values()
        texts = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        longest_first = sorted(
            (text for text in (*texts, *more) if len(text) > 1), key=len, reverse=True
        )
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def broken(self, text: str) -> str:
        """Return the text with a mark of no width inside every special token."""
        return self._pattern.sub(lambda found: found[0][0] + _JOINER + found[0][1:], text)
