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
    (role, state), `held` (jobs that workers hold) by role, `dead` jobs in the dead list.
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
    held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dead: int = 0


async def read_totals(door: RedisDoor) -> Totals:
    """Return all totals now. Raises StoreUnavailable."""
    registry, totals = Registry(door), Totals()
    for name, number in (await door.command("HGETALL", door.key("stats"))).items():
        _sort_in(totals, name, int(number))
    for worker in await registry.workers():
        totals.workers[worker["role"], worker["state"]] += 1
        totals.held[worker["role"]] += worker["in_flight"]
    totals.depths = await registry.depths()
    totals.dead = int(await door.command("ZCARD", door.key("dead")))
    return totals


def _sort_in(totals: Totals, field_name: str, number: int) -> None:
    name, label, model = field_name.split("\t", 2)
    match name:
        case "finished":
            totals.finished[label, model] = number
        case "swept":
            totals.swept[label] = number
        case "takeovers":
            totals.takeovers[label] = number
        case "sweeps":
            totals.sweeps = number
        case _ if name in HISTOGRAMS:
            totals.histograms[name, model].take(label, number)
        case _:
            pass  # a younger version's, during a rolling restart
