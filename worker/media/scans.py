"""How often a JPEG has all of its picture gone over: a few bytes each, milliseconds to decode."""

import re

_SOS, _EOI = 0xDA, 0xD9
# Not stuffed zeros, restarts and fillers, which are inside a scan; nor what has no length.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


def has_more_scans(data: bytes, most: int) -> bool:
    """Return whether a JPEG has more than `most` scans."""
    if data.count(bytes((0xFF, _SOS))) <= most:  # in a good file, by far the most there may be
        return False
    return _scans(data) > most


def _scans(data: bytes) -> int:
    """Count the scans as libjpeg comes by them: to the first end, past what segments hold."""
    found, count = _MARKER.search(data), 0
    while found and found[1][0] != _EOI:
        count += found[1][0] == _SOS
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        found = _MARKER.search(data, found.end() + length)
    return count
