"""Sets a Python process's wall clock ahead, before anything else is imported.

Stands on the PYTHONPATH of the process whose clock is wrong; `CLOCK_AHEAD_S` says by how much. Time
that runs (monotonic) stays as it is, as it does on a host with a wrong clock.
"""

import datetime as dt
import os
import time

AHEAD_S = float(os.environ.get("CLOCK_AHEAD_S", "0"))
AHEAD = dt.timedelta(seconds=AHEAD_S)

_time, _time_ns = time.time, time.time_ns


class _Ahead(dt.datetime):
    """`datetime` with a `now` of our own."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> "_Ahead":
        return super().now(tz) + AHEAD

    @classmethod
    def utcnow(cls) -> "_Ahead":
        return super().now(dt.UTC).replace(tzinfo=None) + AHEAD


if AHEAD_S:
    time.time = lambda: _time() + AHEAD_S
    time.time_ns = lambda: _time_ns() + int(AHEAD_S * 1e9)
    dt.datetime = _Ahead  # type: ignore[misc]  # the very replacement that is wanted
