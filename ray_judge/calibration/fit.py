"""A calibration made from labelled, judged rows: thresholds, maps, comparison, warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibration.bounds import Floats, upper_bound
from ray_judge.calibration.correctness import CorrectnessMap, Flags, fit
from ray_judge.calibration.document import Calibration, LabelKind, Tier, judge_name
from ray_judge.calibration.drift import reference
from ray_judge.calibration.labels import check_enough, labelled
from ray_judge.calibration.methods import compare
from ray_judge.calibration.selection import Selection, in_parts, select_in_turn
from ray_judge.errors import InputError
from ray_judge.records import Task


@dataclass(frozen=True, slots=True)
class _Seen:
    """One judge's labelled rows, with a verdict or not, and how sure it was of all rows, (n,).

    A row without a verdict has the confidence NaN. `labelled` says which rows `known` are.
    """

    known: pl.DataFrame
    confidence: Floats
    labelled: Flags

    def judged(self, among: Flags) -> pl.DataFrame:
        """Labelled rows that have a verdict, among these of all rows."""
        part = self.known.filter(pl.Series(among[self.labelled]))
        return part.filter(pl.col("judge_confidence").is_not_null())


def make(
    judged: Sequence[pl.DataFrame],
    *,
    task: Task,
    judges: Sequence[Mapping[str, Any]],
    alpha: float,
    delta: float,
    label_kind: LabelKind,
    column: str | None,
    data: str,
    strong_model: str | None,
) -> Calibration:
    """Calibrate one judge, or several that are asked one after the other.

    `judged`: per judge, in order, the same rows in the same order: `label`, `judge_verdict`,
    `judge_confidence`, `judge_probs` (struct) and `strong_verdict`; each judge was asked about
    all of them. `judges`: as `check` compares them. `data`: digest of the rows' input.

    A judge is tested on those rows of its part of the labels that no judge before it accepts
    (docs/decisions/0045-several-judges-calibrated.md), and described by all rows that reach it.
    Raises InputError for rows that nothing can be learnt from, ConfigError for levels.
    """
    name = column or "strong_verdict"
    seen = [_seen(rows, task, name) for rows in judged]
    for number, (one, judge) in enumerate(zip(seen, judges, strict=True)):
        _check(one.known, name, judge_name(judge, number) if len(judges) > 1 else None)
    labels = seen[0].known.height
    selections = select_in_turn(
        [(one.confidence[one.labelled], _right(one.known)) for one in seen],
        alpha=alpha,
        delta=delta,
        parts=in_parts(labels, len(judges)),
    )
    tiers, compared, warnings = _described(seen, judges, selections, alpha, delta, label_kind, name)
    everything = np.ones(judged[0].height, dtype=bool)
    return Calibration(
        alpha,
        delta,
        label_kind,
        labels,
        judged[0].height,
        data,
        tuple(tiers),
        column,
        strong_model,
        _strong(seen[0].judged(everything), delta)[1] if label_kind == "human" else None,
        tuple(warnings),
        compared[0] if len(judges) == 1 else {"judges": compared},
    )


def _described(
    seen: Sequence[_Seen],
    judges: Sequence[Mapping[str, Any]],
    selections: Sequence[Selection],
    alpha: float,
    delta: float,
    label_kind: LabelKind,
    column: str,
) -> tuple[list[Tier], list[dict[str, Any]], list[str]]:
    """Each judge by the rows that reach it; the comparison of its methods; what is to be said."""
    reach = np.ones(len(seen[0].confidence), dtype=bool)
    tiers: list[Tier] = []
    compared: list[dict[str, Any]] = []
    warnings: list[str] = []
    for number, (one, selection) in enumerate(zip(seen, selections, strict=True)):
        judge = judges[number]
        here = one.judged(reach)
        if len(judges) > 1:
            few, here = _enough(one, here, column)
            found = [*_reached(selection, alpha, reach, one, len(judges)), *few]
            warnings += [f"{judge_name(judge, number)}: {text}" for text in found]
        else:
            warnings += _warnings(selection, alpha, delta)
        strong = _strong(here, delta)[0] if label_kind == "human" else None
        tiers.append(_tier(judge, selection, here, one.confidence[reach], strong))
        methods = confidence_methods(here, str(judge["confidence"]))
        compared.append(_plain(asdict(compare(methods, _right(here)))))
        reach &= ~(one.confidence >= selection.threshold)
    return tiers, compared, warnings


def _tier(
    judge: Mapping[str, Any],
    selection: Selection,
    here: pl.DataFrame,
    confidence: Floats,
    strong: CorrectnessMap | None,
) -> Tier:
    """Describe one judge by labelled rows, and by its confidences in all rows that reach it."""
    correct = fit(here["judge_confidence"].to_numpy(), _right(here)).map
    return Tier(judge, selection, correct, reference(confidence[~np.isnan(confidence)]), strong)


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


def _seen(rows: pl.DataFrame, task: Task, column: str) -> _Seen:
    confidence = rows["judge_confidence"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return _Seen(labelled(rows, task, column), confidence, rows["label"].is_not_null().to_numpy())


def _right(known: pl.DataFrame) -> Flags:
    return np.asarray(known["right"].to_numpy(), dtype=bool)


def _check(known: pl.DataFrame, column: str, judge: str | None) -> None:
    """Refuse what nothing can be learnt from, naming the judge where there are several."""
    try:
        check_enough(known, column)
    except InputError as error:
        if judge is None:
            raise
        raise InputError(f"{judge}: {error.message}", **error.where) from None


def _enough(one: _Seen, here: pl.DataFrame, column: str) -> tuple[list[str], pl.DataFrame]:
    """Rows to learn P(correct) from: those that reach the judge, else all, which is said."""
    try:
        check_enough(here, column)
    except InputError as error:
        everything = one.judged(np.ones(len(one.confidence), dtype=bool))
        said = f"of the rows that reach it, {error.message}. P(correct) and the comparison are "
        said += f"those of all {everything.height} labelled rows that it judged"
        return [said], everything
    return [], here


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
    levels = f"at alpha {alpha:g} and delta {delta:g}"
    if selection.rows < selection.start:
        said = f"{selection.rows} labelled rows are too few for a guarantee {levels}: at least "
        said += f"{selection.start} are needed, for a judge whose error is half of alpha"
    elif math.isinf(selection.threshold):
        said = f"the guarantee is not attainable {levels}: no threshold passes on these "
        said += f"{selection.rows} labels"
    else:
        return []
    return [f"{said}. With policy: guarantee every row would be escalated"]


def _reached(
    selection: Selection, alpha: float, reach: Flags, one: _Seen, judges: int
) -> list[str]:
    """What keeps one of several judges from accepting anything."""
    share = float(reach[one.labelled].mean())
    levels = f"at alpha {alpha:g} and delta {selection.delta:g} (its share)"
    if not share:
        said = "no labelled row reaches it: the judges before it accept them all"
    elif selection.rows < selection.start:
        enough = math.ceil(selection.start * judges / share)
        said = f"{selection.rows} rows of its part of the labels reach it, too few for a "
        said += f"guarantee {levels}: at least {selection.start} are needed there, for a judge "
        said += f"whose error is half of alpha, so about {enough} labels in all"
    elif math.isinf(selection.threshold):
        said = f"the guarantee is not attainable {levels}: no threshold passes on the "
        said += f"{selection.rows} rows of its part of the labels that reach it"
    else:
        return []
    return [f"{said}. With policy: guarantee it would accept no row"]
