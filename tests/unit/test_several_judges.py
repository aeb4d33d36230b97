"""Several local judges: a calibration, a plan's table and the drift of each, without Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ray_judge.calibration.document import Calibration, dumps, loads
from ray_judge.calibration.fit import make
from ray_judge.calibration.load import calibration_of, identity, write_calibration
from ray_judge.commands.calibrate import as_text, judge_runs
from ray_judge.commands.plan import PolicyTable
from ray_judge.config import RouteConfig, RunConfig, parse
from ray_judge.errors import InputError
from ray_judge.records import Shard
from ray_judge.report.drift import measure_drift
from ray_judge.report.page import write_page
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory

pytestmark = pytest.mark.timeout(60)

ROWS = 1200


def config(folder: Path, policy: str = "guarantee", judges: int = 2) -> RunConfig:
    route: dict[str, Any] = {"policy": policy, "calibration": str(folder / "c.json")}
    if policy == "threshold":
        route["threshold"] = 0.8
    names = ["small", "large"][:judges]
    return parse(
        {
            "input": str(folder / "in"),
            "output": str(folder / "out"),
            "judges": [
                {
                    "engine": "columns",
                    "model": name,
                    "prob_columns": {"A": f"{name}_a", "B": f"{name}_b"},
                    **({"route": route} if name != names[-1] else {}),
                }
                for name in names
            ],
            "route": route,
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
        }
    )


def verdicts(label: np.ndarray, sure: np.ndarray, right: np.ndarray) -> pl.DataFrame:
    other = np.where(label == "A", "B", "A")
    verdict = np.where(right, label, other)
    return pl.DataFrame(
        {
            "label": label,
            "judge_verdict": verdict,
            "judge_confidence": sure,
            "judge_probs": [
                {"A": c if v == "A" else 1 - c, "B": c if v == "B" else 1 - c}
                for c, v in zip(sure, verdict, strict=True)
            ],
            "strong_verdict": pl.Series([None] * len(label), dtype=pl.String),
        }
    )


def judged(rows: int = ROWS, seed: int = 1, first: float = 0.0) -> list[pl.DataFrame]:
    """An honest small judge and a better large one; `first`: how sure the small one is at least."""
    rng = np.random.default_rng(seed)
    label = rng.choice(["A", "B"], rows)
    small = 0.5 + np.maximum(first, rng.random(rows)) / 2
    large = 0.7 + 0.3 * rng.random(rows)
    return [
        verdicts(label, small, rng.random(rows) < small),
        verdicts(label, large, rng.random(rows) < large),
    ]


def made(frames: list[pl.DataFrame], settings: RunConfig, **changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "task": "pairwise", "judges": [identity(tier) for tier in settings.tiers()],
        "alpha": 0.2, "delta": 0.1, "label_kind": "human", "column": "label", "data": "d" * 64,
        "strong_model": None, **changes,
    }  # fmt: skip
    return make(frames, **values)


# -- calibrating -----------------------------------------------------------------------------------


def test_each_judge_has_its_part_and_the_rows_that_reach_it(tmp_path: Path) -> None:
    frames = judged()
    found = made(frames, config(tmp_path))
    small, large = found.tiers
    assert not found.warnings and found.labels == ROWS
    assert small.selection.rows == ROWS // 2
    assert small.selection.delta == large.selection.delta == 0.05
    left = frames[0]["judge_confidence"] < small.threshold
    assert small.reference.rows == ROWS and large.reference.rows == left.sum()
    assert abs(large.selection.rows - int(left.sum()) / 2) < 60  # its half of what is left
    assert [judge["use"] for judge in found.comparison["judges"]] == ["probability"] * 2
    assert loads(dumps(found), "c.json") == found
    said = as_text(found, "c.json")
    assert "judge 1 (small)" in said and "judge 2 (large)" in said
    assert said.count("of its part of the labels that reach it would be accepted") == 2
    assert said.count("Promise: ") == 1
    write_calibration(str(tmp_path / "c.json"), found)
    assert calibration_of(config(tmp_path)) == found


def test_a_judge_that_no_row_reaches(tmp_path: Path) -> None:
    frames = judged()
    sure = pl.Series(0.9 + np.arange(ROWS) % 10 / 100)
    label = frames[0]["label"]
    wrong = pl.Series(np.arange(ROWS) % 100 == 0)
    other = label.replace_strict({"A": "B", "B": "A"})
    frames[0] = frames[0].with_columns(
        judge_confidence=sure,
        judge_verdict=pl.select(pl.when(~wrong).then(label).otherwise(other)).to_series(),
    )
    found = made(frames, config(tmp_path))
    assert found.attainable and found.tiers[0].threshold == 0.9
    nobody = found.tiers[1]
    assert (nobody.selection.rows, nobody.threshold) == (0, math.inf)
    assert nobody.reference.rows == 0 and len(nobody.correct.confidence) > 1
    assert "judge 2 (large): no labelled row reaches it" in found.warnings[0]
    assert "those of all 1200 labelled rows" in found.warnings[1]
    assert loads(dumps(found), "c.json") == found
    assert "judge 2 (large): no labelled row" in as_text(found, "c.json")


def test_too_few_labels_reach_a_judge(tmp_path: Path) -> None:
    found = made(judged(200), config(tmp_path))
    assert "judge 1 (small): 100 rows of its part" not in "".join(found.warnings)
    few = made(judged(120), config(tmp_path))
    assert not few.attainable
    assert "judge 1 (small): 60 rows of its part of the labels reach it" in few.warnings[0]
    assert "labels in all" in few.warnings[0] and "accept no row" in few.warnings[0]
    assert "judge 2 (large): 60 rows" in few.warnings[1]  # the first one accepts nothing


def test_rows_without_a_verdict_go_on(tmp_path: Path) -> None:
    frames = judged()
    silent = (
        pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise(pl.col("judge_confidence"))
    )
    frames[0] = frames[0].with_columns(judge_confidence=silent)
    found = made(frames, config(tmp_path))
    gone = (frames[0]["judge_confidence"] >= found.tiers[0].threshold).fill_null(value=False)
    assert found.tiers[0].reference.rows == ROWS * 2 // 3
    assert found.tiers[1].reference.rows == ROWS - gone.sum()


def test_what_nothing_can_be_learnt_from_names_the_judge(tmp_path: Path) -> None:
    frames = judged()
    frames[1] = frames[1].with_columns(judge_confidence=pl.lit(0.7))
    with pytest.raises(InputError, match=r"^judge 2 \(large\): .*confidence is 0.7 on every"):
        made(frames, config(tmp_path))


def test_only_the_first_judges_run_can_spend(tmp_path: Path) -> None:
    settings = config(tmp_path)
    every = RouteConfig.model_validate({"policy": "fraction", "fraction": 1})
    first, second = judge_runs(settings.model_copy(update={"route": every}))
    assert (first.route.fraction, first.strong.max_cost_usd) == (1, 1)
    assert (second.route.fraction, second.strong.max_cost_usd) == (0, 0)
    assert first.output != second.output and not first.judges and second.judge.model == "large"
    single = config(tmp_path, judges=1)
    assert judge_runs(single.model_copy(update={"judges": ()})) == [
        single.model_copy(update={"judges": ()})
    ]


# -- planning --------------------------------------------------------------------------------------


def sampled(frames: list[pl.DataFrame], least: float) -> pl.DataFrame:
    """As the cascade leaves them: rows below `least` are the second judge's."""
    first, second = (frame["judge_confidence"] for frame in frames)
    on = first < least
    rows = len(first)
    return pl.DataFrame(
        {
            "chunk": ["c"] * rows,
            "row": range(rows),
            "row_key": [f"{n:05d}" for n in range(rows)],
            "judge_confidence": pl.select(pl.when(on).then(second).otherwise(first)).to_series(),
            "askable": [True] * rows,
            "tier": on.cast(pl.Int32),
            "tokens": [100] * rows,
            "cost_nano_usd": [1000] * rows,
            **{mode: [1000] * rows for mode in ("online", "flex", "batch")},
        }
    )


