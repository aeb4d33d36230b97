"""Bounds, thresholds, maps and the document, against reference values and plain definitions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from ray_judge.calibration.correctness import CorrectnessMap, fit, fit_kind, fit_temperature
from ray_judge.calibration.document import Calibration, Tier, dumps, loads
from ray_judge.calibration.drift import drift, reference
from ray_judge.calibration.fit import find_lack, mark_right
from ray_judge.calibration.selection import (
    POWER,
    Selection,
    interval,
    last_passed,
    most_errors,
    select,
    select_in_turn,
    start_size,
    upper_bound,
)
from ray_judge.errors import ConfigError, InputError
from ray_judge.records import Task

JUDGES = ("mistral_7b_instruct", "gpt_3_5_turbo", "gpt_4_turbo")


def replay(data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(confidence, right) of three real judges on 500 pairs with human labels."""
    rows = pl.read_parquet(data / "arena_replay.parquet")
    human = (rows["human"] == "A").to_numpy()
    judges = []
    for name in JUDGES:
        p_a, p_b = rows[f"{name}_p_a"].to_numpy(), rows[f"{name}_p_b"].to_numpy()
        judges.append((np.maximum(p_a, p_b), (p_a >= p_b) == human))
    return judges


def clopper_pearson(k: Any, n: Any, delta: float) -> np.ndarray:
    """The upper bound by its definition with the Beta distribution, over arrays."""
    k, n = np.broadcast_arrays(k, n)
    return np.where(k < n, stats.beta.ppf(1 - delta, k + 1, np.maximum(n - k, 1e-9)), 1.0)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 0), (0, 1), (0, 30), (3, 30), (15, 30), (29, 30), (30, 30)]
)
def test_bounds_are_those_of_clopper_and_pearson(k: int, n: int) -> None:
    low, high = 1 - clopper_pearson(n - k, n, 0.025), clopper_pearson(k, n, 0.025)
    assert interval(k, n) == pytest.approx((float(low), float(high)), abs=1e-9)
    assert upper_bound(k, n, 0.1) == pytest.approx(float(clopper_pearson(k, n, 0.1)), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.15, 0.5])
@pytest.mark.parametrize("delta", [0.1, 0.1 / 3, 0.001])
def test_most_errors_is_the_bound_without_roots(alpha: float, delta: float) -> None:
    n = np.arange(1, 400)
    most = most_errors(399, alpha, delta)[1:]
    assert (clopper_pearson(np.maximum(most, 0), n, delta)[most >= 0] <= alpha).all()
    assert (clopper_pearson(most + 1, n, delta) > alpha).all()


@pytest.mark.parametrize(
    ("alpha", "delta"), [(0.15, 0.1), (0.15, 0.1 / 3), (0.1, 0.1), (0.03, 0.05)]
)
def test_start_size_is_the_smallest_with_power(alpha: float, delta: float) -> None:
    def power(n: int) -> float:
        passing = np.flatnonzero(clopper_pearson(np.arange(n), n, delta) <= alpha)
        return float(stats.binom.cdf(passing.max(), n, alpha / 2)) if len(passing) else 0.0

    n = start_size(alpha, delta)
    assert power(n) >= POWER
    assert all(power(smaller) < POWER for smaller in range(1, n))


@pytest.mark.parametrize(
    ("alpha", "delta", "thresholds", "accepted", "right"),
    [
        (0.15, 0.1, (math.inf, 0.79292, math.inf), 275, 0.880),
        (0.20, 0.1, (math.inf, 0.65471, math.inf), 364, 0.8297),
        (0.20, 0.1 / 3, (math.inf, 0.68025, math.inf), 343, 0.8426),
        (0.15, 0.1 / 3, (math.inf, math.inf, math.inf), 0, 0),
    ],
)
def test_reference_values_on_arena(
    data: Path, alpha: float, delta: float, thresholds: Any, accepted: int, right: float
) -> None:
    found = select_in_turn(replay(data), alpha=alpha, delta=3 * delta, start=30)
    assert [one.threshold for one in found] == pytest.approx(thresholds, abs=1e-4)
    assert sum(one.accepted for one in found) == accepted
    assert round(sum(one.right for one in found) / max(1, accepted), 4) == right


def test_thresholds_follow_the_definition_step_by_step() -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        n = int(rng.integers(1, 120))
        confidence = rng.choice([0.5, 0.6, 0.6001, 0.9, *rng.random(20)], n)  # many ties
        right = rng.random(n) < 0.5 + confidence / 2
        expected = math.inf
        for value in sorted(set(confidence), reverse=True):
            accepted = confidence >= value
            if accepted.sum() < 10:
                continue
            if clopper_pearson((~right[accepted]).sum(), accepted.sum(), 0.2) > 0.25:
                break
            expected = value
        assert select(confidence, right, alpha=0.25, delta=0.2, start=10).threshold == expected
        both = np.array([confidence[::-1], confidence]), np.array([np.ones(n, bool), ~right])
        assert last_passed(*both, 0.25, 0.2, 10).tolist() == [math.inf, expected]


