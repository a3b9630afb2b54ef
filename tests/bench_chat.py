"""What a job costs each process in CPU time, from its submission to the end of its stream.

    python -m tests.bench_chat [--jobs 1024] [--tokens 128] [--rate 60] [--pixels 448] [--json]

Starts everything with `forebay up` and the echo engine, which says `tokens` at `rate` a second,
about what a GPU gives to each of 256 answers (`--tokens 36 --rate 17` is how LMDeploy's 128 come,
3.5 at a time), and asks for all jobs at once. Prints CPU
milliseconds per job of each process and its threads: `hub` is a process' main thread (Celery's, in
a worker), `loop` the busiest other one. CPU time is what counts: one process' share of a core is
what bounds jobs per second, and unlike the rate it hardly depends on who else uses the machine.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.support.up import Up, up
from worker.bench.load import Load, Report
from worker.bench.run import bench

WARM_UP = 64  # jobs that nobody times: imports, connections
TICK_S = 0.01
ROLES = {
    "chat worker": "worker.tasks chat",
    "engine": "worker.engine.host",
    "media worker": "worker.tasks media",
    "api": "worker.cli api",
    "redis": "valkey-server",
    "s3": "weed",
}


class Threads(NamedTuple):
    """CPU seconds of a process: its main thread, the busiest other one, all others."""

    hub: float
    loop: float
    others: float


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rate", type=float, default=60.0, help="tokens per second of each answer")
    parser.add_argument("--pixels", type=int, default=448, help="a picture's side, 0 for text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with up(data, "--engine", "echo", FOREBAY_LOG_LEVEL="INFO") as running:
            load = Load(
                running.url,
                api="jobs",
                jobs=WARM_UP,
                pixels=args.pixels,
                max_tokens=args.tokens,  # an answer goes on until there
                prompt=f"[[tokens={args.tokens} rate={args.rate:g}]] number {{number}}",
            )
            bench(load)
            report, used = measure(running, load, args.jobs)
    if args.json:
        print(json.dumps({"report": report.as_dict(), "cpu_ms": used}))
    else:
        _show(report, used)


def measure(running: Up, load: Load, jobs: int) -> tuple[Report, dict[str, dict[str, float]]]:
    """Run the jobs; return what the client saw, and CPU milliseconds per job."""
    before = _cpu(running)
    report = bench(replace(load, jobs=jobs))
    after = _cpu(running)
    return report, {
        role: {
            name: round(1000 * (spent - had) / report.jobs, 3)
            for name, spent, had in zip(Threads._fields, after[role], before[role], strict=True)
        }
        for role in after
    }


def _cpu(running: Up) -> dict[str, Threads]:
    return {
        role: _sum([_threads(pid) for pid in running.pids(word)]) for role, word in ROLES.items()
    }


def _threads(pid: int) -> Threads:
    spent = {
        int(stat.parent.name): _seconds(stat) for stat in Path(f"/proc/{pid}/task").glob("*/stat")
    }
    hub = spent.pop(pid, 0.0)
    loop = max(spent.values(), default=0.0)
    return Threads(hub, loop, sum(spent.values()) - loop)


def _seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _sum(all_threads: list[Threads]) -> Threads:
    return (
        Threads(*(sum(column) for column in zip(*all_threads, strict=True)))
        if all_threads
        else Threads(0, 0, 0)
    )


def _show(report: Report, used: dict[str, dict[str, float]]) -> None:
    seen = f"{report.jobs} jobs, {report.failed} failed, {report.pieces_p50:g} pieces each"
    table = Table("CPU ms per job", "sum", *Threads._fields, title=seen, title_justify="left")
    for role, spent in used.items():
        table.add_row(role, *(f"{ms:.2f}" for ms in (sum(spent.values()), *spent.values())))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
