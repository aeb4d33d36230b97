"""Several local judges in front of the strong one: a row stops at the first that is sure.

By thresholds that are given; and their calibration and plan.
"""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ray_judge.calibration.load import read_calibration
from tests.provider import RunningServer

from .conftest import Runs, answer_with, pairs


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


def honest() -> pa.Table:
    """Labels, an honest small judge, a better large one: probability of A by each."""
    rng = np.random.default_rng(1)
    human = rng.random(1000) < 0.5

    said: dict[str, list[float]] = {}
    for name, least in (("small", 0.5), ("large", 0.75)):
        sure = least + (1 - least) * rng.random(1000)
        p_a = np.where((rng.random(1000) < sure) == human, sure, 1 - sure)
        said |= {f"{name}_a": p_a.tolist(), f"{name}_b": (1 - p_a).tolist()}
    label = ["A" if is_a else "B" for is_a in human]
    return pairs(1000, human=label, **said)


def test_two_judges_are_calibrated(runs: Runs, server: RunningServer, tmp_path: Path) -> None:
    """What a night makes of it: `tests/unit/test_calibrated.py`."""
    table = honest()
    answer_with(server, tmp_path, pl.DataFrame(pl.from_arrow(table)).with_columns(verdict="human"))
    place = tmp_path / "calibration.json"
    promise = {"policy": "guarantee", "calibration": str(place)}
    judges = [columns("small", promise), columns("large")]
    run = runs(table, judges=judges, route=promise, columns={"label": "human"}, chunk_rows=500)
    wish = ("--alpha", "0.2", "--against", "strong", "--sample", "800")
    said = run.command("calibrate", *wish)
    assert "judge 1 (small)" in said and "judge 2 (large)" in said and "gpt-4.1's verdicts" in said
    made = read_calibration(str(place))
    small, large = made.tiers
    assert made.labels == 800 == server.stats()["billed"]  # each row is asked about once
    assert small.selection.rows == 400 and 150 < large.selection.rows < 400
    assert small.threshold < 1 and large.threshold < 1 and not made.warnings

    planned = json.loads(run.command("plan", "--json", "--sample", "600"))
    assert server.stats()["billed"] == 800
    passed_on = 1 - small.selection.accepted / small.selection.rows
    assert planned["reached"] == [1000, pytest.approx(1000 * passed_on, rel=0.15)]
    line = planned["policies"][-1]
    assert line["policy"] == "route: guarantee" and 0 < line["rows"] < planned["reached"][1]