def test_policies_are_tried_on_the_rows_that_reach_the_last_judge(tmp_path: Path) -> None:
    settings = config(tmp_path)
    calibration = made(judged(), settings)
    night = judged(seed=2)
    rows = sampled(night, calibration.tiers[0].threshold)
    table = PolicyTable(settings, calibration, rows, ROWS * 10)
    on = int(rows["tier"].sum())
    assert table.reached() == [ROWS * 10, on * 10]
    half = table.line(RouteConfig.model_validate({"policy": "fraction", "fraction": "0.5"}), "0.5")
    assert half["rows"] == on * 5 and half["share"] == on * 5 / (ROWS * 10)
    assert half["dollars"]["online"] == pytest.approx(on * 5 * 1000 / 1e9)
    promised = table.line(settings.route, "route: guarantee")
    passed = rows.filter(
        (pl.col("tier") == 1) & (pl.col("judge_confidence") < calibration.tiers[1].threshold)
    )
    assert promised["rows"] == passed.height * 10
    none = table.line(RouteConfig.model_validate({"policy": "fraction", "fraction": "0"}), "0")
    right = [frame["judge_verdict"] == frame["label"] for frame in night]
    truth = pl.select(pl.when(rows["tier"] == 1).then(right[1]).otherwise(right[0])).to_series()
    assert none["accuracy"]["low"] < float(truth.mean() or 0) < none["accuracy"]["high"]
    assert none["accuracy"]["high"] - none["accuracy"]["low"] < 0.12


