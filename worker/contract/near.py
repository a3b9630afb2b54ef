"""Which jobs begin alike: what an engine has computed for one of them, it need not for the next."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from worker.contract.job import ChatRequest

_HEX_DIGITS = 16  # of 64: two beginnings that meet by chance share a worker, nothing else


def near_of(request: ChatRequest) -> str:
    """Return a short hash of a conversation's beginning, the same for what follows on it.

    The beginning goes up to the first picture or video, that one included, or where there is none
    up to the end of the first user turn; of a medium counts where it is, nothing is fetched. So all
    follow-ups of a conversation have the same one, and so do questions that come after a picture.
    Text before the picture counts: a cache of prefixes does not get past where two of them part.
    """
    beginning = [request.model, *_beginning(request)]
    return hashlib.sha256(json.dumps(beginning).encode()).hexdigest()[:_HEX_DIGITS]


def goes_on(request: ChatRequest) -> bool:
    """Return whether there was an answer before: all of that conversation is spared then.

    A single question without a picture is as good anywhere: what it shares with others is short.
    """
    return any(message.role == "assistant" for message in request.messages)


def _beginning(request: ChatRequest) -> Iterator[list[Any]]:
    """Yield role and parts of each turn; a part is a text, or place, place of a medium."""
    for message in request.messages:
        parts: list[Any] = []
        for part in message.parts:
            if isinstance(part, int):
                medium = request.media[part]
                yield [message.role, parts, medium.type, medium.url, medium.object_key]
                return
            parts.append(part)
        yield [message.role, parts]
        if message.role == "user" and not request.media:
            return
