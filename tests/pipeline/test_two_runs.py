"""Two runs at once, on one cluster and under one account's limits: the rate holds for both."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from ray_judge.demo.server import RunningServer
from ray_judge.escalation.journal import load_journal
from ray_judge.storage import open_storage

from .conftest import Run, Runs, pairs

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PER_MINUTE = 1200
SETTLED_S = 3.0
"""After the second run's first answer: until both have reported."""


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a poll of other processes, not a guess at their speed


def ended_well(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said


def answered_at(run: Run) -> list[float]:
    return sorted(attempt.at for attempt in load_journal(open_storage(str(run.output))).rows)


def test_two_runs_share_the_rate(runs: Runs, server: RunningServer, ray_session: str) -> None:
    import ray

    server.configure(limits={"rpm": PER_MINUTE})
    first, second = (
        runs(
            pairs(rows, first=start),
            route__fraction=1,
            strong__requests_per_minute=PER_MINUTE,
            strong__concurrency=32,
        )
        for rows, start in ((260, 0), (240, 1000))
    )
    one = first.start(ray_session)
    wait_until(lambda: server.stats()["billed"] > 0)
    two = second.start(ray_session)
    ended_well(one)
    ended_well(two)

    stats = server.stats()
    refused = stats["rate_limited"]["requests"]
    assert (stats["billed"], stats["billed_twice"]) == (500, 0)
    times = answered_at(first), answered_at(second)
    since, until = max(t[0] for t in times) + SETTLED_S, min(t[-1] for t in times)
    both = [sum(since <= at <= until for at in t) for t in times]
    print(f"{refused} refused; while both asked, in {until - since:.1f} s: {both}")
    assert refused <= 5
    assert until - since > 5
    assert all(sum(both) / 3 <= count <= sum(both) * 2 / 3 for count in both), both
    assert sum(both) >= 0.9 * PER_MINUTE / 60 * (until - since), "shared, but not left unused"
    wait_until(lambda: not ray.util.list_named_actors(all_namespaces=True), 30)
