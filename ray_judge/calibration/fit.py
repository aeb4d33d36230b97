"""A calibration made from labelled, judged rows: thresholds, maps, comparison, warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibration.correctness import CorrectnessMap, compare, fit, fit_temperature
from ray_judge.calibration.document import Calibration, Tier, judge_name
from ray_judge.calibration.drift import reference
from ray_judge.calibration.selection import (
    Flags,
    Floats,
    Selection,
    in_parts,
    select_in_turn,
    upper_bound,
)
from ray_judge.errors import InputError
from ray_judge.records import PAIRWISE_ALTERNATIVES, Task

FEWEST = 30
"""Below so many labelled rows nothing is fitted: every figure would be noise."""


def make(
    judged: Sequence[pl.DataFrame],
    judges: Sequence[Mapping[str, Any]],
    task: Task,
    terms: Calibration,
) -> Calibration:
    """Calibrate the judges of a cascade, which are asked one after the other.

    `judged`: per judge, in order, the same rows in the same order: `label`, `judge_verdict`,
    `judge_confidence`, `judge_probs` (struct) and `strong_verdict`; each judge was asked about
    all of them. `judges`: as `identity` names them. `terms`: the levels, whose labels, which data.

    A judge is tested on those rows of its part of the labels that no judge before it accepts
    (docs/decisions/0045-several-judges-calibrated.md), and described by all rows that reach it.
    Raises InputError for rows that nothing can be learnt from, ConfigError for levels.
    """
    column = terms.label_column or "strong_verdict"
    frames = [mark_right(rows, task, column) for rows in judged]
    names = [judge_name(judge, number) for number, judge in enumerate(judges)]
    for frame, who in zip(frames, names, strict=True):
        if lack := find_lack(frame):
            raise InputError(f"{who}: {lack}", column=column)
    known = frames[0]["right"].is_not_null().to_numpy()
    labels = int(known.sum())
    selections = select_in_turn(
        [(_confidence(frame)[known], _flags(frame["right"].drop_nulls())) for frame in frames],
        alpha=terms.alpha,
        delta=terms.delta,
        parts=in_parts(labels, len(judges)),
    )
    reach = np.ones(len(known), dtype=bool)
    tiers, warnings = [], []
    for frame, judge, who, selection in zip(frames, judges, names, selections, strict=True):
        share = float(reach[known].mean())
        tier, lack = _describe(judge, selection, frame, reach, terms)
        said = [_objection(selection, terms.alpha, share, len(judges)), lack]
        warnings += [f"{who}: {text}" for text in said if text]
        tiers.append(tier)
        reach &= ~(_confidence(frame) >= selection.threshold)
    error = _strong(learnable(frames[0]), terms)[1]
    terms = replace(terms, labels=labels, rows=len(known), strong_error=error)
    return replace(terms, tiers=tuple(tiers), warnings=tuple(warnings))


def _describe(
    judge: Mapping[str, Any],
    selection: Selection,
    frame: pl.DataFrame,
    reach: Flags,
    terms: Calibration,
) -> tuple[Tier, str | None]:
    """Describe a judge by the rows that reach it; by all rows, which is said, where too few do."""
    reached = frame.filter(pl.Series(reach))
    confidence, rows, said = _confidence(reached), learnable(reached), None
    if lack := find_lack(reached):
        rows = learnable(frame)
        said = f"of the rows that reach it, {lack}. P(correct) and the comparison are those of "
        said += f"all {rows.height} labelled rows that it judged"
    methods, right = confidence_methods(rows, str(judge["confidence"])), _flags(rows["right"])
    temperature = None
    if judge["format"] == "reward" and judge["task"] == "pairwise":
        clear = rows.filter(pl.col("label") != "tie")  # no margin, whatever it is, says a tie
        temperature = fit_temperature(_confidence(clear), _flags(clear["right"]))
    tier = Tier(
        judge,
        selection,
        fit(_confidence(rows), right)[0],
        reference(confidence[~np.isnan(confidence)]),
        _strong(rows, terms)[0],
        compare(methods, right),
        temperature,
    )
    return tier, said


def confidence_methods(judged: pl.DataFrame, configured: str) -> dict[str, Floats]:
    """Every method that these rows can show, the simplest first; the configured one as used."""
    probs = judged["judge_probs"].struct.unnest().to_numpy().astype(np.float64)
    found: dict[str, Floats] = {}
    if len(probs) and not np.isnan(probs).all(axis=1).any():
        ordered = np.sort(np.nan_to_num(probs), axis=1)
        found = {"probability": ordered[:, -1], "margin": ordered[:, -1] - ordered[:, -2]}
    return {**found, configured: _confidence(judged)}


def _confidence(rows: pl.DataFrame) -> Floats:
    """NaN for a row without a verdict."""
    return rows["judge_confidence"].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _flags(values: pl.Series) -> Flags:
    return np.asarray(values.to_numpy(), dtype=bool)


def _strong(rows: pl.DataFrame, terms: Calibration) -> tuple[CorrectnessMap | None, float | None]:
    """How right the strong judge is on these rows: by confidence, and the bound on its error.

    (None, None) where it was not asked, or gave the labels itself.
    """
    asked = rows.drop_nulls("strong_verdict")
    if terms.label_kind == "strong" or not asked.height:
        return None, None
    right, confidence = _flags(asked["strong_verdict"] == asked["label"]), _confidence(asked)
    wrong = int((~right).sum())
    bound = upper_bound(wrong, len(right), terms.delta)
    if min(wrong, len(right) - wrong) < 5 or len(np.unique(confidence)) < 2:
        # too little to tell how it depends on confidence
        return CorrectnessMap("isotonic", (float(confidence[0]),), (float(right.mean()),)), bound
    return fit(confidence, right)[0], bound


def _objection(selection: Selection, alpha: float, share: float, judges: int) -> str | None:
    """Say what keeps a judge from accepting anything. `share`: of the labels that reach it."""
    rows = f"{selection.rows} labelled rows"
    levels = f"a guarantee at alpha {alpha:g} and delta {selection.delta:g}"
    if not share:
        said = "no labelled row reaches it: the judges before it accept them all"
    elif selection.rows < selection.start:
        enough = math.ceil(selection.start * judges / share)
        said = f"{rows} test it, too few for {levels}: at least {selection.start} are needed "
        said += f"({enough} labels in all), for a judge whose error is half of alpha"
    elif math.isinf(selection.threshold):
        said = f"{levels} is not attainable: no threshold passes on the {rows} that test it"
    else:
        return None
    return f"{said}. With policy: guarantee it accepts no row"


def mark_right(rows: pl.DataFrame, task: Task, column: str = "label") -> pl.DataFrame:
    """Give the rows with `right`: whether the verdict is the label, null without a label.

    A row without a verdict is not right; of scores the nearest whole ones are compared. Raises
    InputError for a label that no verdict can equal (unknown value, NaN, another type), naming it
    and its row.
    """
    check_labels(rows["label"], task, column)
    verdict, label = pl.col("judge_verdict"), pl.col("label")
    same = verdict.round() == label.round() if task == "pointwise" else verdict == label
    same = same.fill_null(value=False)
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
