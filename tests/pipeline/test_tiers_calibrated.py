"""Two local judges from their calibration to a promise, a plan and their drift, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ray_judge.calibration.load import read_calibration
from tests.provider import RunningServer

from .conftest import Run, Runs, answer_with, pairs
from .test_tiers import columns

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

ROWS = 1000


def honest(night: int) -> pa.Table:
    """Labels, an honest small judge, a better large one: probability of A by each."""
    rng = np.random.default_rng(night)
    human = rng.random(ROWS) < 0.5

    said: dict[str, list[float]] = {}
    for name, least in (("small", 0.5), ("large", 0.75)):
        sure = least + (1 - least) * rng.random(ROWS)
        p_a = np.where((rng.random(ROWS) < sure) == human, sure, 1 - sure)
        said |= {f"{name}_a": p_a.tolist(), f"{name}_b": (1 - p_a).tolist()}
    label = ["A" if is_a else "B" for is_a in human]
    return pairs(ROWS, first=night * ROWS, human=label, **said)


def cascade(runs: Runs, table: pa.Table, place: Path, audit: float = 0) -> Run:
    promise = {"policy": "guarantee", "calibration": str(place)}
    return runs(
        table, judges=[columns("small", promise), columns("large")],
        route={**promise, "audit": audit}, columns={"label": "human"}, chunk_rows=500,
    )  # fmt: skip


def test_two_judges_from_calibration_to_promise(
    runs: Runs, server: RunningServer, tmp_path: Path
) -> None:
    both = pl.concat([pl.DataFrame(pl.from_arrow(honest(night))) for night in (1, 2)])
    answer_with(server, tmp_path, both.with_columns(verdict="human"))
    place = tmp_path / "calibration.json"
    run = cascade(runs, honest(1), place)
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
    tonight = cascade(runs, honest(2), place, audit=0.2)
    assert tonight.score() == 0
    rows = tonight.scored()
    sure = rows.filter(judge_model="small")
    assert sure["judge_confidence"].min() >= small.threshold
    asked = rows.filter(route="escalate")
    assert (asked["judge_confidence"] < large.threshold).all()
    local = rows.filter(pl.col("route") != "escalate")
    assert (local["judge_verdict"] == local["human"]).mean() > 0.8
    summary = tonight.summary()
    assert summary["promise"]["kept"] is not False
    first, second = summary["drift"]["judges"]
    assert first["reached"] == ROWS and second["reached"] == ROWS - sure.height
    assert summary["drift"]["verdict"] == first["verdict"] == second["verdict"] == "stable"
    assert "judge 2 (large)" in (tonight.output / "report.html").read_text()

    # a plan of one night is near what another night of the same kind does
    assert planned["reached"][0] == ROWS
    assert planned["reached"][1] == pytest.approx(second["reached"], rel=0.15)
    line = planned["policies"][-1]
    assert line["policy"] == "route: guarantee"
    assert line["rows"] == pytest.approx(asked.height, rel=0.3)
    assert line["accuracy"]["low"] < float((rows["final_verdict"] == rows["human"]).mean())
