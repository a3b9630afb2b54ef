"""What `forebay bench` shows."""

import json
import sys

from worker.bench.load import Load, Report, Sample
from worker.bench.run import bench
from worker.progress import told

_EVERY = 32  # answers between two lines of progress


def main(load: Load, *, processes: int, as_json: bool) -> int:
    """Run a load, show its figures, return 0 where every request was answered."""
    done = 0
    with told() as tell:

        def advance(_: Sample) -> None:
            nonlocal done
            done += 1
            if done % _EVERY == 0:
                tell(f"{done} answers")

        tell(f"asking {load.url}")
        result = bench(load, processes, advance)
    text = json.dumps(result.as_dict()) if as_json else table(result)
    sys.stdout.write(f"{text}\n")
    return 0 if result.jobs and not result.failed else 1


def table(result: Report) -> str:
    """Return the figures as lines for a person."""
    rows = [
        ("answered", f"{result.jobs} in {result.seconds:g} s, {result.failed} failed"),
        ("rate", f"{result.jobs_per_s:g} jobs/s, {result.tokens_per_s:g} tokens/s"),
        ("first token", _times(result.ttft_p50_s, result.ttft_p99_s)),
        ("whole answer", _times(result.total_p50_s, result.total_p99_s)),
        ("in the queue", _times(result.queue_p50_s, result.queue_p99_s)),
        ("pieces", f"{result.pieces_p50 or 0:g} (p50), {result.pieces_min or 0} at least"),
        *((f"error {code}", str(number)) for code, number in result.errors.items()),
    ]
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _times(p50: float | None, p99: float | None) -> str:
    return "–" if p50 is None else f"{p50:.3f} s (p50), {p99:.3f} s (p99)"
