"""The bytes of a model's tokens, as llguidance reads them from a tokenizer."""

from typing import Any, Self

from llguidance import LLTokenizer


class Alphabet:
    """A tokenizer's tokens as bytes. One per checkpoint, for all threads."""

    def __init__(self, tokens: LLTokenizer, eos_ids: frozenset[int]) -> None:
        self.size = tokens.vocab_size
        self.tokens = tokens
        self.eos_ids = eos_ids

    @classmethod
    def of(cls, tokenizer: Any, eos_ids: frozenset[int]) -> Self | None:
        """Read a tokenizer; None where llguidance cannot (it is no fast one, or of a rare kind)."""
        try:
            described = tokenizer.backend_tokenizer.to_str()
            known = sorted(token_id for token_id in eos_ids if token_id < len(tokenizer))
            tokens = LLTokenizer(described, n_vocab=len(tokenizer), eos_token=known)
        except (AttributeError, ValueError):
            return None
        return cls(tokens, eos_ids)

    def spell(self, token_id: int) -> bytes:
        """Return a token's bytes, perhaps no whole character."""
        return bytes(self.tokens.decode_bytes([token_id]))
