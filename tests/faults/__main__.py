"""The fault-injection suite.

    python -m tests.faults [--jobs N] [--rate R] [--only NAME …] [--report FILE]

Real processes, each struck at random moments while callers hand jobs in; exit status 1 where
anything was lost, ended twice, or came to a reader with a gap or a repeat.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.faults import report
from tests.faults.audit import Verdict
from tests.faults.run import run_fault
from tests.faults.strikes import FAULTS

REPORT = Path(__file__).with_name("REPORT.md")


def main() -> int:
    """Run the faults that are asked for; print a line each and write the report."""
    args = _parse()
    verdicts: list[Verdict] = []
    for name in args.only or FAULTS:
        verdicts.append(_run(name, args))
        print(report.line(verdicts[-1]), f"({verdicts[-1].wall_s:.0f} s)", flush=True)
        for trouble in verdicts[-1].troubles[: report.TROUBLES_SHOWN]:
            print("   ", trouble, flush=True)
        if args.report:
            text = report.markdown(verdicts, jobs=args.jobs, rate=args.rate, seed=args.seed)
            report.write(args.report, text)
    return 0 if all(verdict.is_clean for verdict in verdicts) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--jobs", type=int, default=3000, help="per fault")
    parser.add_argument("--rate", type=float, default=50.0, help="jobs per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", help=" ".join(FAULTS))
    parser.add_argument("--report", type=Path, help=f"a Markdown file, such as {REPORT}")
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    return parser.parse_args()


def _run(name: str, args: argparse.Namespace) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="forebay-faults-") as scratch:
        folder = (args.folder / name) if args.folder else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(
            run_fault(FAULTS[name], folder, jobs=args.jobs, rate=args.rate, seed=args.seed)
        )


if __name__ == "__main__":
    sys.exit(main())