def test_nothing_reaches_the_last_judge(tmp_path: Path) -> None:
    settings = config(tmp_path)
    calibration = made(judged(), settings)
    table = PolicyTable(settings, calibration, sampled(judged(seed=2), 0.0), ROWS)
    line = table.line(RouteConfig.model_validate({"policy": "fraction", "fraction": "1"}), "1")
    assert table.reached() == [ROWS, 0]
    assert (line["rows"], line["calls"], line["threshold"]) == (0, 0, None)
    assert 0.6 < line["accuracy"]["value"] < 0.9


# -- drift -----------------------------------------------------------------------------------------


def night(folder: Path, confidences: list[np.ndarray]) -> tuple[Plan, RunDirectory]:
    """A run directory with what each judge said of the rows that came to it, in one chunk."""
    rows = len(confidences[0])
    shard = Shard(name="a.parquet", path="a.parquet", rows=rows, fingerprint="f")
    plan = Plan((shard,), Columns({}), rows)
    run = RunDirectory(str(folder))
    (chunk,) = plan.chunks()
    for number, confidence in enumerate(confidences):
        if len(confidence):
            frame = pl.DataFrame({"row": range(len(confidence)), "judge_confidence": confidence})
            run.tier(number).commit_judged(chunk.name, frame.to_arrow())
    return plan, run


def scored(rows: int, escalated: int) -> pl.DataFrame:
    routes = ["escalate"] * escalated + ["accept"] * (rows - escalated)
    return pl.DataFrame({"route": routes, "judge_confidence": [0.9] * rows})


def test_drift_of_each_judge(tmp_path: Path) -> None:
    calibration = made(judged(), config(tmp_path))
    small, large = (frame["judge_confidence"].to_numpy() for frame in judged(seed=3))
    on = small < calibration.tiers[0].threshold
    plan, run = night(tmp_path / "run", [small, large[on] - 0.25])
    found = measure_drift(config(tmp_path), plan, run, scored(ROWS, 100), calibration)
    assert found is not None
    first, second = found["judges"]
    assert (first["verdict"], second["verdict"]) == ("stable", "shifted")
    assert (found["verdict"], found["psi"]) == ("shifted", second["psi"])
    assert (first["reached"], second["reached"]) == (ROWS, int(on.sum()))
    assert first["passed_on"] == on.sum() / ROWS
    assert abs(first["passed_on"] - first["passed_on_then"]) < 0.06
    assert second["passed_on"] == 100 / on.sum()
    assert found["escalated"] == 100 / ROWS
    assert found["escalated_then"] == pytest.approx(
        first["passed_on_then"] * second["passed_on_then"]
    )
    page = promise_section({"drift": found})
    assert "judge 2 (large)" in page and "shifted" in page and "share escalated" in page

    # the first judge routes by a threshold of the user's: other rows than then come to the second
    mixed = measure_drift(config(tmp_path, "threshold"), plan, run, scored(ROWS, 100), calibration)
    assert mixed is not None
    assert mixed["judges"][1]["psi"] is None and mixed["verdict"] == "stable"
    assert mixed["escalated_then"] is None


def test_drift_where_a_judge_sees_no_row(tmp_path: Path) -> None:
    calibration = made(judged(), config(tmp_path))
    small = judged(seed=3)[0]["judge_confidence"].to_numpy()
    plan, run = night(tmp_path / "run", [small, small[:0]])
    found = measure_drift(config(tmp_path), plan, run, scored(ROWS, 0), calibration)
    assert found is not None
    second = found["judges"][1]
    assert (second["reached"], second["psi"], second["passed_on"]) == (0, None, None)
    assert "judge 2 (large)" in promise_section({"drift": found})
