"""What a cascade is worth against labels: the evaluation of CascadedEval, on a run's own rows.

Accuracy, macro-F1 and Cohen's kappa of each judge and of the cascade (arXiv 2403.02839v3, tables 2
and 6), and the cascade at every fraction asked, from 0 to 100 %, with two lines to hold it against:
rows chosen at random, and an oracle that asks first where asking helps. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ray_judge.calibration.selection import interval

Flags = npt.NDArray[np.bool_]
PERCENT = np.arange(101)
"""The fractions asked."""


def scores(rows: pl.DataFrame, column: str) -> dict[str, Any] | None:
    """How one verdict column agrees with `label`, over the `n` rows that have one; None for 0.

    `low`, `high`: exact 95 % interval of `accuracy`. A row without a verdict is wrong. `macro_f1`
    is over the classes among the labels; `kappa` is None where chance alone would always agree.
    """
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
    low, high = interval(right, n)
    found = {"n": n, "accuracy": right / n, "low": low, "high": high}
    return found | {"macro_f1": float(f1), "kappa": kappa}


def _right(rows: pl.DataFrame) -> tuple[Flags, Flags]:
    """Whether local and strong verdict are the label; no verdict is not."""
    same = pl.col("judge_verdict", "strong_verdict") == pl.col("label")
    local, strong = rows.select(same.fill_null(value=False))
    return local.to_numpy(), strong.to_numpy()


def _least_sure_first(rows: pl.DataFrame) -> pl.DataFrame:
    """The labelled rows in the order in which policy `fraction` asks them."""
    return rows.drop_nulls("label").sort("judge_confidence", "row_key", nulls_last=False)


def cascade_curve(rows: pl.DataFrame) -> dict[str, Any] | None:
    """Accuracy of `cascade`, `random` (expected) and `oracle` at every `fraction` asked, over the
    labelled rows that the strong judge answered; None where there are none.

    `rows`: `row_key`, `label`, `judge_verdict`, `judge_confidence`, `strong_verdict`, and
    `strong_cost_usd` where dollars are known. At fraction f the ⌊f·n⌋ least sure `rows` take the
    strong verdict (as policy `fraction` routes them), also where the strong judge abstained from
    it: the curve is of what the judges say. `dollars`: what asking them cost.
    """
    known = _least_sure_first(rows.drop_nulls("strong_verdict"))
    n = known.height
    if not n:
        return None
    local, strong = _right(known)
    gain = strong.astype(np.int64) - local
    asked = PERCENT * n // 100  # ⌊f·n⌋ in whole numbers
    base, total = int(local.sum()), int(gain.sum())
    dollars = None
    if "strong_cost_usd" in known.columns:
        spent = known["strong_cost_usd"].cast(pl.Float64).fill_null(0.0).to_numpy()
        dollars = _sums(spent)[asked].tolist()
    return {
        "fraction": (PERCENT / 100).tolist(),
        "rows": asked.tolist(),
        "cascade": ((base + _sums(gain)[asked]) / n).tolist(),
        "random": ((base + total * asked / n) / n).tolist(),
        "oracle": ((base + _sums(np.sort(gain)[::-1])[asked]) / n).tolist(),
        "dollars": dollars,
    }


def curve_so_far(rows: pl.DataFrame) -> dict[str, Any] | None:
    """Accuracy over all labelled rows, for the fractions whose rows were all answered."""
    known = _least_sure_first(rows)
    n = known.height
    local, strong = _right(known)
    missing = known["strong_verdict"].is_null().arg_true()
    asked = PERCENT * n // 100
    asked = asked[asked <= (missing[0] if len(missing) else n)]
    if len(asked) < 2:
        return None
    cascade = (int(local.sum()) + _sums(strong.astype(np.int64) - local)[asked]) / n
    return {"fraction": (PERCENT[: len(asked)] / 100).tolist(), "cascade": cascade.tolist()}


def evaluate(rows: pl.DataFrame) -> dict[str, Any]:
    """Everything above as one document: `judges`, `curve`, `so_far`, and `break_even` in words.

    The strong judge is scored on the rows that it answered. Where it answered only the rows that
    the policy chose, the curve is of these rows alone, `break_even` says so, and `so_far` has the
    cascade over all labelled rows up to the fraction that was asked.
    """
    answered, labelled = rows.drop_nulls("strong_verdict"), int(rows["label"].count())
    curve = cascade_curve(rows)
    return {
        "judges": {
            "local judge": scores(rows, "judge_verdict"),
            "local judge, where the strong one answered": scores(answered, "judge_verdict"),
            "strong judge, where it answered": scores(answered, "strong_verdict"),
            "cascade": scores(rows, "final_verdict"),
        },
        "curve": curve,
        "so_far": curve_so_far(rows) if curve and curve["rows"][-1] < labelled else None,
        "break_even": break_even(curve, labelled) if curve else None,
    }


def break_even(curve: Mapping[str, Any], labelled: int) -> str:
    """Say at which smallest fraction the cascade is at or above the strong judge."""
    cascade, dollars, n = curve["cascade"], curve["dollars"], curve["rows"][-1]
    index = next(i for i, right in enumerate(cascade) if right >= cascade[-1] - 1e-12)
    cost = where = ""
    if dollars is not None:
        cost = f", ${dollars[index]:.4f} instead of ${dollars[-1]:.4f}"
    if n < labelled:
        where = f" (among the {n} of {labelled} labelled rows that the strong judge answered)"
    return (
        f"With {curve['fraction'][index]:.0%} of the rows asked the cascade is right in "
        f"{cascade[index]:.4f}, the strong judge alone in {cascade[-1]:.4f}{cost}{where}."
    )


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums of the first 0, 1, …, n values."""
    return np.append(0, np.cumsum(values))
