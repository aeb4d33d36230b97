"""From confidence to P(correct): isotonic or Platt regression, whichever predicts better.

Isotonic: Zadrozny and Elkan, KDD 2002. Platt: "Probabilistic outputs for support vector machines",
1999. The choice is by Brier score on folds that the fit did not see. The map is kept as points,
between which it is linear, so that using it needs neither scikit-learn nor a pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from ray_judge.calibration.selection import Flags, Floats

Kind = Literal["isotonic", "platt"]
FOLDS = 5
PLATT_POINTS = 129


def _check_rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(a <= b for a, b in pairwise(values)):
        raise ValueError("points are not in rising order")
    return values


Rising = Annotated[tuple[float, ...], AfterValidator(_check_rising)]


@dataclass(frozen=True, slots=True)
class CorrectnessMap:
    """P(correct) at rising confidences; linear between them, constant beyond the ends."""

    kind: Kind
    confidence: Rising
    probability: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    def __post_init__(self) -> None:
        if not self.confidence or len(self.confidence) != len(self.probability):
            raise ValueError("a map has no points, or not as many of both coordinates")

    def __call__(self, confidence: Floats) -> Floats:
        """Map confidences of any shape; NaN (no verdict) stays NaN."""
        return np.interp(confidence, self.confidence, self.probability)


def fit(confidence: Floats, right: Flags, seed: int = 0) -> tuple[CorrectnessMap, Floats]:
    """Fit the map on rows of (confidence, right), shapes (n,); n ≥ 10 with both outcomes.

    Its kind's prediction for each row by the fit of the other folds, (n,), comes with it. Folds are
    random, by `seed`, and alike in their share of right rows.
    """
    shuffled = np.random.default_rng(seed).random(len(right))
    folds = np.empty(len(right), dtype=np.int64)
    folds[np.lexsort((shuffled, right))] = np.arange(len(right)) % FOLDS
    kinds: tuple[Kind, ...] = ("platt", "isotonic")  # of equally good ones the smoother
    unseen = {kind: np.empty(len(right)) for kind in kinds}
    for kind, predicted in unseen.items():
        for fold in range(FOLDS):
            out = folds == fold
            predicted[out] = fit_kind(kind, confidence[~out], right[~out])(confidence[out])
    best = min(kinds, key=lambda kind: float(np.mean((unseen[kind] - right) ** 2)))  # Brier
    return fit_kind(best, confidence, right), unseen[best]


def fit_kind(kind: Kind, confidence: Floats, right: Flags) -> CorrectnessMap:
    """Fit one kind of map; with one outcome only, it is constant."""
    if right.all() or not right.any():
        return CorrectnessMap(kind, (float(confidence[0]),), (float(right[0]),))
    points, values = (_isotonic if kind == "isotonic" else _platt)(confidence, right)
    return CorrectnessMap(kind, tuple(points.tolist()), tuple(values.tolist()))


def _isotonic(confidence: Floats, right: Flags) -> tuple[Floats, Floats]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(confidence, right)
    return model.X_thresholds_, model.y_thresholds_


def _platt(confidence: Floats, right: Flags) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression

    centre, scale = confidence.mean(), confidence.std() or 1.0
    # Platt's targets (his eq. 1): a class of n rows is never more certain than (n + 1)/(n + 2).
    good, bad = right.sum(), (~right).sum()
    target = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))
    column = ((confidence - centre) / scale)[:, None]
    model = LogisticRegression(C=1e6, max_iter=1000).fit(
        np.concatenate([column, column]),
        np.repeat([1, 0], len(right)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    points = np.linspace(confidence.min(), confidence.max(), PLATT_POINTS)
    return points, model.predict_proba(((points - centre) / scale)[:, None])[:, 1]
