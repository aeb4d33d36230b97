"""How long an answer takes from its arrival to the disk, and what a sync alone takes here.

    .venv/bin/python benchmarks/journal.py [--folder DIR]

Answers arrive at random instants, 5,000 a minute, at one journal on a real disk. An answer is
durable when `put` returns; by then it must not be older than 250 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable
from decimal import Decimal
from pathlib import Path

from ray_judge.escalation.books.journal import JournalWriter, load_journal
from ray_judge.records import Answer, Outcome, Usage
from ray_judge.storage.local import open_storage

PER_MINUTE = 5000
WITHIN_S = 0.25


def main() -> int:
    """Measure and print; 1 when an answer was not durable in time."""
    parser = argparse.ArgumentParser(description="From an answer's arrival to the disk.")
    parser.add_argument("--folder", help="on the disk that is meant; default: a temporary one")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        bare = sorted(one_sync(folder / "bare") for _ in range(50))[25]
        taken = asyncio.run(put_all(folder, options.seconds))
        kept = load_journal(open_storage(str(folder))).frame.height
    assert kept == len(taken), "an answer is missing"
    taken.sort()
    middle, late, worst = (taken[int(share * (len(taken) - 1))] for share in (0.5, 0.99, 1))
    print(
        f"{len(taken)} answers durable within {middle * 1000:.1f} ms (median), "
        f"{late * 1000:.1f} ms (99 %), {worst * 1000:.1f} ms (all); the median is "
        f"{middle / bare:.1f} times a bare write and sync of {bare * 1000:.2f} ms"
    )
    return 0 if worst <= WITHIN_S else 1


def one_sync(path: Path) -> float:
    """Seconds for 400 bytes and an fsync."""
    begun = time.perf_counter()
    with path.open("ab") as file:
        file.write(b"x" * 400)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begun


async def put_all(folder: Path, seconds: float) -> list[float]:
    """Seconds from the instant at which each answer was due until it was durable."""
    rng, journal = random.Random(0), JournalWriter(open_storage(str(folder)), "a", run="run")
    begun = time.perf_counter()

    async def put(number: int, due: float) -> float:
        await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
        await journal.put(answer(number))
        return time.perf_counter() - begun - due

    due = 0.0
    puts: list[Awaitable[float]] = []
    while due < seconds:
        puts.append(put(len(puts), due))
        due += rng.expovariate(PER_MINUTE / 60)
    taken = await asyncio.gather(*puts)
    journal.close()
    return taken


def answer(number: int) -> Answer:
    """One answer like any other."""
    return Answer(
        key=f"{number:064x}",
        outcome=Outcome.RESOLVED,
        verdict="A",
        cost_usd=Decimal("0.000396"),
        usage=Usage(170, 7),
        model="gpt-4.1",
        response_id=f"chatcmpl-{number}",
        lease=f"lease-{number // 16}",
        slot=number % 16,
        at=1_795_000_000.0 + number,
    )


if __name__ == "__main__":
    sys.exit(main())
