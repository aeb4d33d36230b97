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

from ray_judge.calibration.selection import (
    in_parts,
    interval,
    last_passed,
    most_errors,
    select_in_turn,
    start_size,
)

from .test_calibration import replay

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


def at_least(broken: int, draws: int) -> float:
    """The lower end of the exact 98 % interval of a share of broken promises: to be ≤ δ."""
    return interval(broken, draws, 0.98)[0]


def check(errors: np.ndarray | list[float], alpha: float = ALPHA) -> None:
    """Promises, of each draw's true error ≤ α, are broken at most as often as said."""
    count = int((np.array(errors) > alpha).sum())
    assert at_least(count, len(errors)) <= DELTA, f"{count} of {len(errors)} were broken"


def draw(judge: Judge, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and wrong of many draws of labels, shape (draws, rows)."""
    rng = np.random.default_rng(seed)
    confidence = rng.random((DRAWS, ROWS))
    return confidence, rng.random((DRAWS, ROWS)) < judge(confidence)


@pytest.mark.parametrize("start", [30, None])
@pytest.mark.parametrize("name", JUDGES)
def test_promises_are_broken_at_most_as_often_as_said(name: str, start: int | None) -> None:
    confidence, wrong = draw(JUDGES[name], sum(map(ord, name)))
    first = start or start_size(ALPHA, DELTA)
    thresholds = last_passed(confidence, wrong, ALPHA, DELTA, first)
    check(true_error(JUDGES[name], thresholds))


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
    check(np.where(np.isinf(thresholds), 0, above[place]))
    assert np.isfinite(thresholds).mean() > 0.3


def test_a_good_judge_is_accepted() -> None:
    confidence, wrong = draw(JUDGES["calibrated"], 3)
    thresholds = last_passed(confidence, wrong, ALPHA, DELTA, start_size(ALPHA, DELTA))
    accepted = (confidence >= thresholds[:, None]).mean(axis=1)
    assert np.isfinite(thresholds).mean() > 0.8  # the power that the start is chosen for
    assert accepted[np.isfinite(thresholds)].mean() > 0.3


def test_the_published_rule_would_break_its_promise() -> None:
    """Accepting at the strictest λ where nothing passes: this test can fail."""
    judge = JUDGES["just too bad everywhere"]
    confidence, wrong = draw(judge, 4)
    thresholds = last_passed(confidence, wrong, ALPHA, DELTA, 30)
    strictest = np.sort(confidence, axis=1)[:, -30]
    published = np.where(np.isinf(thresholds), strictest, thresholds)
    with pytest.raises(AssertionError, match="were broken"):
        check(true_error(judge, published))


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
    check(errors, alpha)
    assert np.mean(coverage) > 0.3


def population(first: Judge, second: Judge, rows: int = 20_000) -> list[np.ndarray]:
    """Two judges of the same rows (confidence and wrong of each); the second one errs on hard rows.

    The first one's unsure rows are harder for the second one, and where the first one is wrong,
    the second one is twice as often wrong: what is left for it is not what it sees elsewhere.
    """
    rng = np.random.default_rng(14)
    one, two = rng.random(rows), rng.random(rows)
    wrong = rng.random(rows) < first(one)
    hard = second(two) * (0.6 + 0.8 * (1 - one)) * np.where(wrong, 2, 1)
    return [one, wrong, two, rng.random(rows) < hard]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("over-confident", "waves"), ("waves", "sure where it is wrong"),
        ("just too bad everywhere", "good, then a trap"), ("calibrated", "just too bad everywhere"),
    ],
)  # fmt: skip
def test_two_judges_keep_one_promise(first: str, second: str) -> None:
    """Each draw is 800 labels of a population in which the accepted rows' true error is counted.

    Whose labels test whom: docs/decisions/0045.
    """
    one, one_wrong, two, two_wrong = population(JUDGES[first], JUDGES[second])
    rng = np.random.default_rng(15)
    errors, accepted = [], []
    for _ in range(1000):
        at = rng.integers(0, len(one), 800)
        found = select_in_turn(
            [(one[at], ~one_wrong[at]), (two[at], ~two_wrong[at])],
            alpha=ALPHA, delta=DELTA, parts=in_parts(800, 2),
        )  # fmt: skip
        here = one >= found[0].threshold
        there = ~here & (two >= found[1].threshold)
        count = int(here.sum() + there.sum())
        wrong = int(one_wrong[here].sum() + two_wrong[there].sum())
        errors.append(wrong / count if count else 0.0)
        accepted.append(count / len(one))
    check(errors)
    assert max(accepted) > 0.05


@pytest.mark.parametrize("own_labels", [True, False])
def test_labels_that_chose_a_judges_rows_must_not_test_it(own_labels: bool) -> None:
    """The second judge is right exactly where the first one is wrong, and sure of those rows.

    So the labels on which the first one fails are the ones on which the second one looks good.
    It is a hair worse than promised everywhere: each time that anything of it is accepted, its
    promise is broken. With labels of its own that happens as often as its share of δ allows.
    """
    alpha, sizes = 0.3, np.array([200, 200, 400, 800, 1600])
    rows, total = int(sizes.sum()), np.cumsum(sizes)
    # the first judge has five confidences, and each of its tests is passed about every other time
    errors = most_errors(rows, alpha, DELTA / 2)[total] + 0.5
    q = np.diff(errors, prepend=0) / sizes
    sure = (alpha + 1e-3) * q / ((1 - q) * (1 - alpha - 1e-3))
    rng = np.random.default_rng(0)
    bad, drawn = 0, 1500
    for _ in range(drawn):
        level = rng.choice(len(sizes), rows, p=sizes / rows)
        wrong = rng.random(rows) < q[level]
        known = wrong | (rng.random(rows) < sure[level])
        second = np.where(known, 0.9, 0.1) - 0.01 * level - 1e-4 * rng.random(rows)
        parts = in_parts(rows, 2, int(rng.integers(2**31))) if own_labels else None
        found = select_in_turn(
            [(1 - level / 5, ~wrong), (second, wrong)], alpha=alpha, delta=DELTA, parts=parts
        )
        bad += math.isfinite(found[1].threshold)
    assert (at_least(bad, drawn) <= DELTA / 2) == own_labels, f"{bad} of {drawn} were broken"


def test_parts_are_equal_and_the_same_every_time() -> None:
    parts = in_parts(100, 3)
    assert sorted(np.bincount(parts).tolist()) == [33, 33, 34]
    assert parts.tolist() == in_parts(100, 3).tolist()
    assert in_parts(5, 1).tolist() == [0] * 5
