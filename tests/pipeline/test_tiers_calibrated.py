"""Two local judges from their calibration to a promise, a plan and their drift, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ray_judge.calibration.load import read_calibration
from ray_judge.cli import main
from tests.provider import RunningServer

from .conftest import Run, Runs, pairs
from .test_tiers import columns

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

ROWS = 1000


def honest(night: int) -> pa.Table:
    """Labels, an honest small judge, a better large one: probability of A by each."""
    rng = np.random.default_rng(night)
    human = rng.random(ROWS) < 0.5

    def judge(least: float) -> dict[str, list[float]]:
        sure = least + (1 - least) * rng.random(ROWS)
        p_a = np.where((rng.random(ROWS) < sure) == human, sure, 1 - sure)
        return {"a": p_a.tolist(), "b": (1 - p_a).tolist()}

    small, large = judge(0.5), judge(0.75)
    label = ["A" if is_a else "B" for is_a in human]
    known = {f"small_{side}": values for side, values in small.items()}
    known |= {f"large_{side}": values for side, values in large.items()}
    return pairs(ROWS, first=night * ROWS, human=label, **known)


def cascade(runs: Runs, table: pa.Table, place: Path, audit: float = 0) -> Run:
    promise = {"policy": "guarantee", "calibration": str(place)}
    run = runs(
        table, judges=[columns("small", promise), columns("large")],
        route={**promise, "audit": audit}, columns={"label": "human"}, chunk_rows=500,
    )  # fmt: skip
    del run.document["judge"]
    return run


def test_two_judges_from_calibration_to_promise(
    runs: Runs, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.json"
    both = pl.concat([pl.DataFrame(pl.from_arrow(honest(night))) for night in (1, 2)])
    both.select("instruction", "response_a", "response_b", verdict="human").write_json(answers)
    server.configure(truth=str(answers))
    place = tmp_path / "calibration.json"
    run = cascade(runs, honest(1), place)
    command = ["calibrate", str(run.yaml), "--quiet", "--alpha", "0.2", "--against", "strong"]
    assert main([*command, "--sample", "800"]) == 0
    said = capsys.readouterr().out
    assert "judge 1 (small)" in said and "judge 2 (large)" in said and "gpt-4.1's verdicts" in said
    made = read_calibration(str(place))
    small, large = made.tiers
    assert made.labels == 800 == server.stats()["billed"]  # each row is asked about once
    assert small.selection.rows == 400 and 150 < large.selection.rows < 400
    assert small.threshold < 1 and large.threshold < 1 and not made.warnings

    assert main(["plan", str(run.yaml), "--quiet", "--json", "--sample", "600"]) == 0
    planned = json.loads(capsys.readouterr().out)
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
