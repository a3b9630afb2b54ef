"""One answer: token ids in, as many as came since the last time, deltas out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from worker.contract.errors import EngineFailed
from worker.engine.base import Delta, Prompt, TokenLogprob
from worker.engine.channels import NO_WORDS, Channels, Words
from worker.engine.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the engine sampled since the last time; `is_last`: it has ended the answer.

    `logprobs` has one entry per id where they were asked for: the chosen token first, then the
    likeliest, each with the logarithm of its probability.
    """

    ids: Sequence[int]
    logprobs: Sequence[Mapping[int, float]] = ()
    is_last: bool = False


class Answering:
    """Turns what the engine sampled into deltas, and says when the answer is over.

    `eos_ids` end an answer and are no part of it. `decode` turns ids into text, without special
    tokens; `spell` one id into its bytes. `reasons` and `is_thinking` as for `Channels`. `repeats`:
    the engine begins the answer anew, and what earlier attempts emitted will come once more.
    """

    def __init__(
        self,
        prompt: Prompt,
        *,
        prompt_tokens: int,
        eos_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        spell: Callable[[int], bytes] = lambda _: b"",
        reasons: bool = False,
        is_thinking: bool = False,
        repeats: bool = False,
    ) -> None:
        options = prompt.options
        self._left = options.max_tokens - len(prompt.emitted_ids)
        self._eos_ids = frozenset() if options.ignore_eos else eos_ids
        self._may_stop = bool(options.stop) or options.tools is not None
        self._prompt_tokens = prompt_tokens
        self._top = options.top_logprobs
        self._spell = spell
        self._detokenizer = Detokenizer(decode)
        self._channels = Channels(prompt, reasons=reasons, is_thinking=is_thinking)
        self._repeated = list(prompt.emitted_ids) if repeats else []
        self._unsent = self._shown(prompt.emitted_ids)[1]

    @property
    def is_over(self) -> bool:
        """True where earlier attempts left nothing to generate."""
        return self._left <= 0 or self._channels.is_stopped

    def take(self, sampled: Sampled) -> Delta:
        """Return the delta for newly sampled tokens."""
        fresh = self._fresh(sampled.ids)
        ids, has_ended = self._before_end(fresh)
        taken, words = self._shown(ids)
        self._left -= taken
        self._unsent += words
        kept = tuple(ids[:taken])
        likely = self._likely(kept, sampled.logprobs, after=len(sampled.ids) - len(fresh))
        if self._channels.is_stopped:
            return self.last(kept, likely=likely)
        if has_ended:
            return self.last(kept, "stop", likely=likely)
        if sampled.is_last or self._left <= 0:
            return self.last(kept, likely=likely)
        words, self._unsent = self._unsent, NO_WORDS
        return self._delta(words, kept, None, likely)

    def last(
        self,
        token_ids: tuple[int, ...] = (),
        reason: str = "length",
        *,
        likely: tuple[TokenLogprob, ...] = (),
    ) -> Delta:
        """Return the last delta. A stop text in what was held back goes before `reason`."""
        rest = self._channels.push(self._detokenizer.finish()) + self._channels.finish()
        reason = self._channels.reason("stop" if self._channels.is_stopped else reason)
        return self._delta(self._unsent + rest, token_ids, reason, likely)

    def _delta(
        self,
        words: Words,
        token_ids: tuple[int, ...],
        reason: str | None,
        likely: tuple[TokenLogprob, ...],
    ) -> Delta:
        return Delta(
            words.text,
            token_ids,
            self._prompt_tokens,
            reason,
            reasoning=words.reasoning,
            tool_calls=words.tool_calls,
            logprobs=likely,
        )

    def _likely(
        self, ids: Sequence[int], logprobs: Sequence[Mapping[int, float]], *, after: int
    ) -> tuple[TokenLogprob, ...]:
        if self._top is None:
            return ()
        pairs = zip(ids, logprobs[after:], strict=False)
        return tuple(self._told(token_id, known) for token_id, known in pairs)

    def _told(self, token_id: int, known: Mapping[int, float]) -> TokenLogprob:
        """Say how likely a token was; an engine tells one more than was asked for, the chosen."""
        best = sorted(known.items(), key=lambda item: -item[1])
        top = (TokenLogprob(self._spell(one), value) for one, value in islice(best, self._top))
        return TokenLogprob(self._spell(token_id), known[token_id], tuple(top))

    def _fresh(self, sampled: Sequence[int]) -> Sequence[int]:
        """Return what earlier attempts have not emitted; what they have must come out the same.

        Raises:
            EngineFailed: it does not, so nothing that may follow would fit.
        """
        if not self._repeated:
            return sampled
        again = len(self._repeated[: len(sampled)])
        if list(sampled[:again]) != self._repeated[:again]:
            raise EngineFailed(
                "the answer could not be taken up again: an answer of a given format is begun anew "
                "after its engine died, and this one came out otherwise"
            )
        del self._repeated[:again]
        return sampled[again:]

    def _before_end(self, sampled: Sequence[int]) -> tuple[Sequence[int], bool]:
        """Return the tokens before the one that ends the text, and whether there is one."""
        sampled = sampled[: max(self._left, 0)]
        if not self._eos_ids:
            return sampled, False
        end = next((at for at, token in enumerate(sampled) if token in self._eos_ids), None)
        return (sampled, False) if end is None else (sampled[:end], True)

    def _shown(self, ids: Sequence[int]) -> tuple[int, Words]:
        """Return how many tokens were taken, and what of their text may be streamed.

        With stop texts or tools one token at a time: those after the one that ends the answer are
        no part of it. Without, all at once, which costs as much as one.
        """
        words = NO_WORDS
        if not self._may_stop:
            return len(ids), self._pushed(*ids) if ids else words
        for number, token_id in enumerate(ids, start=1):
            words += self._pushed(token_id)
            if self._channels.is_stopped:
                return number, words
        return len(ids), words

    def _pushed(self, *token_ids: int) -> Words:
        return self._channels.push(self._detokenizer.push(*token_ids))
