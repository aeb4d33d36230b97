"""Labelled rows, checked: which verdicts are right. What cannot be used is refused by name.

A frame of labelled rows has `label`, `judge_verdict` and `judge_confidence`, one row each; a row
whose label is null has none, and is left out.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ray_judge.errors import InputError
from ray_judge.records import PAIRWISE_ALTERNATIVES, Task

FEWEST = 30
"""Below so many labelled rows nothing is fitted: every figure would be noise."""


def labelled(rows: pl.DataFrame, task: Task, column: str = "label") -> pl.DataFrame:
    """Keep the rows that have a label, with `right` (the verdict is the label) behind them.

    A row without a verdict is not right. Raises InputError for a label that no verdict can
    equal (unknown value, NaN, another type), naming it and its row.
    """
    check_labels(rows["label"], task, column)
    known = rows.filter(pl.col("label").is_not_null())
    return known.with_columns(
        right=(pl.col("judge_verdict") == pl.col("label")).fill_null(value=False)
    )


def check_labels(labels: pl.Series, task: Task, column: str = "label") -> None:
    """Raise InputError unless every label is null or a verdict of this task."""
    if task == "pairwise":
        if labels.dtype.is_float() and labels.is_nan().any():
            raise _refused("NaN: a missing label is null", labels.is_nan(), column)
        if labels.dtype not in (pl.String, pl.Null, pl.Categorical, pl.Enum):
            raise InputError(f"labels must be A, B or tie, not {labels.dtype}", column=column)
        strange = labels.is_not_null() & ~labels.cast(pl.String).is_in(PAIRWISE_ALTERNATIVES)
        if strange.any():
            value = labels.filter(strange)[0]
            raise _refused(f"{value!r}, not one of A, B, tie", strange, column)
        return
    if not (labels.dtype.is_numeric() or labels.dtype == pl.Null):
        raise InputError(f"labels must be numbers, not {labels.dtype}", column=column)
    if labels.dtype.is_float() and not labels.is_finite().fill_null(value=True).all():
        strange = ~labels.is_finite().fill_null(value=True)
        value = labels.filter(strange)[0]
        raise _refused(f"{value}, not a score: a missing label is null", strange, column)


def check_enough(rows: pl.DataFrame, column: str = "label", fewest: int = FEWEST) -> None:
    """Refuse labelled rows that nothing can be learnt from, saying why. Raises InputError.

    `rows` as `labelled` gives them. Too few for a guarantee is not refused here: that depends on
    its levels, and is said with it.
    """
    judged = rows.filter(pl.col("judge_confidence").is_not_null())
    if judged["judge_confidence"].is_nan().any():
        raise InputError("a judge's confidence is NaN")
    if judged.height < fewest:
        raise InputError(
            f"{judged.height} rows have both a label and a verdict of this judge; at least "
            f"{fewest} are needed",
            column=column,
        )
    if judged["label"].n_unique() == 1:
        raise InputError(
            f"all {judged.height} labels are {judged['label'][0]}: agreement with them says "
            "nothing of a judge",
            column=column,
        )
    if judged["judge_confidence"].n_unique() == 1:
        raise InputError(
            f"this judge's confidence is {judged['judge_confidence'][0]:g} on every labelled "
            "row: it does not tell sure rows from unsure ones (try another judge.confidence)"
        )
    right = int(judged["right"].sum())
    if right in (0, judged.height):
        raise InputError(
            f"this judge is {'right' if right else 'wrong'} on all {judged.height} labelled rows: "
            "how sure it must be cannot be learnt from them (more labels are needed)",
            column=column,
        )


def _refused(what: str, where: pl.Series, column: str) -> InputError:
    row = int(np.flatnonzero(where.fill_null(value=False).to_numpy())[0])
    count = int(where.sum())
    rest = f" (and {count - 1} more like it)" if count > 1 else ""
    return InputError(f"this label is {what}{rest}", column=column, row=row)
