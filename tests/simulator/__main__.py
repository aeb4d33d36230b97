"""`python -m tests.simulator`: replay one night, run many, or see where variants are found."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from .night import Report, run_lot, run_night, run_nights
from .plan import draw
from .variants import VARIANTS

LOT = 250
"""Seeds that one process runs at a time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every promise was kept, or every variant found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this night and print its trace")
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run nights")
    parser.add_argument("--variants", action="store_true", help="print the seed that finds each")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.nights)
    if options.seed is not None:
        return _replay(options.seed)
    return _find_variants(seeds) if options.variants else _many(seeds, options.jobs)


def _replay(seed: int) -> int:
    plan = draw(random.Random(seed))
    asks = {run: [question.key[:6] for question in asked] for run, asked in plan.asks.items()}
    for name, value in (vars(plan) | {"asks": asks}).items():
        print(f"{name:>22}: {value}")
    report = run_night(seed)
    for at, who, what in report.trace:
        print(f"{at:12.6f}  {who:<14} {what}")
    print(_line(report))
    return int(report.broken is not None)


def _many(seeds: range, jobs: int) -> int:
    begun = time.monotonic()
    steps = bills = again = crashes = 0
    for report in _reports(seeds, jobs):
        if report.broken is not None:
            print(_line(report))
            print(f"replay: python -m tests.simulator --seed {report.seed}")
            return 1
        steps, bills = steps + report.steps, bills + report.bills
        again, crashes = again + report.again, crashes + report.crashes
    nights, minutes = len(seeds), (time.monotonic() - begun) / 60
    print(
        f"{nights} nights kept every promise: {steps:,} steps, {bills:,} bills ({again:,} for "
        f"questions billed before), {crashes:,} crashes; {nights / minutes:,.0f} nights/min"
    )
    return 0


def _reports(seeds: range, jobs: int) -> Iterator[Report]:
    """Reports in the order of their seeds, whoever runs them."""
    if jobs == 1:
        yield from run_nights(seeds)
        return
    lots = [seeds[at : at + LOT] for at in range(0, len(seeds), LOT)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            for reports in pool.map(run_lot, lots):
                yield from reports
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _find_variants(seeds: range) -> int:
    missed = 0
    for name, parts in VARIANTS.items():
        found = next((report for report in run_nights(seeds, parts) if report.broken), None)
        print(f"{name:<36} {_line(found) if found else 'NOT FOUND'}", flush=True)
        missed += found is None
    return int(missed > 0)


def _line(report: Report) -> str:
    result = f"BROKEN: {report.broken}" if report.broken else "every promise kept"
    return f"seed {report.seed}: {result} · {report.steps} steps · trace {report.digest()}"


if __name__ == "__main__":
    sys.exit(main())
