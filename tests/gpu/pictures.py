"""Pictures for runs on a GPU host."""

import base64
from functools import cache

from worker.bench.load import picture_url


@cache
def jpeg(number: int) -> bytes:
    """Return a meadow of 448 × 448 as a JPEG file."""
    return base64.b64decode(picture_url(448, number).partition(",")[2])
