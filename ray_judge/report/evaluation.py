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

from ray_judge.calibration.selection import interval

Flags = npt.NDArray[np.bool_]
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
    from sklearn.metrics import cohen_kappa_score, f1_score  # half a second to import

    known = rows.drop_nulls("label")
    n = known.height
    if not n:
        return None
    labels = known["label"].cast(pl.String)
    verdicts = known[column].cast(pl.String).fill_null("(none)")
    right = int((labels == verdicts).sum())
    # numbers in place of names: scikit-learn sorts a million of them in no time
    codes = pl.concat([labels, verdicts]).rank("dense").to_numpy()
    truth, said = codes[:n], codes[n:]
    f1 = f1_score(truth, said, labels=np.unique(truth), average="macro", zero_division=0)
    certain = right == n and len(np.unique(truth)) == 1
    kappa = None if certain else float(cohen_kappa_score(truth, said))
    return Scores(n, right / n, *interval(right, n), float(f1), kappa)


def _right(rows: pl.DataFrame) -> tuple[Flags, Flags]:
    """Whether local and strong verdict are the label; no verdict is not."""
    same = pl.col("judge_verdict", "strong_verdict") == pl.col("label")
    local, strong = rows.select(same.fill_null(value=False))
    return local.to_numpy(), strong.to_numpy()


def _least_sure_first(rows: pl.DataFrame) -> pl.DataFrame:
    """The labelled rows in the order in which policy `fraction` asks them."""
    return rows.drop_nulls("label").sort("judge_confidence", "row_key", nulls_last=False)


def cascade_curve(rows: pl.DataFrame, steps: int = STEPS) -> Curve | None:
    """The cascade at every fraction, on the labelled rows that the strong judge answered.

    `rows`: `row_key`, `label`, `judge_verdict`, `judge_confidence`, `strong_verdict`, and
    `strong_cost_usd` where dollars are known. At fraction f the ⌊f·n⌋ least sure rows take the
    strong verdict (as policy `fraction` routes them), also where the strong judge abstained from
    it: the curve is of what the judges say. None where no such row has a label.
    """
    known = _least_sure_first(rows.drop_nulls("strong_verdict"))
    n = known.height
    if not n:
        return None
    local, strong = _right(known)
    gain = strong.astype(np.int64) - local
    asked = np.arange(steps) * n // (steps - 1)  # ⌊f·n⌋ in whole numbers
    base, total = int(local.sum()), int(gain.sum())
    dollars = None
    if "strong_cost_usd" in known.columns:
        spent = known["strong_cost_usd"].cast(pl.Float64).fill_null(0.0).to_numpy()
        dollars = tuple(_sums(spent)[asked].tolist())
    return Curve(
        tuple((np.arange(steps) / (steps - 1)).tolist()),
        tuple(asked.tolist()),
        tuple(((base + _sums(gain)[asked]) / n).tolist()),
        tuple(((base + total * asked / n) / n).tolist()),
        tuple(((base + _sums(np.sort(gain)[::-1])[asked]) / n).tolist()),
        dollars,
    )


def curve_so_far(rows: pl.DataFrame, steps: int = STEPS) -> dict[str, Any] | None:
    """Accuracy over all labelled rows, for the fractions whose rows were all answered."""
    known = _least_sure_first(rows)
    n = known.height
    local, strong = _right(known)
    missing = known["strong_verdict"].is_null().arg_true()
    asked = np.arange(steps) * n // (steps - 1)
    asked = asked[asked <= (missing[0] if len(missing) else n)]
    if len(asked) < 2:
        return None
    cascade = (int(local.sum()) + _sums(strong.astype(np.int64) - local)[asked]) / n
    fraction = np.arange(len(asked)) / (steps - 1)
    return {"fraction": fraction.tolist(), "cascade": cascade.tolist()}


def evaluate(rows: pl.DataFrame) -> dict[str, Any]:
    """Everything above as one document: `judges`, `curve`, `so_far`, and `break_even` in words.

    The strong judge is scored on the rows that it answered. Where it answered only the rows that
    the policy chose, the curve is of these rows alone, `break_even` says so, and `so_far` has the
    cascade over all labelled rows up to the fraction that was asked.
    """
    found: dict[str, Any] = {"judges": {}, "curve": None, "so_far": None, "break_even": None}
    answered = rows.drop_nulls("strong_verdict")
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
        labelled = int(rows["label"].count())
        found["break_even"] = break_even(curve, labelled)
        if curve.rows[-1] < labelled:
            found["so_far"] = curve_so_far(rows)
    return found


def break_even(curve: Curve, labelled: int) -> str:
    """Say at which smallest fraction the cascade is at or above the strong judge."""
    strong, n = curve.cascade[-1], curve.rows[-1]
    index = curve.first_at_least(strong)
    assert index is not None  # at 100 % the cascade is the strong judge
    cost = where = ""
    if curve.dollars is not None:
        cost = f", ${curve.dollars[index]:.4f} instead of ${curve.dollars[-1]:.4f}"
    if n < labelled:
        where = f" (among the {n} of {labelled} labelled rows that the strong judge answered)"
    return (
        f"With {curve.fraction[index]:.0%} of the rows asked the cascade is right in "
        f"{curve.cascade[index]:.4f}, the strong judge alone in {strong:.4f}{cost}{where}."
    )


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums of the first 0, 1, …, n values."""
    return np.append(0, np.cumsum(values))
