"""The evaluation of the paper, on real judges and against plain definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from ray_judge.report.evaluation import cascade_curve, evaluate, scores

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def arena(data: Path) -> pl.DataFrame:
    rows = pl.read_parquet(data / "arena_replay.parquet")

    def verdict(judge: str) -> pl.Expr:
        wins = pl.col(f"{judge}_p_a") >= pl.col(f"{judge}_p_b")
        return pl.when(wins).then(pl.lit("A")).otherwise(pl.lit("B"))

    return rows.select(
        row_key=pl.int_range(pl.len()).cast(pl.String).str.zfill(6),
        label="human",
        judge_verdict=verdict("mistral_7b_instruct"),
        judge_confidence=pl.max_horizontal("mistral_7b_instruct_p_a", "mistral_7b_instruct_p_b"),
        strong_verdict=verdict("gpt_4_turbo"),
        strong_cost_usd=pl.lit(0.01),
    )


def test_the_cascade_on_real_judges(arena: pl.DataFrame) -> None:
    curve = cascade_curve(arena)
    assert curve is not None
    at = dict(zip(curve.rows, curve.cascade, strict=True))
    assert [round(at[n], 3) for n in (50, 100, 150, 200, 250)] == [
        0.776,
        0.780,
        0.792,
        0.788,
        0.790,
    ]
    assert (at[0], at[500]) == (0.750, 0.784)
    assert curve.random[50] == pytest.approx((0.750 + 0.784) / 2)
    assert max(curve.oracle) == pytest.approx(curve.oracle[50]) and curve.oracle[-1] == 0.784
    assert all(o >= c for o, c in zip(curve.oracle, curve.cascade, strict=True))
    assert curve.dollars is not None and curve.dollars[30] == pytest.approx(1.5)
    index = curve.first_at_least(0.784)
    assert index is not None and index <= 30  # 30 % of the calls beat GPT-4-turbo alone


def test_the_document_says_it(arena: pl.DataFrame) -> None:
    found = evaluate(arena.with_columns(final_verdict="strong_verdict"))
    assert found["judges"]["local judge"]["accuracy"] == 0.750
    assert found["judges"]["strong judge, where it answered"]["accuracy"] == 0.784
    assert "of the rows asked the cascade is right in 0.7" in found["break_even"]
    assert "instead of $5.0000" in found["break_even"]
    some = pl.when(pl.int_range(pl.len()) < 100).then("strong_verdict").alias("strong_verdict")
    partly = evaluate(arena.with_columns(some, final_verdict="judge_verdict"))
    assert "among the 100 of 500 labelled rows" in partly["break_even"]


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(31)
    names = np.array(["A", "B", "tie"])
    rows = pl.DataFrame(
        {"label": names[rng.integers(0, 3, 300)], "v": names[rng.integers(0, 3, 300)]}
    )
    found = scores(rows, "v")
    assert found is not None
    assert found.macro_f1 == pytest.approx(f1_score(rows["label"], rows["v"], average="macro"))
    assert found.kappa == pytest.approx(cohen_kappa_score(rows["label"], rows["v"]))
    assert found.low < found.accuracy < found.high


def test_missing_labels_verdicts_and_classes() -> None:
    rows = pl.DataFrame({"label": ["A", None, "A", "A"], "v": ["A", "A", None, "A"]})
    found = scores(rows, "v")
    assert found is not None and (found.n, found.accuracy) == (3, 2 / 3)
    only = scores(rows.filter(pl.col("v").is_not_null()), "v")
    assert only is not None and only.kappa is None and only.macro_f1 == 1.0
    assert scores(rows.filter(pl.col("label").is_null()), "v") is None
    empty = rows.with_columns(
        row_key=pl.lit("k"), judge_verdict="v", judge_confidence=pl.lit(0.5),
        strong_verdict=pl.lit(None, dtype=pl.String), final_verdict="v",
    )  # fmt: skip
    assert cascade_curve(empty) is None and evaluate(empty)["break_even"] is None


def test_scores_of_single_responses() -> None:
    rows = pl.DataFrame({"label": [1.0, 2.0, 3.0, 3.0], "v": [1.0, 2.0, 2.0, 3.0]})
    found = scores(rows, "v")
    assert found is not None and found.accuracy == 0.75
