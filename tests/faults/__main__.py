"""The fault-injection suite.

    python -m tests.faults [--jobs N] [--rate R] [--only NAME …] [--broker redis|rabbitmq]
                           [--report FILE] [--results FILE]

Real processes, each struck at random moments while callers hand jobs in; exit status 1 where
anything was lost, ended twice, or came to a reader with a gap or a repeat. Results are kept after
each fault, so that the suite may be run in pieces.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.faults import report
from tests.faults.audit import Verdict
from tests.faults.run import run_fault
from tests.faults.strikes import BROKERS, FAULTS, names_for

REPORT = Path(__file__).with_name("REPORT.md")


def main() -> int:
    """Run the faults that are asked for; print a line each and write the report."""
    args = _parse()
    verdicts = _kept(args.results)
    for name in args.only or names_for(args.broker):
        verdict = _run(name, args)
        verdicts[verdict.name] = verdict
        print(report.line(verdict), f"({verdict.wall_s:.0f} s)", flush=True)
        for trouble in verdict.troubles[: report.TROUBLES_SHOWN]:
            print("   ", trouble, flush=True)
        _keep(args, verdicts)
    return 0 if all(verdict.is_clean for verdict in verdicts.values()) else 1


def _kept(path: Path | None) -> dict[str, Verdict]:
    """Return the verdicts of earlier runs by fault."""
    if path is None or not path.exists():
        return {}
    return {name: Verdict(**kept) for name, kept in json.loads(path.read_text()).items()}


def _keep(args: argparse.Namespace, verdicts: dict[str, Verdict]) -> None:
    if args.results:
        kept = {name: asdict(verdict) for name, verdict in verdicts.items()}
        args.results.write_text(json.dumps(kept, indent=1))
    if args.report:
        order = list(FAULTS)
        in_order = sorted(verdicts.values(), key=lambda verdict: order.index(verdict.fault))
        text = report.markdown(in_order, jobs=args.jobs, rate=args.rate, seed=args.seed)
        args.report.write_text(text, encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--jobs", type=int, default=3000, help="per fault")
    parser.add_argument("--rate", type=float, default=60.0, help="jobs per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", help=" ".join(FAULTS))
    parser.add_argument(
        "--broker", choices=BROKERS, default="redis", help="rabbitmq must be installed"
    )
    parser.add_argument("--report", type=Path, help=f"a Markdown file, such as {REPORT}")
    parser.add_argument("--results", type=Path, help="a JSON file that keeps what was measured")
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    return parser.parse_args()


def _run(name: str, args: argparse.Namespace) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="forebay-faults-") as scratch:
        folder = (args.folder / name) if args.folder else Path(scratch)
        folder.mkdir(parents=True, exist_ok=args.folder is None)  # an old run would be counted too
        return asyncio.run(
            run_fault(
                FAULTS[name],
                folder,
                jobs=args.jobs,
                rate=args.rate,
                seed=args.seed,
                broker=args.broker,
            )
        )


if __name__ == "__main__":
    sys.exit(main())
