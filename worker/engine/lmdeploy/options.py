"""Our options in LMDeploy's words. Pure: nothing here imports LMDeploy."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from worker.contract.errors import OptionUnsupported
from worker.engine.base import EngineOptions, Prompt
from worker.engine.lmdeploy.grammar import is_free

_HONOURED = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "ignore_eos"}
    | {"response_format"}
)
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
_LOGPROBS = frozenset({"logprobs", "top_logprobs"})

MAX_TOP_K = 1024
"""TurboMind's kernel takes no more: it would end the engine with all that is inside."""

_SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: seeds of two attempts differ widely
_SEED_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class Defaults:
    """A checkpoint's generation_config.json, with the guide's defaults in its gaps.

    Source of those: the guide (temperature 1, top_k 50, top_p 1, repetition_penalty 1).
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Read a generation_config. One that says `do_sample: false` is greedy."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: config[name] for name in names if config.get(name) is not None}
        if config.get("do_sample") is False:
            given["temperature"] = 0.0
        return cls(**given)

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Read a checkpoint folder's generation_config.json; without one all is the default."""
        file = folder / "generation_config.json"
        return cls.of(json.loads(file.read_text()) if file.is_file() else {})


def honoured(*, has_logprobs: bool, knows_tools: bool) -> frozenset[str]:
    """Return the optional request fields that an engine honours; others are refused at submission.

    `has_logprobs`: it can tell how likely tokens were by the model's own scores. TurboMind cannot:
    it knows what is left after temperature and top_k, where a greedy token is always certain.
    `knows_tools`: its chat template offers them, and we can read the calls.
    """
    told = _LOGPROBS if has_logprobs else frozenset()
    return _HONOURED | told | (_TOOLS if knows_tools else frozenset())


def generation(
    options: EngineOptions,
    defaults: Defaults,
    *,
    seed: int,
    emitted: int,
    eos_ids: frozenset[int],
    vocabulary: int,
    max_top_k: int | None = None,
    response_format: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the arguments of LMDeploy's GenerationConfig; `response_format` as in `grammar`.

    Stop texts are not among them: LMDeploy stops at tokens that contain such a text, we stop at the
    text. `seed` is the prompt's, which has one in any case. An attempt that goes on after `emitted`
    tokens draws other random numbers than the first attempt did from the same seed: the engine
    would repeat those of the answer's beginning. A top_k of all the `vocabulary` or more is none.

    Raises:
        OptionUnsupported: top_k is over `max_top_k`.
    """
    temperature = _given(options.temperature, defaults.temperature)
    is_greedy = temperature == 0
    said = {
        "max_new_tokens": options.max_tokens - emitted,
        "do_sample": True,  # what is greedy is said by top_k, so that a penalty still counts
        "temperature": 1.0 if is_greedy else temperature,
        "top_k": 1 if is_greedy else _top_k(options, defaults, vocabulary, max_top_k),
        "top_p": 1.0 if is_greedy else _given(options.top_p, defaults.top_p),
        "min_p": 0.0 if is_greedy else _given(options.min_p, defaults.min_p),
        "repetition_penalty": _given(options.repetition_penalty, defaults.repetition_penalty),
        "random_seed": (seed + emitted * _SEED_STEP) % _SEED_LIMIT,
        "ignore_eos": options.ignore_eos,
        "stop_token_ids": sorted(eos_ids),
    }
    if response_format is not None:
        said["response_format"] = response_format
    if options.top_logprobs is not None:
        said["logprobs"] = max(options.top_logprobs, 1)  # with none it tells nothing of any
    return said


def repeats(prompt: Prompt) -> bool:
    """Return whether an answer that was begun is begun anew: a grammar knows only its beginning."""
    return bool(prompt.emitted_ids) and not is_free(prompt.options)


def _top_k(options: EngineOptions, defaults: Defaults, vocabulary: int, most: int | None) -> int:
    """Return top_k as the engine takes it: PyTorch dies of one that is over the vocabulary."""
    top_k: int = _given(options.top_k, defaults.top_k)
    if top_k >= vocabulary:
        return 0
    if most is not None and top_k > most:
        raise OptionUnsupported(
            f"top_k is {top_k}, and this engine takes {most} at most, or 0 for no limit"
        )
    return top_k


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
