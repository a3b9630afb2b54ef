"""One answer while `generate` makes it, in a thread: tokens in, deltas out, and when to stop."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from worker.contract.errors import OptionUnsupported
from worker.engine.base import Delta, Prompt
from worker.engine.channels import Channels, Words
from worker.engine.detokenizer import Detokenizer
from worker.engine.transformers.checkpoint import Checkpoint
from worker.engine.transformers.constraint import Constraint
from worker.engine.transformers.grammar import grammar_of
from worker.engine.transformers.logprobs import Watching


@dataclass(frozen=True, slots=True)
class Ears:
    """What hears every token: `channels` its text, the others where the options want them."""

    channels: Channels
    constraint: Constraint | None = None
    watching: Watching | None = None


def ears_for(prompt: Prompt, checkpoint: Checkpoint, *, is_thinking: bool) -> Ears:
    """Return what listens to the answer to a prompt.

    Raises:
        OptionUnsupported: the checkpoint cannot do what is asked.
        InvalidRequest: no answer can be made to fit a schema.
    """
    options, alphabet, reasons = prompt.options, checkpoint.alphabet, checkpoint.reasons
    channels = Channels(prompt, reasons=reasons, is_thinking=is_thinking)
    if options.tools is not None and not checkpoint.knows_tools:
        raise OptionUnsupported("the model's chat template knows no tools", param="tools")
    grammar = grammar_of(options, reasons=reasons, is_thinking=is_thinking)
    if alphabet is None:
        if grammar is not None or options.top_logprobs is not None:
            raise OptionUnsupported("the model's tokens cannot be spelled")
        return Ears(channels)
    param = "tools" if options.json_schema is None else "response_format"
    return Ears(
        channels,
        None if grammar is None else Constraint(alphabet, grammar, param),
        None if options.top_logprobs is None else Watching(alphabet, options.top_logprobs),
    )


class Answering(StoppingCriteria):
    """Sees each new token, reports it, and says whether it was the last.

    `generate` calls it after every token; there is nothing else in it that could end an answer. An
    end-of-text token ends the answer and is no part of it, not even as an id.
    """

    def __init__(
        self,
        prompt: Prompt,
        ears: Ears,
        *,
        prompt_tokens: int,
        eos_ids: frozenset[int],
        decode: Callable[[Iterable[int]], str],
        report: Callable[[Delta], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        options = prompt.options
        self._left = options.max_tokens - len(prompt.emitted_ids)
        # A grammar says itself when the answer may end.
        self._eos_ids = eos_ids if ears.constraint or not options.ignore_eos else frozenset()
        self._prompt_tokens = prompt_tokens
        self._report = report
        self._is_cancelled = is_cancelled
        self._detokenizer = Detokenizer(decode)
        self._ears = ears
        self._unsent = sum(map(self._heard, prompt.emitted_ids), Words())
        self.is_over = self._left <= 0 or self._is_whole
        if self.is_over:
            self._report(self._last("length"))

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
            self._report(self._last("stop"))
            return True
        self._left -= 1
        self._unsent += self._heard(token_id)
        is_last = self._is_whole or self._left == 0
        self._report(self._last("length", token_id) if is_last else self._delta(token_id))
        return is_last

    @property
    def _is_whole(self) -> bool:
        constraint = self._ears.constraint
        return self._ears.channels.is_stopped or (constraint is not None and constraint.is_over)

    def _heard(self, token_id: int) -> Words:
        if self._ears.constraint is not None:
            self._ears.constraint.take(token_id)
        return self._ears.channels.push(self._detokenizer.push(token_id))

    def _last(self, reason: str, *token_ids: int) -> Delta:
        """Return the last delta. A stop text in what was held back goes before `reason`."""
        channels = self._ears.channels
        self._unsent += channels.push(self._detokenizer.finish())
        self._unsent += channels.finish()
        reason = channels.reason("stop" if self._is_whole else reason)
        return self._delta(*token_ids, reason=reason)

    def _delta(self, *token_ids: int, reason: str | None = None) -> Delta:
        words, self._unsent = self._unsent, Words()
        watching = self._ears.watching
        return Delta(
            words.text,
            token_ids,
            self._prompt_tokens,
            reason,
            reasoning=words.reasoning,
            tool_calls=words.tool_calls,
            logprobs=tuple(map(watching.of, token_ids)) if watching else (),
        )
