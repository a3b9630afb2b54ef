"""Totals over all processes since the first start, as the scripts count them.

Read in a handful of commands, whatever the number of jobs: the counting is part of each transition.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from worker.contract import keys
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry

_BOUNDS_S = (*(bound_ms / 1000 for bound_ms in keys.BUCKETS_MS), math.inf)
_REASON_CHARS = 300  # of a label
HISTOGRAMS = ("queue", "media", "ttft", "total", "eta_error")


@dataclass(slots=True)
class Histogram:
    """Counts of jobs by upper bound, not yet summed up, and the sum of what was observed.

    `counts` has seconds as keys in their order, infinity the last; `sum_s` in seconds.
    """

    counts: dict[float, int] = field(default_factory=lambda: dict.fromkeys(_BOUNDS_S, 0))
    sum_s: float = 0.0

    def take(self, label: str, number: int) -> None:
        """Add one of its totals: `sum`, or a bound in ms."""
        if label == "sum":
            self.sum_s = number / 1000
        else:
            self.counts[float(label) / 1000] = number


@dataclass(slots=True)
class Totals:
    """What one reading gives.

    `finished` by (status, model), `swept` by what was done, `takeovers` (attempts lost with their
    worker) by lane, `histograms` by (name of `HISTOGRAMS`, model), `depths` by queue, `workers` by
    (role, state), `troubles` (workers that are not well) by (role, state, host, GPUs, reason),
    `held` (jobs that workers hold) by role, `dead` jobs in the dead list.
    `callbacks` are tries by result: delivered, failed (to be repeated), given_up, dropped; `owed`
    events are still to be delivered, the oldest for `owed_s`; `endpoints_disabled` get none.
    """

    finished: dict[tuple[str, str], int] = field(default_factory=dict)
    swept: dict[str, int] = field(default_factory=dict)
    takeovers: dict[str, int] = field(default_factory=dict)
    sweeps: int = 0
    histograms: dict[tuple[str, str], Histogram] = field(
        default_factory=lambda: defaultdict(Histogram)
    )
    depths: dict[str, int] = field(default_factory=dict)
    workers: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    troubles: dict[tuple[str, str, str, str, str], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dead: int = 0
    callbacks: dict[str, int] = field(default_factory=dict)
    owed: int = 0
    owed_s: float = 0.0
    endpoints_disabled: int = 0


async def read_totals(door: RedisDoor) -> Totals:
    """Return all totals now. Raises StoreUnavailable."""
    registry, totals = Registry(door), Totals()
    for name, number in (await door.command("HGETALL", door.key("stats"))).items():
        _sort_in(totals, name, int(number))
    for worker in await registry.workers():
        totals.workers[worker["role"], worker["state"]] += 1
        totals.held[worker["role"]] += worker["in_flight"]
        if reason := worker["reason"][:_REASON_CHARS]:
            role, state, host, gpus = (worker[name] for name in ("role", "state", "host", "gpus"))
            totals.troubles[role, state, host, gpus, reason] += 1
    totals.depths = await registry.depths()
    totals.dead = int(await door.command("ZCARD", door.key("dead")))
    await _read_debts(door, totals)
    return totals


async def _read_debts(door: RedisDoor, totals: Totals) -> None:
    async with door.redis.pipeline(transaction=False) as pipe:
        pipe.zcard(door.key("hooks_owed"))
        pipe.zrange(door.key("hooks_owed"), 0, 0, withscores=True)
        pipe.zcard(door.key("endpoints"))
        pipe.hlen(door.key("hook_filters"))
        pipe.time()
        owed, oldest, there, enabled, (seconds, _) = await door.guard(pipe.execute())
    totals.owed, totals.endpoints_disabled = owed, there - enabled
    if oldest:
        totals.owed_s = max(0.0, seconds - oldest[0][1] / 1000)


def _sort_in(totals: Totals, field_name: str, number: int) -> None:
    name, label, model = field_name.split("\t", 2)
    match name:
        case "finished":
            totals.finished[label, model] = number
        case "swept":
            totals.swept[label] = number
        case "takeovers":
            totals.takeovers[label] = number
        case "hooks":
            totals.callbacks[label] = number
        case "sweeps":
            totals.sweeps = number
        case _ if name in HISTOGRAMS:
            totals.histograms[name, model].take(label, number)
        case _:
            pass  # a younger version's, during a rolling restart