def test_nothing_passes_and_everything_passes() -> None:
    confidence = np.linspace(0.5, 1, 300)
    assert select(confidence, np.zeros(300, bool), alpha=0.1, delta=0.1).threshold == math.inf
    everything = select(confidence, np.ones(300, bool), alpha=0.1, delta=0.1)
    assert (everything.threshold, everything.accepted) == (0.5, 300)
    few = select(confidence[:20], np.ones(20, bool), alpha=0.1, delta=0.1)
    assert few.threshold == math.inf and few.start == start_size(0.1, 0.1)
    same, most = np.full(200, 0.7), np.arange(200) % 20 != 0  # 95 % right, the wrong ones spread
    assert select(same, most, alpha=0.1, delta=0.1).accepted == 200
    assert select(same, most, alpha=0.05, delta=0.1).accepted == 0


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1.5)])
def test_what_cannot_be_tested(alpha: float, delta: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        select(np.ones(3), np.ones(3, bool), alpha=alpha, delta=delta)


def test_a_sigmoid_is_found_by_platt_and_a_step_by_isotonic() -> None:
    rng = np.random.default_rng(7)
    confidence = rng.random(4000)
    smooth = 1 / (1 + np.exp(4 - 8 * confidence))
    found = fit(confidence, rng.random(4000) < smooth)
    assert found[0].kind == "platt"
    assert np.abs(found[0](confidence) - smooth).max() < 0.05
    step = np.where(confidence < 0.6, 0.55, 0.95)
    found = fit(confidence, rng.random(4000) < step)
    assert found[0].kind == "isotonic"
    assert np.abs(found[0](confidence) - step).mean() < 0.03


def test_the_points_are_the_model() -> None:
    rng = np.random.default_rng(8)
    confidence = np.round(rng.random(500), 2)
    right = rng.random(500) < confidence
    model = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(confidence, right)
    grid = np.linspace(-0.5, 1.5, 999)
    points = fit_kind("isotonic", confidence, right)
    assert np.allclose(points(grid), model.predict(grid), atol=1e-12)
    assert np.isnan(points(np.array([np.nan]))).all()
    assert fit(confidence, right, 3)[0] == fit(confidence, right, 3)[0]


def judged(labels: list[Any], verdicts: list[Any], confidence: list[Any]) -> pl.DataFrame:
    columns = ("label", "judge_verdict", "judge_confidence")
    return pl.DataFrame([labels, verdicts, confidence], columns, orient="col")


def test_right_is_equality_and_no_verdict_is_not_right() -> None:
    rows = judged(["A", None, "tie", "B"], ["A", "A", "A", None], [0.9, 0.8, 0.7, None])
    assert mark_right(rows, "pairwise")["right"].to_list() == [True, None, False, False]


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("pairwise", ["A", "C", "c"], "'C', not one of A, B, tie .and 1 more.*row=1"),
        ("pairwise", ["A", "B", "nan"], "'nan', not one of"),
        ("pairwise", ["A", "B", ""], "'', not one of"),
        ("pairwise", [math.nan] * 3, "nan, not one of.*a missing label is null.*row=0"),
        ("pairwise", [1, 2, 3], "1, not one of A, B, tie"),
        ("pointwise", [1.0, math.nan, 2.0], r"nan, not a number.*column=human, row=1"),
        ("pointwise", ["A", "B", None], "'A', not a number"),
    ],
)
def test_strange_labels(task: Task, labels: list[Any], said: str) -> None:
    verdicts = ["A"] * 3 if task == "pairwise" else [1.0] * 3
    with pytest.raises(InputError, match=said):
        mark_right(judged(labels, verdicts, [0.5] * 3), task, "human")


