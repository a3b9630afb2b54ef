"""How the next token is chosen, so that a seed gives the same answer whatever else runs.

`generate` is always asked for the likeliest token; sampling is a last step that adds noise to the
scores (the Gumbel trick: the likeliest of logits + Gumbel noise is a sample of their softmax). The
noise depends on the seed and the token's place in the answer alone: other prompts draw nothing from
it, and an attempt that goes on at token 40 draws what an undisturbed one would have drawn there.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worker.engine.base import Prompt

_OURS = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "repetition_penalty", "num_beams", "num_return_sequences", "max_length"),
    *("max_new_tokens", "min_length", "min_new_tokens", "eos_token_id", "cache_implementation"),
)
"""What this module and the answer's limits decide; `generate` must not decide it as well."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a prompt's options describe, with every gap filled. `temperature` 0 is greedy."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int

    @classmethod
    def of(cls, prompt: Prompt, config: GenerationConfig) -> Self:
        """Fill the gaps from the checkpoint's generation_config, then from the defaults.

        Source of the defaults: the guide's (temperature 1, top_k 50, top_p 1, repetition_penalty 1,
        a random seed, here one per job). A checkpoint that says `do_sample: false` is greedy until
        a prompt names a temperature.
        """
        options = prompt.options
        return cls(
            temperature=_first(options.temperature, _temperature(config)),
            top_k=_first(options.top_k, config.top_k, 50),
            top_p=_first(options.top_p, config.top_p, 1.0),
            min_p=_first(options.min_p, config.min_p, 0.0),
            repetition_penalty=_first(options.repetition_penalty, config.repetition_penalty, 1.0),
            seed=prompt.seed,
        )

    def processors(self, answer_start: int) -> LogitsProcessorList:
        """Return the steps from a model's scores to those whose greatest is the next token.

        `answer_start` is where the answer begins in the ids, counted in tokens.
        """
        steps: list[LogitsProcessor] = []
        if self.repetition_penalty != 1.0:
            steps.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature > 0:
            steps += self._warpers()
            steps.append(SeededNoise(self.seed, answer_start))
        return LogitsProcessorList(steps)

    def _warpers(self) -> list[LogitsProcessor]:
        steps: list[LogitsProcessor] = []
        if self.temperature != 1.0:
            steps.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            steps.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            steps.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0.0:
            steps.append(MinPLogitsWarper(self.min_p))
        return steps


class SeededNoise(LogitsProcessor):
    """Adds Gumbel noise that depends on the seed and the token's place in the answer alone."""

    def __init__(self, seed: int, answer_start: int) -> None:
        self._seed = seed
        self._answer_start = answer_start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, float32 (1, vocabulary), with noise added; excluded tokens stay so."""
        place = input_ids.shape[1] - self._answer_start
        # Philox is a counter-based generator: any key's stream is independent of its neighbours',
        # which a Mersenne twister seeded with seed + place would not promise.
        random = np.random.Generator(np.random.Philox(key=[self._seed, place]))
        waits = random.standard_exponential(scores.shape[-1], dtype=np.float32)
        noise = -np.log(np.maximum(waits, np.finfo(np.float32).tiny))
        return scores + torch.from_numpy(noise)


def neutral(config: GenerationConfig) -> GenerationConfig:
    """Return a checkpoint's generation_config without what is decided here."""
    plain = deepcopy(config)
    for name in _OURS:
        setattr(plain, name, None)
    plain.do_sample, plain.num_beams, plain.use_cache = False, 1, True
    return plain


def _temperature(config: GenerationConfig) -> float:
    if config.do_sample is False:
        return 0.0
    return float(_first(config.temperature, 1.0))


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)
