"""Finding the processes of a part: what a signal is sent to."""

import os
import signal
from pathlib import Path

GENERATIONS = 4  # supervisor, worker, engine, and what that starts


def below(root: int, word: str) -> list[int]:
    """Return the ids of a process and its descendants whose command line holds a word."""
    family, parents = {root}, _parents()
    for _ in range(GENERATIONS):
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sorted(pid for pid in family if word in _command_line(pid))


def send(pids: list[int], signum: signal.Signals) -> list[int]:
    """Send a signal to processes; return those that were still there."""
    sent = []
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
        sent.append(pid)
    return sent


def _parents() -> dict[int, int]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
