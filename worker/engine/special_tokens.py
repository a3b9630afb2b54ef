"""Special tokens that a user wrote are text: they would be turns or pictures that are none."""

import re
from collections.abc import Iterable
from typing import Any

_JOINER = "\u2060"  # no width, no line break: the text reads the same


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Return the texts of a tokenizer's tokens that are no text."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(str(token) for token in added if token.special) | frozenset(
        tokenizer.all_special_tokens
    )


class SpecialTokens:
    """Breaks texts that mean something to a model where a user wrote them."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def broken(self, text: str) -> str:
        """Return the text with a mark of no width inside every special token."""
        return self._pattern.sub(lambda found: found[0][0] + _JOINER + found[0][1:], text)
