"""Batch and flex mode through the command: exit 4 while a batch is pending, and on from there."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest

from tests.provider import RunningServer

from .conftest import Runs, pairs

pytestmark = pytest.mark.timeout(120)


def test_a_batch_over_two_nights(runs: Runs, server: RunningServer) -> None:
    server.configure(batches={"manual": True})
    batch = {"max_requests": 30, "poll_s": 0.05}
    run = runs(pairs(60), pairs(60, first=60), strong__mode="batch", strong__batch=batch)
    run.document["route"]["fraction"] = 0.5
    assert run.score("strong.batch.wait_s=0") == 4
    assert "batch pending: 0 of 60 requests done" in run.said
    assert not (run.output / "summary.json").exists()
    assert run.score("strong.batch.wait_s=0.1") == 4
    for one in server.batches():
        while server.advance_batch(one["id"])["status"] != "completed":
            pass
    assert run.score() == 0
    stats = server.stats()
    assert stats["batch_creations"] == 2 and stats["billed_twice"] == 0
    assert stats["billed"] == 60
    assert run.outcomes() == {"not_needed": 60, "resolved": 60}
    assert run.check_costs() == Decimal(stats["total_usd"])
    assert {bill["tier"] for bill in server.bills()} == {"batch"}
    asked = run.scored().filter(pl.col("route") == "escalate")["p_a"]
    kept = run.scored().filter(pl.col("route") == "accept")["p_a"]
    assert asked.max() <= kept.min()  # type: ignore[operator]

    before = run.everything()
    assert run.score() == 0
    assert server.stats()["requests"] == stats["requests"] and run.everything() == before


def test_flex(runs: Runs, server: RunningServer) -> None:
    """Half the price where there is room; without room it is asked again, not given up."""
    server.configure(faults=[{"kind": "flex_unavailable", "requests": [3, 7]}])
    run = runs(pairs(40), strong__mode="flex", strong__model="o3")
    assert run.score() == 0
    stats = server.stats()
    assert stats["billed"] == 20 and stats["faults_injected"] == {"flex_unavailable": 2}
    assert {bill["tier"] for bill in server.bills()} == {"flex"}
    assert run.outcomes() == {"not_needed": 20, "resolved": 20}
    assert run.check_costs() >= Decimal(stats["total_usd"])
