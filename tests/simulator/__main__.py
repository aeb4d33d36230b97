"""`python -m tests.simulator`: replay one night, or run many."""

from __future__ import annotations

import argparse
import random
import sys
import time

from .night import Report, run_night, run_nights
from .plan import Plan, draw


def main() -> int:
    """0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this night and print its trace")
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    options = parser.parse_args()
    if options.seed is not None:
        return _replay(options.seed)
    return _many(options.first, options.nights)


def _replay(seed: int) -> int:

    plan: Plan = draw(random.Random(seed))
    for name, value in vars(plan).items():
        print(f"{name:>22}: {len(value) if name == 'questions' else value}")
    report = run_night(seed)
    for at, who, what in report.trace:
        print(f"{at:12.6f}  {who:<14} {what}")
    print(_line(report))
    return int(report.broken is not None)


def _many(first: int, nights: int) -> int:
    begun = time.monotonic()
    steps = bills = again = crashes = 0
    for report in run_nights(range(first, first + nights)):
        if report.broken is not None:
            print(_line(report))
            print(f"replay: python -m tests.simulator --seed {report.seed}")
            return 1
        steps, bills = steps + report.steps, bills + report.bills
        again, crashes = again + report.again, crashes + report.crashes
    seconds = time.monotonic() - begun
    print(
        f"{nights} nights kept every promise: {steps:,} steps, {bills:,} bills ({again:,} for "
        f"questions billed before), {crashes:,} crashes; {nights / seconds * 60:,.0f} nights/min"
    )
    return 0


def _line(report: Report) -> str:
    result = f"BROKEN: {report.broken}" if report.broken else "every promise kept"
    return f"seed {report.seed}: {result} · {report.steps} steps · trace {report.digest()}"


if __name__ == "__main__":
    sys.exit(main())
