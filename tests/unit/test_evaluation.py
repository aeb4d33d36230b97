"""The evaluation of the paper, on real judges and against plain definitions."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from ray_judge.commands.evaluate import evaluate
from ray_judge.config import parse
from ray_judge.errors import InputError
from ray_judge.records import PAIRWISE_ALTERNATIVES, Shard, judged_schema, verdict_schema
from ray_judge.report import evaluation
from ray_judge.report.evaluation import cascade_curve, scores
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory

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
    at = dict(zip(curve["rows"], curve["cascade"], strict=True))
    known = {0: 0.750, 50: 0.776, 100: 0.780, 150: 0.792, 200: 0.788, 250: 0.790, 500: 0.784}
    assert {n: round(at[n], 3) for n in known} == known
    assert curve["random"][50] == pytest.approx((0.750 + 0.784) / 2)
    assert (
        max(curve["oracle"]) == pytest.approx(curve["oracle"][50]) and curve["oracle"][-1] == 0.784
    )
    assert all(o >= c for o, c in zip(curve["oracle"], curve["cascade"], strict=True))
    assert curve["dollars"] is not None and curve["dollars"][30] == pytest.approx(1.5)
    index = next(n for n, right in enumerate(curve["cascade"]) if right >= 0.784)
    assert index <= 30  # 30 % of the calls beat GPT-4-turbo alone


def test_the_document_says_it(arena: pl.DataFrame) -> None:
    found = evaluation.evaluate(arena.with_columns(final_verdict="strong_verdict"))
    assert found["judges"]["local judge"]["accuracy"] == 0.750
    assert found["judges"]["strong judge, where it answered"]["accuracy"] == 0.784
    assert "of the rows asked the cascade is right in 0.7" in found["break_even"]
    assert "instead of $5.0000" in found["break_even"]
    some = pl.when(pl.int_range(pl.len()) < 100).then("strong_verdict").alias("strong_verdict")
    partly = evaluation.evaluate(arena.with_columns(some, final_verdict="judge_verdict"))
    assert "among the 100 of 500 labelled rows" in partly["break_even"]


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(31)
    names = np.array(["A", "B", "tie"])
    rows = pl.DataFrame(
        {"label": names[rng.integers(0, 3, 300)], "v": names[rng.integers(0, 3, 300)]}
    )
    found = scores(rows, "v")
    assert found is not None
    assert found["macro_f1"] == pytest.approx(f1_score(rows["label"], rows["v"], average="macro"))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(rows["label"], rows["v"]))
    assert found["low"] < found["accuracy"] < found["high"]


def test_missing_labels_verdicts_and_classes() -> None:
    rows = pl.DataFrame({"label": ["A", None, "A", "A"], "v": ["A", "A", None, "A"]})
    found = scores(rows, "v")
    assert found is not None and (found["n"], found["accuracy"]) == (3, 2 / 3)
    only = scores(rows.filter(pl.col("v").is_not_null()), "v")
    assert only is not None and only["kappa"] is None and only["macro_f1"] == 1.0
    assert scores(rows.filter(pl.col("label").is_null()), "v") is None
    empty = rows.with_columns(
        row_key=pl.lit("k"), judge_verdict="v", judge_confidence=pl.lit(0.5),
        strong_verdict=pl.lit(None, dtype=pl.String), final_verdict="v",
    )  # fmt: skip
    single = pl.DataFrame({"label": [1.0, 2.0, 3.0, 3.0], "v": [1.0, 2.0, 2.0, 3.0]})
    found = scores(single, "v")
    assert found is not None and found["accuracy"] == 0.75
    assert cascade_curve(empty) is None and evaluation.evaluate(empty)["break_even"] is None


def finished_run(folder: Path, *rows: int) -> RunDirectory:
    """A finished run whose shards have these many rows, as a run leaves it on disk."""
    config = parse(
        {
            "input": str(folder / "in"), "output": str(folder / "out"),
            "columns": {"label": "human"},
            "judge": {"engine": "columns", "prob_columns": {"A": "a", "B": "b"}},
            "route": {"fraction": 1}, "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
            "allow_empty_shards": True,
        }
    )  # fmt: skip
    run = RunDirectory(config.output)
    shards = [Shard(f"/in/{n}.parquet", f"{n}.parquet", count, "f") for n, count in enumerate(rows)]
    plan = Plan(tuple(shards), Columns({}, label="human"), 1000)
    run.begin(config, plan)
    judged = judged_schema("pairwise", PAIRWISE_ALTERNATIVES)
    for chunk in plan.chunks():
        entries = [{"row": n, "row_key": f"{chunk.name}#{n}", "judge_orders_agree": n % 4 > 0,
                    "has_text": True} for n in range(chunk.rows)]  # fmt: skip
        run.commit_judged(0, chunk.name, pa.Table.from_pylist(entries, schema=judged))
    for shard in shards:
        labels = pa.array(["AB"[n % 2] for n in range(shard.rows)], pa.string())
        entries = [
            {"judge_verdict": "A", "judge_confidence": 0.5 + n / 100, "route": "escalate",
             "outcome": "resolved", "strong_verdict": label, "strong_cost_usd": Decimal("0.01"),
             "final_verdict": label, "final_source": "strong"}
            for n, label in enumerate(labels.to_pylist())
        ]  # fmt: skip
        scored = pa.Table.from_pylist(
            entries, schema=verdict_schema("pairwise", PAIRWISE_ALTERNATIVES)
        )
        with run.storage.write_stream(f"scored/{shard.name}") as sink:
            pq.write_table(scored.append_column("human", labels), sink)
    run.finish(
        {
            "rows": sum(rows), "routes": {"accept": 0, "escalate": sum(rows), "audit": 0},
            "outcomes": {"resolved": sum(rows)}, "errors": 0, "api_requests": sum(rows),
            "spent_usd": 0.4, "unproven_usd": 0, "cap_usd": 1, "threshold": None,
            "judge_model": "<small>", "strong_model": "gpt-4.1", "seconds": {"judge": 1.5},
            "promise": {"kept": False, "said": "it is broken"}, "drift": None,
            "audit": {"n": 0, "agreement": None, "low": 0.0, "high": 1.0, "by_confidence": [],
                      "by_column": [], "unanswered": 1234, "abstained": 0},
        }
    )  # fmt: skip
    return run


@pytest.mark.parametrize(
    ("column", "said"),
    [("humn", "no such column.*did you mean human"), ("route", "'escalate', not one of A, B, tie")],
)
def test_a_column_without_labels(tmp_path: Path, column: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(finished_run(tmp_path, 3).uri, column)


@pytest.mark.parametrize("rows", [(0, 40), (40, 0), (20, 20)])
def test_a_finished_run_is_held_against_its_labels(tmp_path: Path, rows: tuple[int, ...]) -> None:
    run = finished_run(tmp_path, *rows)
    found = evaluate(run.uri)
    assert found["judges"]["local judge"]["accuracy"] == 0.5
    assert found["judges"]["cascade"]["accuracy"] == 1.0
    assert (found["under_swap"]["n"], found["under_swap"]["agreement"]) == (40, 0.75)
    assert found["curve"]["dollars"][-1] == pytest.approx(0.4)
    assert json.loads(run.storage.read("evaluation.json")) == json.loads(json.dumps(found))
    page = run.storage.read("report.html").decode()
    for said in ("Evaluation against the labels", "&lt;small&gt;", "Guarantee: BROKEN", "1,234"):
        assert said in page
