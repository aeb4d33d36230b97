"""The evaluation of the paper, on real judges and against plain definitions."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import brier_score_loss, cohen_kappa_score, f1_score, roc_auc_score

from ray_judge.calibration.correctness import compare, measure
from ray_judge.commands.evaluate import evaluate
from ray_judge.errors import ConfigError, InputError
from ray_judge.records import PAIRWISE_ALTERNATIVES, Shard, verdict_schema
from ray_judge.report import evaluation
from ray_judge.report.evaluation import cascade_curve, scores
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory

from . import builders


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
    assert max(curve["oracle"]) == pytest.approx(curve["oracle"][50])
    assert curve["oracle"][-1] == 0.784
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
    rows = pl.DataFrame({name: names[rng.integers(0, 3, 300)] for name in ("label", "v")})
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
    wish = {"columns": {"label": "human"}, "allow_empty_shards": True}
    config = builders.config(output=str(folder / "out"), **wish)
    run = RunDirectory(config.output)
    shards = [Shard(f"/in/{n}.parquet", f"{n}.parquet", count, "f") for n, count in enumerate(rows)]
    plan = Plan(tuple(shards), Columns({}, label="human"), 1000)
    run.begin(config, plan)
    for chunk in plan.chunks():
        judged = [{"judge_orders_agree": n % 4 > 0} for n in range(chunk.rows)]
        run.commit_judged(0, chunk.name, builders.judged(*judged))
    for shard in shards:
        labels = ["AB"[n % 2] for n in range(shard.rows)]
        entries = [
            {"judge_verdict": "A", "judge_confidence": 0.5 + n / 100, "route": "escalate",
             "outcome": "resolved", "strong_verdict": label, "strong_cost_usd": Decimal("0.01"),
             "final_verdict": label, "final_source": "strong"}
            for n, label in enumerate(labels)
        ]  # fmt: skip
        schema = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES)
        scored = pa.Table.from_pylist(entries, schema=schema)
        with run.storage.write_stream(f"scored/{shard.name}") as sink:
            pq.write_table(scored.append_column("human", pa.array(labels, pa.string())), sink)
    run.finish(
        {
            "rows": sum(rows), "routes": {"accept": 0, "escalate": sum(rows), "audit": 0},
            "outcomes": {"resolved": sum(rows)}, "errors": 0, "api_requests": sum(rows),
            "spent_usd": 0.4, "unproven_usd": 0, "cap_usd": 1, "threshold": None,
            "cached_input_tokens": 0, "cache_saved_usd": 0,
            "excess_said": "It billed $0.1 <beyond> its limits",
            "judge_model": "<small>", "strong_model": "gpt-4.1", "seconds": {"judge": 1.5},
            "promise": {"kept": False, "said": "it is broken"}, "drift": None,
            "audit": {"n": 0, "agreement": None, "low": 0.0, "high": 1.0, "by_confidence": [],
                      "by_column": [], "unanswered": 1234, "abstained": 0},
        }
    )  # fmt: skip
    return run


@pytest.mark.parametrize(
    ("column", "said"),
    [("humn", "no such column.*did you mean human"), ("route", "no verdicts: 'escalate' .3 rows.")],
)
def test_a_column_without_labels(tmp_path: Path, column: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(finished_run(tmp_path, 3).uri, column)


def test_what_labels_mean_can_be_said_of_a_finished_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path, 40)
    found = evaluate(run.uri, "outcome", ["labels={resolved: A}"])
    assert found["judges"]["local judge"]["accuracy"] == 1.0
    with pytest.raises(ConfigError, match="only labels can be set"):
        evaluate(run.uri, "outcome", ["labels.resolved=A", "route.fraction=1"])


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
    for said in (
        "Evaluation against the labels", "&lt;small&gt;", "Guarantee: BROKEN", "1,234",
        "It billed $0.1 &lt;beyond&gt; its limits.",
    ):  # fmt: skip
        assert said in page


def confidences(n: int = 400, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(n), 2)  # ties
    return confidence, rng.random(n) < 0.3 + 0.6 * confidence


def test_figures_are_those_of_scikit_learn() -> None:
    confidence, right = confidences(150)
    found, _ = measure("probability", confidence, right, 0)
    assert found.auroc.value == pytest.approx(roc_auc_score(right, confidence), abs=1e-12)
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert found.brier and found.brier.value == pytest.approx(brier_score_loss(right, confidence))
    coverage, risk, low, high = found.curve[-1]
    assert coverage == 1.0 and low < risk < high
    assert found.curve[2][1] < risk == pytest.approx(1 - right.mean())
    found, _ = measure("entropy", confidence - 3, right, 0)  # no probability
    assert found.ece is None and found.brier is None
    assert found.mapped_brier.value < 0.25


def test_aurc_is_the_mean_over_orders_drawn_by_lot() -> None:
    confidence, right = confidences(300)
    rng = np.random.default_rng(2)
    total, orders = 0.0, 400
    for _ in range(orders):
        order = np.lexsort((rng.random(300), -confidence))
        risk = np.cumsum(~right[order]) / np.arange(1, 301)
        total += risk.mean()
    found, _ = measure("probability", confidence, right, 0)
    assert found.aurc.value == pytest.approx(total / orders, abs=0.005)


def test_ece_and_brier_of_a_calibrated_and_an_over_confident_judge() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(2000)
    right = rng.random(2000) < truth
    honest, _ = measure("probability", truth, right, 0)
    boasting, _ = measure("probability", truth**0.25, right, 0)
    assert honest.ece and boasting.ece
    assert honest.ece.value < 0.05 and boasting.ece.value > 0.25
    assert boasting.mapped_ece.value < 0.05  # the map repairs it, and the ranking is the same
    assert boasting.auroc.value == pytest.approx(honest.auroc.value)


def test_the_better_method_is_advised_only_where_the_rows_show_it() -> None:
    rng = np.random.default_rng(4)
    hidden = rng.random(1500)
    right = rng.random(1500) < 0.3 + 0.7 * hidden
    good, poor = hidden, np.clip(hidden + rng.normal(0, 1, 1500), 0, 1)
    found = compare({"probability": poor, "calibrated_entropy": good - 1}, right)
    assert found.use == "calibrated_entropy" and "ranks the rows better" in found.advice
    found = compare({"probability": good, "margin": 2 * good - 1}, right)  # the same order
    assert found.use == "probability"
    few = slice(0, 40)
    found = compare({"probability": good[few], "margin": np.clip(good + 1e-3 * poor, 0, 1)[few]},
                    right[few])  # fmt: skip
    assert found.use == "probability"


def test_intervals_cover_the_truth_and_are_the_same_every_time() -> None:
    confidence, right = confidences()
    assert compare({"p": confidence}, right, 5) == compare({"p": confidence}, right, 5)
    rng = np.random.default_rng(6)
    covered = 0
    for seed in range(15):
        confidence = rng.random(300)
        right = rng.random(300) < confidence
        found, _ = measure("probability", confidence, right, seed)
        assert found.brier is not None
        covered += found.brier.low <= 1 / 6 <= found.brier.high  # E[p (1 − p)]
    assert covered >= 12
