"""One answer: token ids in, as many as came since the last time, deltas out."""

from collections.abc import Callable, Iterable, Sequence

from worker.engine.answer import AnswerText
from worker.engine.base import Delta, Prompt
from worker.engine.detokenizer import Detokenizer


class Answering:
    """Turns what the engine sampled into deltas, and says when the answer is over.

    `eos_ids` end an answer and are no part of it. `decode` turns ids into text, without special
    tokens.
    """

    def __init__(
        self,
        prompt: Prompt,
        *,
        prompt_tokens: int,
        eos_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        options = prompt.options
        self._left = options.max_tokens - len(prompt.emitted_ids)
        self._eos_ids = frozenset() if options.ignore_eos else eos_ids
        self._has_stops = bool(options.stop)
        self._prompt_tokens = prompt_tokens
        self._detokenizer = Detokenizer(decode)
        self._text = AnswerText(options.stop, prompt.emitted_text)
        self._unsent = self._shown(prompt.emitted_ids)[1]

    @property
    def is_over(self) -> bool:
        """True where earlier attempts left nothing to generate."""
        return self._left <= 0 or self._text.is_stopped

    def take(self, sampled: Sequence[int], *, is_last: bool) -> Delta:
        """Return the delta for newly sampled tokens; `is_last`: the engine has ended the answer."""
        ids, has_ended = self._before_end(sampled)
        taken, text = self._shown(ids)
        self._left -= taken
        self._unsent += text
        kept = tuple(ids[:taken])
        if self._text.is_stopped:
            return self.last(kept)
        if has_ended:
            return self.last(kept, "stop")
        if is_last or self._left <= 0:
            return self.last(kept)
        text, self._unsent = self._unsent, ""
        return Delta(text, kept, self._prompt_tokens)

    def last(self, token_ids: tuple[int, ...] = (), reason: str = "length") -> Delta:
        """Return the last delta. A stop text in what was held back goes before `reason`."""
        rest = self._text.push(self._detokenizer.finish()) + self._text.finish()
        reason = "stop" if self._text.is_stopped else reason
        return Delta(self._unsent + rest, token_ids, self._prompt_tokens, reason)

    def _before_end(self, sampled: Sequence[int]) -> tuple[Sequence[int], bool]:
        """Return the tokens before the one that ends the text, and whether there is one."""
        sampled = sampled[: max(self._left, 0)]
        end = next((at for at, token in enumerate(sampled) if token in self._eos_ids), None)
        return (sampled, False) if end is None else (sampled[:end], True)

    def _shown(self, ids: Iterable[int]) -> tuple[int, str]:
        """Return how many tokens were taken, and what of their text may be streamed.

        With stop texts one token at a time: those after the one that completes such a text are no
        part of the answer. Without, all at once, which costs as much as one.
        """
        ids = list(ids)
        if not self._has_stops:
            return len(ids), self._text.push(self._detokenizer.push(*ids)) if ids else ""
        texts = []
        for number, token_id in enumerate(ids, start=1):
            texts.append(self._text.push(self._detokenizer.push(token_id)))
            if self._text.is_stopped:
                return number, "".join(texts)
        return len(ids), "".join(texts)
