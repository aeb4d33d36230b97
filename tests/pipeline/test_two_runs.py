"""Two runs at once, on one cluster and under one account's limits: the rate holds for both."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ray_judge.escalation.books.journal import load_journal
from ray_judge.escalation.shares_actor import NAMESPACE
from ray_judge.storage.local import open_storage
from tests.provider import RunningServer

from .conftest import Run, Runs, pairs

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PER_MINUTE = 2400
SETTLED_S = 3.0
"""After the second run's first answer: until both have reported."""


def answered_at(run: Run) -> list[float]:
    return sorted(attempt.at for attempt in load_journal(open_storage(str(run.output))).rows)


def test_two_runs_share_the_rate(runs: Runs, server: RunningServer, ray_session: str) -> None:
    import ray

    def left() -> list[str]:
        actors = ray.util.list_named_actors(all_namespaces=True)
        return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]

    server.configure(limits={"rpm": PER_MINUTE})
    first, second = (
        runs(
            pairs(rows, first=start),
            route__fraction=1,
            strong__requests_per_minute=PER_MINUTE,
            strong__concurrency=32,
            chunk_rows=1000,
        )
        for rows, start in ((3000, 0), (180, 5000))
    )
    long = first.start(ray_session)  # goes on for longer than the other one takes to start
    try:
        deadline = time.monotonic() + 100
        while not server.stats()["billed"]:
            assert time.monotonic() < deadline and long.poll() is None
            time.sleep(0.1)
        short = second.start(ray_session)
        _, said = short.communicate(timeout=200)
        assert short.returncode == 0, said
        assert long.poll() is None
    finally:
        os.killpg(long.pid, signal.SIGKILL)
        long.communicate()

    stats = server.stats()
    refused = stats["rate_limited"]["requests"]
    assert stats["billed_twice"] == 0
    times = answered_at(first), answered_at(second)
    since, until = max(t[0] for t in times) + SETTLED_S, times[1][-1]
    both = [sum(since <= at <= until for at in t) for t in times]
    print(f"{refused} refused; while both asked, in {until - since:.1f} s: {both}")
    assert refused <= 5
    assert all(sum(both) / 3 <= count <= sum(both) * 2 / 3 for count in both), both
    assert sum(both) >= PER_MINUTE / 60 * (until - since) / 2, "shared, but not left unused"
    deadline = time.monotonic() + 30
    while left():
        assert time.monotonic() < deadline, f"{left()} outlives the runs"
        time.sleep(0.1)  # a poll of Ray, which ends what the runs leave
