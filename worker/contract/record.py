"""How a job's record lies in Redis: short fields under `job:<id>`, long ones under `doc:<id>`.

Redis keeps a hash in one piece of memory only while none of its values is longer than 64 bytes;
else every field is an allocation of its own. Most steps of a job need short fields alone, so these
stand by themselves: a claim or a poll among a million jobs then waits for memory once, not once per
field. A name of a model or a host that is longer than that costs time, nothing else.
"""

from collections.abc import Mapping, Sequence

VIEW_LONG_FIELDS = ("spec", "media", "result", "error", "attempts")
"""What a view needs of the long fields: all but the question and who is to be told."""

LONG_FIELDS = frozenset((*VIEW_LONG_FIELDS, "request", "hook_url", "hook_lane", "hook_filter"))
"""The fields whose length their writer decides. They stand under `doc:<id>`, all others do not."""


def split(fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the short and the long fields, each as the scripts take them: names and values."""
    short: list[str] = []
    long: list[str] = []
    for name, value in fields.items():
        (long if name in LONG_FIELDS else short).extend((name, value))
    return short, long


def join(short: Sequence[str], long: Sequence[str | None]) -> dict[str, str]:
    """Return a record from its short fields (name, value, name…) and its `VIEW_LONG_FIELDS`."""
    record = dict(zip(short[::2], short[1::2], strict=True))
    pairs = zip(VIEW_LONG_FIELDS, long, strict=True)
    return record | {name: value for name, value in pairs if value is not None}
