"""Runs that are told to stop at random instants, by Ctrl-C or SIGTERM, and continued to the end.

    python -m tests.fault.stop --stops 100 --rows 600

A seed decides the signal, whether it goes to the process alone or, as a terminal does it, to its
whole group with a Ray of its own, and when: at any instant of the run, or after so many requests.
`test_stop.py` makes a few in CI.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from ray_judge.config import load
from ray_judge.escalation.books.books import Books
from tests.conftest import start_ray, temporary_folder

from .kill import Scored, write_pairs
from .plain import PlainServer, Said, completion, plain_server

LATENCY_S = 0.1, 0.5
EXITS_WITHIN_S = 25
CODE = 130


@dataclass
class Stop:
    """One signal: which, to whom, and when (after so many requests, or seconds)."""

    signal: signal.Signals
    group: bool = False
    requests: int | None = None
    after_s: float = 0.0

    @classmethod
    def draw(cls, seed: int, rows: int, run_s: float) -> Stop:
        rng, told = random.Random(seed), (signal.SIGINT, signal.SIGTERM)[seed % 2]
        requests = rng.randrange(rows) if seed % 4 < 2 else None
        return cls(
            told, told is signal.SIGINT and rng.random() < 0.5, requests, rng.random() * run_s
        )

    def send(self, process: subprocess.Popen[str], server: PlainServer) -> float:
        """Wait for the instant, and send; gives when."""
        begun = time.monotonic()
        while process.poll() is None:
            late = time.monotonic() - begun >= self.after_s
            if late if self.requests is None else len(server.requests) > self.requests:
                (os.killpg if self.group else os.kill)(process.pid, self.signal)
                break
            time.sleep(0.005)  # a poll of other processes, not a guess at their speed
        return time.monotonic()


def stop(run: Scored, server: PlainServer, how: Stop) -> str:
    """Start `run` and stop it: says how it ended, with `broken` for each promise that it broke."""
    process = run.start()
    told = how.send(process, server)
    said = process.communicate(timeout=EXITS_WITHIN_S * 4)[1]
    code, late_s = process.returncode, time.monotonic() - told
    lines = [line for line in said.splitlines() if "core_worker" not in line]
    on_file = Books.of(load(run.write())).recorded()
    facts = {
        f"exit code {code}": code in (0, CODE),
        f"in {late_s:.1f} s": late_s < EXITS_WITHIN_S,
        f"{len(server.requests)} requests": max(server.billed.values(), default=1) == 1,
        f"{on_file} on file for {server.usd}": on_file == (server.usd, 0),
        f"said {lines}": not code or (len(lines) == 1 and "the same command continues" in lines[0]),
    }
    return ", ".join(fact if kept else f"BROKEN: {fact}" for fact, kept in facts.items())


def finish(run: Scored, server: PlainServer, rows: int) -> None:
    """The next `score` completes, and nothing was ever billed twice."""
    run.score()
    assert Books.of(load(run.write())).recorded() == (server.usd, 0)
    assert list(server.billed.values()) == [1] * rows
    assert run.rows()["outcome"].unique().to_list() == ["resolved"]


def slow_answers(seed: int) -> Any:
    rng = random.Random(seed)
    return lambda body, number: Said(completion(), wait_s=rng.uniform(*LATENCY_S))


def main() -> int:
    """Many runs, each with its own seed; tells every broken promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.stop", description=__doc__)
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    options = parser.parse_args()
    import ray

    broken, run_s = 0, 0.0
    with temporary_folder() as folder:
        start_ray(folder / "ray")
        address = ray.get_runtime_context().gcs_address
        write_pairs(folder / "in", options.rows)
        for seed in (-1, *range(options.first, options.first + options.stops)):
            with plain_server(slow_answers(seed)) as server:
                how, begun = Stop.draw(seed, options.rows, run_s), time.monotonic()
                run = Scored(folder / f"run-{seed}", server, address)  # type: ignore[arg-type]
                alone = replace(run, address=None if how.requests is None or how.group else address)
                said = stop(alone, server, how) if seed >= 0 else ""
                finish(run, server, options.rows)
                run_s = run_s or 1.3 * (time.monotonic() - begun)
                broken += "BROKEN" in said
                print(f"{seed}: {how}: {said}", flush=True)
    print(f"{options.stops} stops, {broken} broken")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
