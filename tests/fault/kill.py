"""Real processes, killed with SIGKILL at random instants, and continued to the end.

    python -m tests.fault.kill --runs 100 --rows 2000

Each run scores the same rows against the simulated provider, whose own books are the judge. A
seed decides who is killed (the driver, the asker's process, the governor's) and after how many
bills; `test_kill.py` makes a few runs of it in CI.

A question that was billed twice must be explained by the death of an asker that had it in flight,
or had its answer for no more than 250 ms. How late this machine lets a process run is measured and
added. When the books were claimed is noted: so a successor that asks what its predecessor has in
flight is told apart from an asker that was starved.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from ray_judge.config import load
from ray_judge.escalation.books.books import Books
from tests.conftest import start_ray, temporary_folder
from tests.pipeline.conftest import Run
from tests.provider import RunningServer, running_server
from tests.unit.builders import pairs

from .runs import by_bill, by_question, document

# Read by Ray's processes when they start: a raylet on a busy machine is slow, not dead, and its
# workers run at our own priority, where Ray would leave them what the machine does not need.
os.environ.setdefault("RAY_health_check_failure_threshold", "30")
os.environ.setdefault("RAY_worker_niceness", "0")

WINDOW_S = 0.25
SLACK_S = 0.05
"""Between the signal and the last instruction of its target, and between two readings."""
LATENCY = {"min_ms": 20.0, "max_ms": 50.0}
"""Of a provider that answers like a quick real one."""
ACTORS = {"asker": b"ray::AskerActor", "governor": b"ray::GovernorActor"}
VICTIMS = ("driver", *ACTORS)


def described(folder: Path, server: RunningServer, cap: str = "5") -> Run:
    """One run directory over `in` beside it, scored by as many processes as it takes."""
    folder.mkdir(exist_ok=True)
    told = document(folder.parent / "in", folder / "out", server, max_cost_usd=cap)
    return Run(folder, server, {**told, "chunk_rows": 100}, folder / "out")


def finish(run: Run, address: str | None, code: int = 0) -> str:
    """Run the command to its end, and to this exit code; gives what it said."""
    process = run.start(address)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def rows_of(run: Run) -> pl.DataFrame:
    """All scored rows, less what a crash may change: what their attempts cost."""
    return run.scored().drop("strong_cost_usd")


def write_pairs(folder: Path, rows: int) -> None:
    folder.mkdir()
    half = rows // 2
    pq.write_table(pairs(half), folder / "part-0.parquet")
    pq.write_table(pairs(rows - half, first=half), folder / "part-1.parquet")


# --- killing ---


def descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`: nobody else's Ray is ever touched."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children[parent].append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        found = children[waiting.pop()]
        yield from found
        waiting.extend(found)


def actor_pids(kind: str) -> list[int]:
    """The processes of actors of this class, by the title that Ray gives them, the newest last.

    There may be several: those of a driver that was killed outlive it for some seconds.
    """
    found = []
    for pid in descendants(os.getpid()):
        try:
            if (Path("/proc") / str(pid) / "cmdline").read_bytes().startswith(ACTORS[kind]):
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


EXITING = 0x4
"""PF_EXITING of the kernel: the process runs no more, its memory is being taken apart."""


def alive(pid: int) -> bool:
    """Whether a process still runs: one that ends does not, long before it is gone."""
    try:
        stat = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return stat[0] != "Z" and not int(stat[6]) & EXITING


@dataclass
class Night:
    """What became of one run: who was killed when, and what the provider billed."""

    victims: list[str] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    """When an asker's process was gone, seconds of the system-wide monotonic clock: killed, or
    ended by Ray some time after its driver or its session."""
    starts: int = 0
    twice: int = 0
    unexplained: list[str] = field(default_factory=list)
    allowed: int = 0
    """Questions in flight at a death, or answered in the 250 ms before."""
    late_s: float = 0.0
    """How late this machine let a process run, at worst: an answer that lay on its asker's socket,
    or a watcher that woke up."""
    usd: Decimal = Decimal(0)
    seconds: float = 0.0


def draw(rng: random.Random, rows: int) -> list[tuple[str, int]]:
    """One to three kills: of whom, and after how many bills."""
    victims = [rng.choice(VICTIMS) for _ in range(rng.choice((1, 1, 2, 3)))]
    after = sorted(rng.randint(0, int(rows * 0.95)) for _ in victims)
    return list(zip(victims, after, strict=True))


def run_killed(
    run: Run, address: str, seed: int, rows: int, kills: Sequence[tuple[str, int]] | None = None
) -> Night:
    """Score `run` to its end through the kills that the seed decides, or through these."""
    rng, night = random.Random(seed), Night()
    plan = draw(rng, rows) if kills is None else list(kills)
    begun = time.monotonic()
    watching: dict[int, threading.Thread] = {}
    killed: dict[int, float] = {}
    while True:
        night.starts += 1
        process = run.start(address)
        while plan and process.poll() is None:
            victim, bills = plan[0]
            askers = actor_pids("asker") if run.server.stats()["billed"] >= bills else []
            actors = actor_pids(victim) if askers and victim in ACTORS else []
            if not askers or not (actors or victim == "driver"):
                time.sleep(0.005)  # not yet so far, or a session has just ended
                continue
            time.sleep(rng.random() * 0.1)
            for asker in {*askers} - {*watching}:
                watching[asker] = threading.Thread(target=_watch, args=(asker, night, killed))
                watching[asker].start()
            if victim == "asker":
                killed[actors[-1]] = time.monotonic()  # exactly; its watcher may be late
            try:
                os.kill(actors[-1] if actors else process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # its session ended by itself in the meantime
            night.victims.append(victim)
            plan.pop(0)
        _, said = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        # Ray's own threads were seen to fault on a crowded machine: a crash like any other.
        assert process.returncode in (-signal.SIGKILL, -signal.SIGSEGV), said
    for thread in watching.values():
        thread.join()
    night.seconds = time.monotonic() - begun
    _count(night, run, run.server.bills())
    return night


def _watch(asker: int, night: Night, killed: Mapping[int, float]) -> None:
    nap_s, asleep = 0.002, time.monotonic()
    while alive(asker):
        time.sleep(nap_s)
        night.late_s = max(night.late_s, time.monotonic() - asleep - nap_s)
        asleep = time.monotonic()
    night.deaths.append(killed.get(asker) or time.monotonic())


def claims(books: Books) -> list[float]:
    """When the books were claimed, seconds of the system-wide monotonic clock."""
    storage, to_monotonic = books.storage, time.monotonic() - time.time()
    files = [path for path in storage.list("ledger") if "/claim-" in path]
    return [json.loads(storage.read(path))["at"] + to_monotonic for path in files]


def _count(night: Night, run: Run, bills: list[dict[str, Any]]) -> None:
    """Which second bills a death explains: in flight then, or answered in the 250 ms before."""
    books = Books.of(load(run.yaml))
    read, claimed = by_bill(books.journal()), claims(books)
    for bill in bills:
        if bill["number"] in read and bill["answered_wall"]:
            late_s = read[bill["number"]].at - bill["answered_wall"]
            night.late_s = max(night.late_s, late_s)
    for bill in bills:
        night.usd += Decimal(bill["usd"])
        night.allowed += _explained(night, bill, claimed)
    for times in by_question(bills).values():
        night.twice += len(times) - 1
        for bill, again in pairwise(times):
            if _explained(night, bill, claimed) and bill["number"] not in read:
                continue
            first, second = bill["billed_monotonic"], again["billed_monotonic"]
            between = [f"{at - first:+.2f} s" for at in claimed if first < at < second]
            night.unexplained.append(
                f"billed again after {second - first:.2f} s, its answer is "
                f"{'in the journal' if bill['number'] in read else 'lost'}; books claimed in "
                f"between: {between or 'never'}; deaths: "
                f"{[f'{death - first:+.2f} s' for death in night.deaths]}"
            )


def _explained(night: Night, bill: Mapping[str, Any], claimed: Sequence[float]) -> bool:
    """Whether an asker that died may not have kept this answer.

    It had it for no longer than 250 ms, or not at all. What is billed behind its death, and before
    anybody claimed the books, it had sent: the provider has been slow.
    """
    billed, answered = bill["billed_monotonic"], bill["answered_monotonic"]
    window_s = WINDOW_S + SLACK_S + night.late_s
    return any(
        (answered is None or answered > death - window_s)
        and not any(death < at < billed for at in claimed)
        for death in night.deaths
    )


# --- many ---


@dataclass
class Nights:
    """Many runs over the same rows, and what each must come to."""

    folder: Path
    server: RunningServer
    address: str
    rows: int
    wanted: pl.DataFrame
    usd: str

    @classmethod
    def of(cls, folder: Path, server: RunningServer, rows: int) -> Nights:
        """Score the rows without a kill on the Ray of this process: nothing is billed twice."""
        import ray

        address = ray.get_runtime_context().gcs_address
        write_pairs(folder / "in", rows)
        whole = described(folder / "whole", server)
        finish(whole, address)
        stats = server.stats()
        assert (stats["billed"], stats["billed_twice"]) == (rows, 0)
        return cls(folder, server, address, rows, rows_of(whole), stats["total_usd"])

    def kill(self, seed: int, kills: Sequence[tuple[str, int]] | None = None) -> Night:
        """Make one run, and check the promises by the provider's own books."""
        self.server.reset()
        cap = "5" if seed % 2 else self.usd  # every other run has not one cent to spare
        run = described(self.folder / f"run-{seed}", self.server, cap)
        night = run_killed(run, self.address, seed, self.rows, kills)
        got = rows_of(run)
        assert night.usd <= Decimal(cap), f"billed {night.usd}, the cap is {cap}"
        assert not night.unexplained, f"billed twice, and no kill explains it: {night}"
        assert night.twice <= night.allowed, night
        assert got.height == self.wanted.height
        paid = got["outcome"] != "denied_budget"
        assert got.filter(paid).equals(self.wanted.filter(paid)), "another output than undisturbed"
        print(
            f"seed {seed}: {', '.join(night.victims)}; {night.starts} starts, {night.twice} billed "
            f"twice of {night.allowed} explained, ${night.usd} of ${cap}, processes up to "
            f"{night.late_s * 1000:.0f} ms late, {night.seconds:.1f} s",
            flush=True,
        )
        return night


def main() -> int:
    """Many runs, each with its own seed; ends at the first broken promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.kill", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    options = parser.parse_args()
    import ray

    with temporary_folder() as folder, running_server(latency=LATENCY) as server:
        start_ray(folder / "ray")
        try:
            nights = Nights.of(folder, server, options.rows)
            seeds = range(options.first, options.first + options.runs)
            done = [nights.kill(seed) for seed in seeds]
        finally:
            ray.shutdown()
    kills, twice = (sum(map(len, (n.victims for n in done))), sum(n.twice for n in done))
    allowed = sum(night.allowed for night in done)
    print(f"{options.runs} runs, {kills} kills, {twice} billed twice of {allowed} explained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
