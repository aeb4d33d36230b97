"""The guarantee by simulation: how often a promise is broken, over thousands of calibrations.

Each draw is a new set of labels; whether its thresholds keep the promise is known exactly, since
the synthetic judges' true error is a formula, and a split's other half is counted. A share of
broken promises is compared with δ by its own exact binomial interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ray_judge.calibration.bounds import interval
from ray_judge.calibration.selection import last_passed, select_in_turn, start_size

from .test_calibration import replay

pytestmark = pytest.mark.timeout(120)

DRAWS = 3000
ROWS = 400
ALPHA, DELTA = 0.15, 0.1
GRID = np.linspace(0, 1, 20_001)

Judge = Callable[[np.ndarray], np.ndarray]
"""Confidence (uniform in [0, 1]) → P(wrong)."""

JUDGES: dict[str, Judge] = {
    "calibrated": lambda c: 0.5 * (1 - c),
    "over-confident": lambda c: 0.35 - 0.22 * c,
    "sure where it is wrong": lambda c: np.where(c > 0.9, 0.16, np.where(c > 0.5, 0.02, 0.5)),
    "good, then a trap": lambda c: np.where(c > 0.6, 0.05, np.where(c > 0.45, 0.9, 0.0)),
    "waves": lambda c: np.clip(0.15 + 0.14 * np.sin(40 * c), 0, 1),
    "just too bad everywhere": lambda c: np.full(c.shape, ALPHA + 1e-4),
    "a cliff behind the start": lambda c: np.where(c > 0.78, 0.0, 1.0),
}


def true_error(judge: Judge, thresholds: np.ndarray) -> np.ndarray:
    """Error among all rows with confidence ≥ λ (0 where nothing is accepted)."""
    above = np.cumsum(judge(GRID)[::-1]) / np.arange(1, len(GRID) + 1)
    return np.where(np.isinf(thresholds), 0.0, np.interp(thresholds, GRID, above[::-1]))


def broken(errors: np.ndarray, alpha: float, delta: float) -> tuple[float, float]:
    """Share of draws over α, and the lower end of its exact 98 % interval: to be ≤ δ."""
    count = int((errors > alpha).sum())
    return count / len(errors), interval(count, len(errors), 0.98)[0]


@pytest.mark.parametrize("start", [30, None])
@pytest.mark.parametrize("name", JUDGES)
def test_promises_are_broken_at_most_as_often_as_said(name: str, start: int | None) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    confidence = rng.random((DRAWS, ROWS))
    wrong = rng.random((DRAWS, ROWS)) < JUDGES[name](confidence)
    first = start_size(ALPHA, DELTA) if start is None else start
    thresholds = last_passed(confidence, wrong, ALPHA, DELTA, first)
    share, at_least = broken(true_error(JUDGES[name], thresholds), ALPHA, DELTA)
    assert at_least <= DELTA, f"{share:.4f} of the promises were broken"


@pytest.mark.parametrize("levels", [4, 25])
def test_ties_do_not_break_promises(levels: int) -> None:
    rng = np.random.default_rng(levels)
    steps = np.arange(1, levels + 1) / levels
    error = np.where(steps > 0.7, 0.1, 0.4)
    level = rng.integers(0, levels, (DRAWS, ROWS))
    wrong = rng.random((DRAWS, ROWS)) < error[level]
    thresholds = last_passed(steps[level], wrong, ALPHA, DELTA, start_size(ALPHA, DELTA))
    above = (np.cumsum(error[::-1]) / np.arange(1, levels + 1))[::-1]
    place = np.where(np.isinf(thresholds), 0, np.rint(thresholds * levels) - 1).astype(int)
    share, at_least = broken(np.where(np.isinf(thresholds), 0, above[place]), ALPHA, DELTA)
    assert at_least <= DELTA, f"{share:.4f} of the promises were broken"
    assert np.isfinite(thresholds).mean() > 0.3


def test_a_good_judge_is_accepted() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.random((DRAWS, ROWS))
    wrong = rng.random((DRAWS, ROWS)) < 0.5 * (1 - confidence)
    thresholds = last_passed(confidence, wrong, ALPHA, DELTA, start_size(ALPHA, DELTA))
    accepted = (confidence >= thresholds[:, None]).mean(axis=1)
    assert np.isfinite(thresholds).mean() > 0.8  # the power that the start is chosen for
    assert accepted[np.isfinite(thresholds)].mean() > 0.3


def test_the_published_rule_would_break_its_promise() -> None:
    """Accepting at the strictest λ where nothing passes: this test can fail."""
    rng = np.random.default_rng(4)
    judge = JUDGES["just too bad everywhere"]
    confidence = rng.random((DRAWS, ROWS))
    wrong = rng.random((DRAWS, ROWS)) < judge(confidence)
    thresholds = last_passed(confidence, wrong, ALPHA, DELTA, 30)
    strictest = np.sort(confidence, axis=1)[:, -30]
    published = np.where(np.isinf(thresholds), strictest, thresholds)
    assert broken(true_error(judge, published), ALPHA, DELTA)[1] > DELTA


@pytest.mark.parametrize("alpha", [0.15, 0.20])
@pytest.mark.parametrize("again", [False, True])
def test_random_splits_of_arena(data: Path, alpha: float, again: bool) -> None:
    """Three real judges; the 500 rows are the population, so the true error is known.

    Calibrated on a random half of them, or (`again`) on 500 independent draws from them, which
    is the theorem's own setting. (Counting on the other half alone would mix the promise with
    that half's chance error: there .127 of 1,000 splits exceed .15, of which .004 truly do.)
    """
    judges = replay(data)
    rng = np.random.default_rng(12)
    errors, coverage = [], []
    for _ in range(1000):
        part = rng.integers(0, 500, 500) if again else rng.permutation(500)[:250]
        found = select_in_turn([(c[part], r[part]) for c, r in judges], alpha=alpha, delta=DELTA)
        left, accepted, right = np.ones(500, bool), 0, 0
        for (confidence, good), one in zip(judges, found, strict=True):
            taken = left & (confidence >= one.threshold)
            accepted, right = accepted + int(taken.sum()), right + int(good[taken].sum())
            left &= ~taken
        errors.append(1 - right / accepted if accepted else 0.0)
        coverage.append(accepted / 500)
    share, at_least = broken(np.array(errors), alpha, DELTA)
    assert at_least <= DELTA, f"{share:.4f} of the promises were broken"
    assert np.mean(coverage) > 0.3


def test_two_judges_in_turn() -> None:
    """The second one sees what the first one leaves; both promises hold together."""
    rng = np.random.default_rng(13)
    first: Judge = JUDGES["over-confident"]
    second: Judge = JUDGES["calibrated"]
    bad, drawn = 0, 1000
    for _ in range(drawn):
        one, two = rng.random(ROWS), rng.random(ROWS)
        judges = [(one, rng.random(ROWS) > first(one)), (two, rng.random(ROWS) > second(two))]
        found = select_in_turn(judges, alpha=ALPHA, delta=DELTA)
        errors = [
            float(true_error(judge, np.array(chosen.threshold)))
            for judge, chosen in zip((first, second), found, strict=True)
        ]
        bad += max(errors) > ALPHA
        assert all(chosen.delta == DELTA / 2 for chosen in found)
    assert interval(bad, drawn, 0.98)[0] <= DELTA
    assert math.isfinite(found[1].threshold)
