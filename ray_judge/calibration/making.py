"""A calibration made from labelled, judged rows: thresholds, maps, comparison, warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibration.bounds import Floats, upper_bound
from ray_judge.calibration.correctness import CorrectnessMap, Flags, fit
from ray_judge.calibration.document import Calibration, LabelKind, Tier
from ray_judge.calibration.drift import reference
from ray_judge.calibration.labels import check_enough, labelled
from ray_judge.calibration.methods import compare
from ray_judge.calibration.selection import Selection, select_in_turn, start_size
from ray_judge.records import Task


def make(
    rows: pl.DataFrame,
    *,
    task: Task,
    judge: Mapping[str, Any],
    alpha: float,
    delta: float,
    label_kind: LabelKind,
    column: str | None,
    data: str,
    strong_model: str | None,
) -> Calibration:
    """Calibrate one judge.

    `rows`: `label`, `judge_verdict`, `judge_confidence`, `judge_probs` (struct) and
    `strong_verdict`. `judge`: as `check` compares it. `data`: digest of the rows' input.
    Raises InputError for rows that nothing can be learnt from, ConfigError for levels.
    """
    name = column or "strong_verdict"
    known = labelled(rows, task, name)
    check_enough(known, name)
    judged = known.filter(pl.col("judge_confidence").is_not_null())
    confidence = judged["judge_confidence"].to_numpy()
    right: Flags = judged["right"].to_numpy().astype(bool)
    (selection,) = select_in_turn([(confidence, right)], alpha=alpha, delta=delta)
    strong, strong_error = (None, None)
    if label_kind == "human":
        strong, strong_error = _strong(judged, delta)
    seen = rows["judge_confidence"].drop_nulls().to_numpy()
    return Calibration(
        alpha,
        delta,
        label_kind,
        known.height,
        rows.height,
        data,
        (Tier(judge, selection, fit(confidence, right).map, reference(seen), strong),),
        column,
        strong_model,
        strong_error,
        tuple(_warnings(selection, alpha, delta)),
        _plain(asdict(compare(confidence_methods(judged, str(judge["confidence"])), right))),
    )


def confidence_methods(judged: pl.DataFrame, configured: str) -> dict[str, Floats]:
    """Every method that these rows can show, the simplest first: name → confidence, (n,).

    `probability` and `margin` come from the probabilities themselves; the configured one as it
    was used, whatever it is.
    """
    given = judged["judge_confidence"].to_numpy()
    probs = judged["judge_probs"].struct.unnest().to_numpy().astype(np.float64)
    found: dict[str, Floats] = {}
    if len(probs) and not np.isnan(probs).all(axis=1).any():
        ordered = np.sort(np.nan_to_num(probs), axis=1)
        found = {"probability": ordered[:, -1], "margin": ordered[:, -1] - ordered[:, -2]}
    found[configured] = given
    return found


def _strong(judged: pl.DataFrame, delta: float) -> tuple[CorrectnessMap | None, float | None]:
    """How right the strong judge is on these rows, where it was asked: by confidence, and bound."""
    asked = judged.filter(pl.col("strong_verdict").is_not_null())
    if not asked.height:
        return None, None
    right: Flags = (asked["strong_verdict"] == asked["label"]).to_numpy().astype(bool)
    bound = float(upper_bound(int((~right).sum()), len(right), delta))
    confidence = asked["judge_confidence"].to_numpy()
    few = min(int(right.sum()), int((~right).sum())) < 5 or len(np.unique(confidence)) < 2
    if few:  # too little to tell how it depends on confidence
        share = float(right.mean())
        return CorrectnessMap("isotonic", (float(confidence[0]),), (share,)), bound
    return fit(confidence, right).map, bound


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it will come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _warnings(selection: Selection, alpha: float, delta: float) -> list[str]:
    needed = start_size(alpha, delta)
    levels = f"at alpha {alpha:g} and delta {delta:g}"
    if selection.rows < needed:
        said = f"{selection.rows} labelled rows are too few for a guarantee {levels}: at least "
        said += f"{needed} are needed, for a judge whose error is half of alpha"
    elif math.isinf(selection.threshold):
        said = f"the guarantee is not attainable {levels}: no threshold passes on these "
        said += f"{selection.rows} labels"
    else:
        return []
    return [f"{said}. With policy: guarantee every row would be escalated"]
