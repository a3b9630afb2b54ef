"""Who was there to take over: the chat workers that live, looked at many times a second.

A worker counts while it says that it is ready and its process runs: one that was killed is not yet
struck off in Redis, and a stopped one says nothing at all.
"""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.registry import Registry

LOOK_S = 0.1
_GONE_OR_STOPPED = "ZXTt"


@dataclass(frozen=True, slots=True)
class Blow:
    """One strike: when, ms since the epoch, and the chat workers it hit, by owner name.

    None are named where it hit a store, the network or another role.
    """

    at_ms: int
    owners: frozenset[str] = frozenset()


@dataclass(slots=True)
class Watch:
    """What was seen: `looks` are moments (ms, ascending) and the owners that were ready then."""

    looks: list[tuple[int, frozenset[str]]] = field(default_factory=list)
    _owner_by_pid: dict[int, str] = field(default_factory=dict)

    async def run(self, door: RedisDoor) -> None:
        """Look for ever."""
        registry = Registry(door)
        while True:
            try:
                said = await registry.workers()
            except StoreUnavailable:
                said = []  # what they can do without a store is to wait, too
            chats = [info for info in said if info["role"] == "chat"]
            self._owner_by_pid |= {info["pid"]: info["owner"] for info in chats}
            ready = (info for info in chats if info["state"] == "ready" and _runs(info["pid"]))
            self.looks.append((_now_ms(), frozenset(info["owner"] for info in ready)))
            await asyncio.sleep(LOOK_S)

    def blow(self, pids: Sequence[int]) -> Blow:
        """Return a strike at these processes, now."""
        owners = (self._owner_by_pid.get(pid) for pid in pids)
        return Blow(_now_ms(), frozenset(owner for owner in owners if owner))

    def is_served(self, since: Blow, until_ms: int) -> bool:
        """Whether a worker that a strike did not hit was ready at every look until a moment."""
        moments = [moment for moment, _ in self.looks]
        first = bisect_left(moments, since.at_ms)
        last = max(bisect_right(moments, until_ms), first + 1)  # at least the next one
        return all(ready - since.owners for _, ready in self.looks[first:last])


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in _GONE_OR_STOPPED


def _now_ms() -> int:
    return int(time.time() * 1000)
