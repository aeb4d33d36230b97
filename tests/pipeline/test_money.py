"""The cap binds, a raised cap asks only the rest, a question is paid for once, in every mode."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa

from tests.provider import RunningServer

from .conftest import Runs, pairs


def test_a_small_cap_and_then_a_larger_one(runs: Runs, server: RunningServer) -> None:
    run = runs(pairs(120), pairs(80, first=120), route__fraction=0.6, strong__max_cost_usd="0.02")
    assert run.score() == 0
    first, summary = server.stats(), run.summary()
    asked = summary["outcomes"]["resolved"]
    assert 0 < asked < 120
    assert run.outcomes() == {
        "not_needed": 80, "resolved": asked, "denied_budget": 120 - asked,
    }  # fmt: skip
    assert Decimal(first["total_usd"]) == run.check_costs() <= Decimal("0.02")
    assert (summary["cap_usd"], summary["api_requests"]) == (0.02, asked)
    denied = run.scored().filter(outcome="denied_budget")
    assert denied["route"].unique().to_list() == ["escalate"]
    assert denied["final_verdict"].to_list() == denied["judge_verdict"].to_list()
    assert denied["final_source"].unique().to_list() == ["judge"]
    assert denied["strong_verdict"].null_count() == denied.height

    # As a crash in the last phase leaves it: one shard scored, the other not, no summary.
    (run.output / "summary.json").unlink()
    run.scored_paths()[1].unlink()
    assert run.score("strong.max_cost_usd=0.5") == 0
    assert run.outcomes() == {"not_needed": 80, "resolved": 120}
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"], stats["chat_requests"]) == (120, 0, 120)
    assert Decimal(stats["total_usd"]) == run.check_costs()

    # A cap that is lower than the first one is another run.
    assert run.score("strong.max_cost_usd=0.01") == 2
    assert server.stats()["requests"] == stats["requests"]


def test_nights_that_share_a_month(runs: Runs, server: RunningServer, tmp_path: Path) -> None:
    """The second night pauses where the month's money ends, and goes on when there is more."""
    shared = {
        "strong__books": str(tmp_path / "money"),
        "strong__max_cost_usd_per_month": "0.02",
        "route__fraction": 1,
    }
    first, second = runs(pairs(30), **shared), runs(pairs(60, first=30), **shared)
    assert first.score() == 0
    paid = Decimal(server.stats()["total_usd"])
    assert second.score() == 4
    stats = server.stats()
    asked = stats["billed"] - 30
    assert 0 < asked < 60
    assert f"leaves no money for {60 - asked} questions" in second.said
    assert not (second.output / "summary.json").exists()
    # One question can cost $0.007 at most: what can be spent is spent, and not a cent more.
    assert Decimal("0.013") < Decimal(stats["total_usd"]) <= Decimal("0.02")
    assert second.score() == 4  # still November, and nothing is asked
    assert server.stats()["requests"] == stats["requests"]

    assert second.score("strong.max_cost_usd_per_month=1") == 0
    assert second.outcomes() == {"resolved": 60}
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (90, 0)
    assert second.check_costs() == Decimal(stats["total_usd"]) - paid


def test_identical_rows_are_asked_once(runs: Runs, server: RunningServer) -> None:
    """The same pair many times, in several chunks and shards, and once more the other way round."""
    one = pairs(40, instruction=["Same."] * 40, response_a=["x"] * 40, response_b=["y"] * 40)
    other = pairs(10, instruction=["Same."] * 10, response_a=["y"] * 10, response_b=["x"] * 10)
    run = runs(one, pa.concat_tables([other, one]), route__fraction=1, chunk_rows=15)
    assert run.score() == 0
    stats = server.stats()
    assert (stats["billed"], stats["chat_requests"]) == (2, 2)
    rows = run.scored()
    assert run.outcomes() == {"resolved": 90}
    per_pair = rows.group_by("response_a").agg(
        pl.col("strong_verdict").n_unique(), (pl.col("strong_cost_usd") > 0).sum().alias("payers")
    )
    assert sorted(per_pair.rows()) == [("x", 1, 1), ("y", 1, 1)]
    assert rows["strong_cost_usd"].null_count() == 0
    assert run.check_costs() == Decimal(stats["total_usd"])
    assert rows["strong_cost_usd"][0] > 0  # the first in the order of the input


def test_both_orders_under_a_threshold(runs: Runs, server: RunningServer) -> None:
    """A known threshold lets the strong judge be asked while the local one is still at work."""
    run = runs(
        pairs(60), pairs(40, first=60), strong__swap=True, chunk_rows=9,
        route={"policy": "threshold", "threshold": 0.75},
    )  # fmt: skip
    assert run.score() == 0
    rows, stats = run.scored(), server.stats()
    unsure = rows.filter(pl.max_horizontal("p_a", "p_b") < 0.75)
    assert unsure.height == rows.filter(route="escalate").height == run.outcomes()["resolved"]
    assert unsure["route"].unique().to_list() == ["escalate"]
    assert stats["billed"] == 2 * unsure.height and stats["billed_twice"] == 0
    assert run.check_costs() == Decimal(stats["total_usd"])
    assert run.summary()["threshold"] == 0.75
    assert set(unsure["strong_verdict"]) == {"A", "B", "tie"}  # hashed answers: orders disagree


def test_a_batch_over_two_nights(runs: Runs, server: RunningServer) -> None:
    batch = {"max_requests": 30, "poll_s": 0.05}
    run = runs(pairs(60), pairs(60, first=60), strong__mode="batch", strong__batch=batch)
    run.document["route"]["fraction"] = 0.5
    assert run.score("strong.batch.wait_s=0") == 4
    assert "batch pending: 0 of 59 requests done" in run.said  # the first was asked online
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
    assert [bill["tier"] for bill in server.bills()] == ["default"] + ["batch"] * 59
    asked = run.scored().filter(pl.col("route") == "escalate")["p_a"]
    kept = run.scored().filter(pl.col("route") == "accept")["p_a"]
    assert asked.max() <= kept.min()  # type: ignore[operator]

    before = run.everything()
    assert run.score() == 0
    assert server.stats()["requests"] == stats["requests"] and run.everything() == before
