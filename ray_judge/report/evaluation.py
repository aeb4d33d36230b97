"""What a cascade is worth against labels: the evaluation of CascadedEval, on a run's own rows.

Accuracy, macro-F1 and Cohen's kappa of each judge and of the cascade (arXiv 2403.02839v3, tables 2
and 6), and the cascade at every fraction asked, from 0 to 100 %, with two lines to hold it against:
rows chosen at random, and an oracle that asks first where asking helps. Pure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ray_judge.calibration.bounds import interval

Values = npt.NDArray[np.float64]
STEPS = 101
"""Fractions 0, 1, …, 100 %."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How one judge agrees with the labels, over `n` labelled rows.

    `low`, `high`: exact 95 % interval of accuracy. A row without a verdict is wrong. `macro_f1` is
    over the classes among the labels; `kappa` is None where chance alone would always agree.
    """

    n: int
    accuracy: float
    low: float
    high: float
    macro_f1: float
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy against the fraction of rows asked; all of the same length.

    `rows`: how many are asked. `dollars`: what asking them cost. `random` is the expectation.
    """

    fraction: tuple[float, ...]
    rows: tuple[int, ...]
    cascade: tuple[float, ...]
    random: tuple[float, ...]
    oracle: tuple[float, ...]
    dollars: tuple[float, ...] | None

    def first_at_least(self, accuracy: float) -> int | None:
        """Index of the smallest fraction at which the cascade is that good, or None."""
        enough = np.flatnonzero(np.asarray(self.cascade) >= accuracy - 1e-12)
        return int(enough[0]) if len(enough) else None


def scores(rows: pl.DataFrame, column: str) -> Scores | None:
    """Score one verdict column against `label`; None where no row has a label."""
    known = rows.filter(pl.col("label").is_not_null())
    if not known.height:
        return None
    labels = known["label"].cast(pl.String)
    verdicts = known[column].cast(pl.String).fill_null("(none)")
    right = int((labels == verdicts).sum())
    n = known.height
    classes = sorted(labels.unique())
    counted = pl.DataFrame({"label": labels, "verdict": verdicts})
    f1, chance = [], 0.0
    for name in classes:
        hits = counted.filter((pl.col("label") == name) & (pl.col("verdict") == name)).height
        called, true = int((verdicts == name).sum()), int((labels == name).sum())
        f1.append(2 * hits / (called + true))
        chance += called / n * true / n
    kappa = None if chance == 1 else (right / n - chance) / (1 - chance)
    return Scores(n, right / n, *interval(right, n), sum(f1) / len(f1), kappa)


def cascade_curve(rows: pl.DataFrame, steps: int = STEPS) -> Curve | None:
    """The cascade at every fraction, on the labelled rows that the strong judge answered.

    `rows`: `row_key`, `label`, `judge_verdict`, `judge_confidence`, `strong_verdict`, and
    `strong_cost_usd` where dollars are known. At fraction f the ⌊f·n⌋ least sure rows take the
    strong verdict (as policy `fraction` routes them), also where the strong judge abstained from
    it: the curve is of what the judges say. None where no such row has a label.
    """
    known = rows.filter(
        pl.col("label").is_not_null() & pl.col("strong_verdict").is_not_null()
    ).sort("judge_confidence", "row_key", nulls_last=False)
    n = known.height
    if not n:
        return None
    local = (known["judge_verdict"] == known["label"]).fill_null(value=False).to_numpy()
    strong = (known["strong_verdict"] == known["label"]).to_numpy()
    gain = strong.astype(np.int64) - local.astype(np.int64)
    # ⌊f·n⌋ in whole numbers: step · n // (steps − 1)
    asked = np.arange(steps) * n // (steps - 1)
    base = int(local.sum())
    cascade = (base + _cumulative(gain)[asked]) / n
    oracle = (base + _cumulative(np.sort(gain)[::-1])[asked]) / n
    random = (base + gain.sum() * asked / n) / n
    dollars = None
    if "strong_cost_usd" in known.columns:
        spent = known["strong_cost_usd"].cast(pl.Float64).fill_null(0.0).to_numpy()
        dollars = _floats(_cumulative(spent)[asked])
    fraction = np.arange(steps) / (steps - 1)
    return Curve(
        _floats(fraction),
        tuple(int(count) for count in asked),
        _floats(cascade),
        _floats(random),
        _floats(oracle),
        dollars,
    )


def curve_so_far(rows: pl.DataFrame, steps: int = STEPS) -> dict[str, Any] | None:
    """Accuracy over all labelled rows, for the fractions whose rows were all answered."""
    known = rows.filter(pl.col("label").is_not_null()).sort(
        "judge_confidence", "row_key", nulls_last=False
    )
    n = known.height
    local = (known["judge_verdict"] == known["label"]).fill_null(value=False).to_numpy()
    strong = (known["strong_verdict"] == known["label"]).fill_null(value=False).to_numpy()
    missing = np.flatnonzero(known["strong_verdict"].is_null().to_numpy())
    reach = int(missing[0]) if len(missing) else n
    asked = np.arange(steps) * n // (steps - 1)
    asked = asked[asked <= reach]
    if len(asked) < 2:
        return None
    gain = _cumulative(strong.astype(np.int64) - local.astype(np.int64))
    fraction = np.arange(len(asked)) / (steps - 1)
    cascade = (int(local.sum()) + gain[asked]) / n
    return {"fraction": _floats(fraction), "cascade": _floats(cascade)}


def evaluate(rows: pl.DataFrame) -> dict[str, Any]:
    """Everything above as one document: `judges`, `curve`, `so_far`, and `break_even` in words.

    The strong judge is scored on the rows that it answered. Where it answered only the rows that
    the policy chose, the curve is of these rows alone, `break_even` says so, and `so_far` has the
    cascade over all labelled rows up to the fraction that was asked.
    """
    found: dict[str, Any] = {"judges": {}, "curve": None, "so_far": None, "break_even": None}
    answered = rows.filter(pl.col("strong_verdict").is_not_null())
    for name, frame, column in (
        ("local judge", rows, "judge_verdict"),
        ("local judge, where the strong one answered", answered, "judge_verdict"),
        ("strong judge, where it answered", answered, "strong_verdict"),
        ("cascade", rows, "final_verdict"),
    ):
        scored = scores(frame, column)
        found["judges"][name] = None if scored is None else asdict(scored)
    curve = cascade_curve(rows)
    if curve is not None:
        found["curve"] = asdict(curve)
        labelled = rows.filter(pl.col("label").is_not_null()).height
        found["break_even"] = break_even(curve, labelled)
        if curve.rows[-1] < labelled:
            found["so_far"] = curve_so_far(rows)
    return found


def break_even(curve: Curve, labelled: int) -> str:
    """Say at which smallest fraction the cascade is at or above the strong judge."""
    strong, n = curve.cascade[-1], curve.rows[-1]
    index = curve.first_at_least(strong)
    assert index is not None  # at 100 % the cascade is the strong judge
    cost = ""
    if curve.dollars is not None:
        cost = f", ${curve.dollars[index]:.4f} instead of ${curve.dollars[-1]:.4f}"
    where = ""
    if n < labelled:
        where = f" (among the {n} of {labelled} labelled rows that the strong judge answered)"
    return (
        f"With {curve.fraction[index]:.0%} of the rows asked the cascade is right in "
        f"{curve.cascade[index]:.4f}, the strong judge alone in {strong:.4f}{cost}{where}."
    )


def _cumulative(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums of the first 0, 1, …, n values."""
    return np.concatenate([[0], np.cumsum(values)])


def _floats(values: npt.NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
