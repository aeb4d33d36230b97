"""Labelled rows, checked: which verdicts are right. What cannot be used is refused by name.

A frame of judged rows has `label`, `judge_verdict` and `judge_confidence`; a row whose label is
null has none.
"""

from __future__ import annotations

import polars as pl

from ray_judge.errors import InputError
from ray_judge.records import PAIRWISE_ALTERNATIVES, Task

FEWEST = 30
"""Below so many labelled rows nothing is fitted: every figure would be noise."""


def mark_right(rows: pl.DataFrame, task: Task, column: str = "label") -> pl.DataFrame:
    """Give the rows with `right`: whether the verdict is the label, null without a label.

    A row without a verdict is not right. Raises InputError for a label that no verdict can
    equal (unknown value, NaN, another type), naming it and its row.
    """
    check_labels(rows["label"], task, column)
    same = (pl.col("judge_verdict") == pl.col("label")).fill_null(value=False)
    return rows.with_columns(right=pl.when(pl.col("label").is_not_null()).then(same))


def check_labels(labels: pl.Series, task: Task, column: str = "label") -> None:
    """Raise InputError unless every label is null or a verdict of this task."""
    if task == "pairwise":
        wanted, good = "one of A, B, tie", labels.cast(pl.String).is_in(PAIRWISE_ALTERNATIVES)
    else:
        number = labels.dtype.is_numeric()
        wanted, good = "a number", labels.is_finite() if number else pl.Series([False])
    strange = labels.is_not_null() & ~good
    if count := int(strange.sum()):
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        raise InputError(
            f"this label is {labels.filter(strange)[0]!r}, not {wanted}{more}; "
            "a missing label is null",
            column=column,
            row=strange.arg_true()[0],
        )


def learnable(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that have both a label and a verdict of the judge."""
    return rows.drop_nulls(["right", "judge_confidence"])


def find_lack(rows: pl.DataFrame) -> str | None:
    """Say why nothing can be learnt from these rows, as `mark_right` gives them; None if it can."""
    judged = learnable(rows)
    confidence, right = judged["judge_confidence"], judged["right"].sum()
    if confidence.is_nan().any():
        return "the judge's confidence is NaN"
    if judged.height < FEWEST:
        both = f"{judged.height} rows have both a label and a verdict of this judge"
        return f"{both}; at least {FEWEST} are needed"
    if judged["label"].n_unique() == 1:
        label = judged["label"][0]
        return f"all {judged.height} labels are {label}: agreement with them says nothing"
    if confidence.n_unique() == 1:
        return (
            f"this judge's confidence is {confidence[0]:g} on every labelled row: it does not "
            "tell sure rows from unsure ones (try another judge.confidence)"
        )
    if right in (0, judged.height):
        return (
            f"this judge is {'right' if right else 'wrong'} on all {judged.height} labelled rows: "
            "how sure it must be cannot be learnt from them (more labels are needed)"
        )
    return None
