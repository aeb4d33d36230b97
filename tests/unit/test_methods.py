"""Comparing confidence methods: figures against plain definitions, and what is advised."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from ray_judge.calibration.correctness import compare, measure

pytestmark = pytest.mark.timeout(60)


def rows(n: int = 400, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(n), 2)  # ties
    return confidence, rng.random(n) < 0.3 + 0.6 * confidence


def test_figures_are_those_of_scikit_learn() -> None:
    confidence, right = rows(150)
    found, _ = measure("probability", confidence, right, 0)
    assert found.auroc.value == pytest.approx(roc_auc_score(right, confidence), abs=1e-12)
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert found.brier and found.brier.value == pytest.approx(brier_score_loss(right, confidence))


def test_aurc_is_the_mean_over_orders_drawn_by_lot() -> None:
    confidence, right = rows(300)
    rng = np.random.default_rng(2)
    total, orders = 0.0, 400
    for _ in range(orders):
        order = np.lexsort((rng.random(300), -confidence))
        risk = np.cumsum(~right[order]) / np.arange(1, 301)
        total += risk.mean()
    found, _ = measure("probability", confidence, right, 0)
    assert found.aurc.value == pytest.approx(total / orders, abs=0.005)


def test_risk_at_full_coverage_is_the_error() -> None:
    confidence, right = rows()
    found, _ = measure("probability", confidence, right, 0)
    coverage, risk, low, high = found.curve[-1]
    assert coverage == 1.0 and risk == pytest.approx(1 - right.mean())
    assert low < risk < high
    risks = [risk for _, risk, _, _ in found.curve]
    assert risks[2] < risks[-1]


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


def test_a_confidence_that_is_no_probability_has_no_ece_of_its_own() -> None:
    confidence, right = rows()
    found, _ = measure("entropy", confidence - 3, right, 0)
    assert found.ece is None and found.brier is None
    assert found.mapped_brier.value < 0.25


def test_the_better_method_is_advised_only_where_the_rows_show_it() -> None:
    rng = np.random.default_rng(4)
    hidden = rng.random(1500)
    right = rng.random(1500) < 0.3 + 0.7 * hidden
    good = hidden
    poor = np.clip(hidden + rng.normal(0, 1, 1500), 0, 1)
    found = compare({"probability": poor, "calibrated_entropy": good - 1}, right)
    assert found.use == "calibrated_entropy" and "ranks the rows better" in found.advice
    found = compare({"probability": good, "margin": 2 * good - 1}, right)  # the same order
    assert found.use == "probability"
    few = slice(0, 40)
    found = compare({"probability": good[few], "margin": np.clip(good + 1e-3 * poor, 0, 1)[few]},
                    right[few])  # fmt: skip
    assert found.use == "probability"


def test_intervals_cover_the_truth_and_are_the_same_every_time() -> None:
    confidence, right = rows()
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
