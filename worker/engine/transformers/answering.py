"""One answer while `generate` makes it, in a thread: tokens in, deltas out, and when to stop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import StoppingCriteria

from worker.engine.answer import AnswerText
from worker.engine.base import Delta, Prompt
from worker.engine.detokenizer import Detokenizer


class Answering(StoppingCriteria):
    """Sees each new token, reports it, and says whether it was the last.

    `generate` calls it after every token; there is nothing else in it that could end an answer. An
    end-of-text token ends the answer and is no part of it, not even as an id.
    """

    def __init__(
        self,
        prompt: Prompt,
        *,
        prompt_tokens: int,
        eos_ids: frozenset[int],
        decode: Callable[[Iterable[int]], str],
        report: Callable[[Delta], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        options = prompt.options
        self._left = options.max_tokens - len(prompt.emitted_ids)
        self._eos_ids = frozenset() if options.ignore_eos else eos_ids
        self._prompt_tokens = prompt_tokens
        self._report = report
        self._is_cancelled = is_cancelled
        self._detokenizer = Detokenizer(decode)
        self._text = AnswerText(options.stop, prompt.emitted_text)
        self._unsent = "".join(map(self._shown, prompt.emitted_ids))
        self.is_over = self._left <= 0 or self._text.is_stopped
        if self.is_over:
            self._finish("length", ())

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self._left

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Take the newest of the ids, int64 (1, length); return bool (1,): is it the last?"""
        del scores
        self.is_over = self._take(int(input_ids[0, -1])) or self._is_cancelled()
        return torch.tensor([self.is_over])

    def _take(self, token_id: int) -> bool:
        """Report one token; return whether the answer ends with it."""
        if token_id in self._eos_ids:
            self._finish("stop", ())
            return True
        self._left -= 1
        self._unsent += self._shown(token_id)
        if self._text.is_stopped or self._left == 0:
            self._finish("length", (token_id,))
            return True
        text, self._unsent = self._unsent, ""
        self._report(Delta(text, (token_id,), self._prompt_tokens))
        return False

    def _shown(self, token_id: int) -> str:
        return self._text.push(self._detokenizer.push(token_id))

    def _finish(self, reason: str, token_ids: tuple[int, ...]) -> None:
        """Report the last delta. A stop text in what was held back goes before `reason`."""
        rest = self._text.push(self._detokenizer.finish()) + self._text.finish()
        reason = "stop" if self._text.is_stopped else reason
        self._report(Delta(self._unsent + rest, token_ids, self._prompt_tokens, reason))
