"""Several local judges in front of the strong one: a row stops at the first that is sure."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tests.provider import RunningServer

from .conftest import Runs, pairs

pytestmark = pytest.mark.timeout(180)


def columns(name: str, route: dict[str, Any] | None = None) -> dict[str, Any]:
    judge = {
        "engine": "columns",
        "model": name,
        "prob_columns": {"A": f"{name}_a", "B": f"{name}_b"},
    }
    return judge | ({"route": route} if route else {})


def table(rows: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + rows)
    small = [0.5 + (n % 10) / 20 for n in numbers]
    large: list[float | None] = [0.5 + (n * 7 % 10) / 20 for n in numbers]
    large[3] = None  # the second judge fails on a row that the first one is unsure of
    return pairs(
        rows, first=first, small_a=small, small_b=[1 - p for p in small],
        large_a=pa.array(large, pa.float64()),
        large_b=pa.array([None if p is None else 1 - p for p in large], pa.float64()),
    )  # fmt: skip


@pytest.mark.parametrize("last", ["threshold", "fraction"])
def test_two_local_judges(runs: Runs, server: RunningServer, last: str) -> None:
    shards = table(60), table(41, first=60)
    run = runs(
        *shards,
        judges=[columns("small", {"policy": "threshold", "threshold": 0.8}), columns("large")],
        route={"policy": last, last: 0.7 if last == "threshold" else 0.25},
        chunk_rows=13,
    )
    assert run.score() == 0
    rows = run.scored()
    source = pl.concat([pl.DataFrame(pl.from_arrow(shard)) for shard in shards])
    assert rows.select(source.columns).equals(source)

    sure = pl.col("small_a") >= 0.8
    stopped = rows.filter(sure)
    assert stopped["judge_model"].unique().to_list() == ["small"]
    assert stopped["judge_confidence"].to_list() == stopped["small_a"].to_list()
    assert stopped["outcome"].unique().to_list() == ["not_needed"]
    on = rows.filter(~sure & pl.col("large_a").is_not_null())
    assert on["judge_model"].unique().to_list() == ["large"]
    assert on["judge_confidence"].to_list() == on["large_a"].to_list()
    failed = rows.filter(~sure & pl.col("large_a").is_null())
    assert failed.height == 2
    for row in failed.to_dicts():  # the first verdict stands, and nobody is sure
        assert (row["judge_model"], row["judge_verdict"]) == ("small", "A")
        assert row["judge_confidence"] is None and "large_a" in row["error"]
        assert (row["route"], row["outcome"]) == ("escalate", "resolved")

    asked = rows.filter(route="escalate")
    if last == "threshold":
        assert asked.height == on.filter(pl.col("large_a") < 0.7).height + 2
    else:
        assert asked.height == rows.filter(~sure).height // 4
    assert asked.height == run.outcomes()["resolved"] == server.stats()["billed"]
    assert run.check_costs() == Decimal(server.stats()["total_usd"])

    before = run.everything()
    assert run.score() == 0
    assert run.everything() == before


def test_a_tier_that_nothing_comes_to(runs: Runs, server: RunningServer) -> None:
    run = runs(
        table(30),
        judges=[columns("small", {"policy": "threshold", "threshold": 0.1}), columns("large")],
        route={"policy": "fraction", "fraction": 0.5},
    )
    assert run.score() == 0
    assert run.outcomes() == {"not_needed": 30}
    assert server.stats()["requests"] == 0
    assert run.summary()["threshold"] is None
