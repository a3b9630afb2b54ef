"""What an engine does not tell: how many tokens its cache holds, how many it knows. Pure."""

from typing import Any

_INSIDE = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where the configuration of a model that sees keeps that of its language model."""


def token_bytes(config: Any, tp: int) -> int | None:
    """Return what one token takes in one GPU's cache, keys and values in 16 bits.

    `config` is a checkpoint's; what is nested in it may be an object or a dict, as it is where the
    model's own code was not run. None where it does not say enough.
    """
    text = _text(config)
    heads, layers = _said(text, "num_attention_heads"), _said(text, "num_hidden_layers")
    if not heads or not layers:
        return None
    kv_heads = _said(text, "num_key_value_heads") or heads
    size = _said(text, "head_dim") or (_said(text, "hidden_size") or 0) // heads
    return 2 * 2 * int(layers) * max(int(kv_heads) // tp, 1) * int(size) or None


def vocabulary(config: Any) -> int | None:
    """Return how many tokens the language model knows, None where its configuration is silent."""
    said = _said(_text(config), "vocab_size")
    return int(said) if said else None


def _text(config: Any) -> Any:
    """Return the innermost configuration: the language model's."""
    inside = (_said(config, name) for name in _INSIDE)
    inner = next((one for one in inside if one is not None), None)
    return config if inner is None else _text(inner)


def _said(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)