def enough(**changes: list[Any]) -> pl.DataFrame:
    n = 60
    columns: dict[str, list[Any]] = {
        "labels": ["A", "B"] * (n // 2),
        "verdicts": ["A", "B", "B", "A"] * (n // 4),
        "confidence": [0.5 + k / 200 for k in range(n)],
        **changes,
    }
    return mark_right(judged(**columns), "pairwise")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["A"] * 10 + [None] * 49 + ["B"]}, "11 rows have both a label and a verdict"),
        ({"labels": ["tie"] * 60}, "all 60 labels are tie"),
        ({"confidence": [0.7] * 60}, "confidence is 0.7 on every labelled row"),
        ({"confidence": [math.nan] * 60}, "confidence is NaN"),
        ({"verdicts": ["A", "B"] * 30}, "right on all 60"),
        ({"verdicts": ["tie"] * 60}, "wrong on all 60"),
        ({"verdicts": [None] * 60, "confidence": [None] * 60}, "0 rows have both"),
    ],
)
def test_rows_that_nothing_can_be_learnt_from(changes: dict[str, list[Any]], said: str) -> None:
    assert find_lack(enough()) is None
    assert said in (find_lack(enough(**changes)) or "")


def calibration(threshold: float = 0.8, **changes: Any) -> Calibration:
    tier = Tier(
        {"format": "generic", "model": "Qwen/Qwen2.5-7B-Instruct", "revision": None},
        Selection(threshold, 500, 200, 190, 0.08, 128, 0.1),
        CorrectnessMap("isotonic", (0.5, 0.8, 1.0), (0.5, 0.9, 0.99)),
        reference(np.linspace(0.5, 1, 500)),
    )
    values: dict[str, Any] = {
        "alpha": 0.1, "delta": 0.1, "label_kind": "human", "labels": 500, "rows": 600,
        "data": "cd" * 32, "tiers": (tier,), **changes,
    }  # fmt: skip
    return Calibration(**values)


@pytest.mark.parametrize("planted", [0.03, 1.0, 8.0])
def test_the_temperature_of_a_margin(planted: float) -> None:
    rng = np.random.default_rng(4)
    margin = planted * 3 * rng.exponential(size=20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-margin / planted))
    assert fit_temperature(margin, right) == pytest.approx(planted, rel=0.05)
    assert fit_temperature(margin, ~right) is None, "a larger margin is a worse verdict"
    assert fit_temperature(margin, right | True) is None


@pytest.mark.parametrize("threshold", [0.8, math.inf])
def test_a_calibration_comes_back_as_it_was(threshold: float) -> None:
    before = calibration(threshold, warnings=("few labels",), strong_error=0.05)
    text = dumps(before)
    assert loads(text, "c.json") == before
    assert before.attainable == math.isfinite(threshold)
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "EOF"),
        (b"[1]", "Input should be an object"),
        (b'{"layout": 2}', "alpha: Field required"),
        (dumps(calibration()).replace(b'"layout": 1', b'"layout": 2'), "layout: Input should be 1"),
        (dumps(calibration())[:-30], "EOF"),
        (dumps(calibration()).replace(b"0.99", b"1.99"), "probability.2.*less than or equal to 1"),
        (dumps(calibration()).replace(b"0.99", b"0.99,\n 1"), "not as many of both"),
        (dumps(calibration()).replace(b"0.5,", b"0.95,", 1), "not in rising order"),
        (dumps(calibration()).replace(b'"alpha": 0.1', b'"alpha": 7'), "alpha: .*less than 1"),
        (dumps(calibration()).replace(b'"human"', b'"dog"'), "label_kind: .*'human' or 'strong'"),
        (dumps(calibration()).replace(b'"threshold": 0.8', b'"threshold": "x"'), "threshold: "),
    ],
)
def test_a_damaged_calibration(text: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}.*file=c.json"):
        loads(text, "c.json")


def test_the_same_distribution_is_stable_and_another_has_shifted() -> None:
    rng = np.random.default_rng(10)
    known = reference(rng.beta(5, 2, 3000))
    same = drift(known, rng.beta(5, 2, 3000))
    other = drift(known, rng.beta(2, 5, 3000))
    assert same.verdict == "stable" and same.psi < 0.05
    assert other.verdict == "shifted" and other.ks_p < 1e-6
    assert drift(known, np.array([])) is None
    assert drift(reference(np.array([])), np.array([0.5])) is None


def test_ks_is_the_exact_distance() -> None:
    rng = np.random.default_rng(11)
    before, now = np.round(rng.random(300), 2), np.round(rng.random(200) ** 1.3, 2)
    found = drift(reference(before), now)
    exact = stats.ks_2samp(before, now, method="asymp")
    assert found.ks == pytest.approx(exact.statistic, abs=1e-12)
    assert found.ks_p == pytest.approx(exact.pvalue, abs=0.03)


def test_drift_of_a_constant_confidence() -> None:
    known = reference(np.full(100, 0.9))
    same, other = drift(known, np.full(50, 0.9)), drift(known, np.full(50, 0.2))
    assert (same.ks, same.verdict) == (0.0, "stable")
    assert (other.ks, other.verdict) == (1.0, "shifted")
