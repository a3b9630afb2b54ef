"""Which token may come next by a grammar.

A grammar is compiled lazily, in ms, and what it may cost is bounded by llguidance's own limits: a
hostile schema ends its own job. Checked with torch 2.13 on a CPU.
"""

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from transformers import LogitsProcessor

from worker.contract.errors import InvalidRequest
from worker.engine.alphabet import Alphabet

_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""Its own numbers, but for memory: a state takes 1 to 2 kB, and they would be 250 000."""
_MAX_REASON = 300


class Constraint(LogitsProcessor):
    """Lets pass what a grammar allows next. `take` must see every token of the answer, in order.

    Raises InvalidRequest where the grammar is none or too large; `param` is what asked for it.
    """

    def __init__(self, alphabet: Alphabet, grammar: str, param: str) -> None:
        self._alphabet = alphabet
        self._param = param
        self._matcher = LLMatcher(alphabet.tokens, grammar, log_level=0, limits=_LIMITS)
        if self._matcher.is_error():
            raise self._refusal("no answer can be made to fit")

    @property
    def is_over(self) -> bool:
        """True once the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def take(self, token_id: int) -> None:
        """Go on by one token. Raises InvalidRequest where that is over the limits."""
        if not self._matcher.consume_token(token_id):
            raise self._refusal("too complex for an answer")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, float32 (1, vocabulary), of what is allowed; -inf for the rest.

        Raises InvalidRequest where the next step is over the limits.
        """
        del input_ids
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._refusal("too complex for an answer")
        allowed = np.zeros(scores.shape[-1], dtype=bool)
        bits = np.unpackbits(packed, bitorder="little")[: min(self._alphabet.size, allowed.size)]
        allowed[: bits.size] = bits
        allowed[list(self._alphabet.eos_ids)] = self._matcher.is_accepting()
        return scores.masked_fill(~torch.from_numpy(allowed), float("-inf"))

    def _refusal(self, sentence: str) -> InvalidRequest:
        reason = str(self._matcher.get_error()).split("\n")[0][:_MAX_REASON]
        return InvalidRequest(f"{sentence}: {reason}", param=self._param)
