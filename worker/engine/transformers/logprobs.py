"""How likely each token was, by the model's own scores."""

import torch
from transformers import LogitsProcessor

from worker.engine.alphabet import Alphabet
from worker.engine.base import TokenLogprob


class Watching(LogitsProcessor):
    """Remembers the scores of the next token; stands first, before anything changes them.

    Raw ones, as vLLM tells by default: a temperature of 0 or a grammar would make every token that
    is chosen certain, and so tell nothing.
    """

    def __init__(self, alphabet: Alphabet, top: int) -> None:
        self._alphabet = alphabet
        self._top = top
        self._logprobs = torch.zeros(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, float32 (1, vocabulary), as they are."""
        del input_ids
        self._logprobs = scores[0].log_softmax(dim=-1)
        return scores

    def of(self, token_id: int) -> TokenLogprob:
        """Return what is known of the token that was chosen by these scores."""
        known = self._logprobs[: self._alphabet.size]  # some models have more scores than tokens
        best = known.topk(min(self._top, known.shape[0]))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenLogprob(
            self._alphabet.spell(token_id),
            float(self._logprobs[token_id]),
            tuple(TokenLogprob(self._alphabet.spell(other), value) for other, value in top),
        )
