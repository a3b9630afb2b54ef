"""What an engine says, in OpenAI's objects: calls with their ids, and logprobs of tokens."""

import hashlib
from collections.abc import Sequence
from typing import Any

from worker.engine.base import TokenLogprob, ToolCall

NEVER = -9999.0
"""A logprob of minus infinity, which JSON cannot say. Source: OpenAI's reference."""


def call_objects(job_id: str, first: int, calls: Sequence[ToolCall]) -> tuple[dict[str, Any], ...]:
    """Return calls as `tool_calls` has them; `first` is the number of calls before these.

    A call's id follows from its job and its number, so that it is the same in every attempt.
    """
    return tuple(
        {
            "id": f"call_{hashlib.sha256(f'{job_id}.{number}'.encode()).hexdigest()[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls, start=first)
    )


def logprob_object(entry: TokenLogprob) -> dict[str, Any]:
    """Return one entry of `logprobs.content`."""
    return _token(entry) | {"top_logprobs": [_token(other) for other in entry.top]}


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": _spelled(entry.data),
        "logprob": max(entry.logprob, NEVER),
        "bytes": list(entry.data),
    }


def _spelled(data: bytes) -> str:
    """Return a token as text; one that is no whole character by its bytes, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
