"""From confidence to P(correct): isotonic or Platt regression, whichever predicts better.

Isotonic: Zadrozny and Elkan, KDD 2002. Platt: "Probabilistic outputs for support vector machines",
1999. The choice is by Brier score on folds that the fit did not see. The map is kept as points,
between which it is linear, so that using it needs neither scikit-learn nor a pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ray_judge.calibration.bounds import Floats

Kind = Literal["isotonic", "platt"]
Flags = npt.NDArray[np.bool_]
FOLDS = 5
PLATT_POINTS = 129


@dataclass(frozen=True, slots=True)
class CorrectnessMap:
    """P(correct) at rising confidences; linear between them, constant beyond the ends."""

    kind: Kind
    confidence: tuple[float, ...]
    probability: tuple[float, ...]

    def __call__(self, confidence: Floats) -> Floats:
        """Map confidences of any shape; NaN (no verdict) stays NaN."""
        return np.interp(confidence, self.confidence, self.probability)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted map, and the Brier scores by which it was chosen (mean over unseen folds)."""

    map: CorrectnessMap
    brier: dict[Kind, float]
    unseen: Floats
    """The chosen kind's prediction for each row by the fit of the other folds, shape (n,)."""


def fit(confidence: Floats, right: Flags, seed: int = 0) -> Fit:
    """Fit the map on rows of (confidence, right), shapes (n,); n ≥ 10 with both outcomes.

    Folds are random, by `seed`, and alike in their share of right rows.
    """
    folds = _folds(right, seed)
    unseen: dict[Kind, Floats] = {}
    for kind in ("isotonic", "platt"):
        predicted = np.empty(len(right))
        for fold in range(FOLDS):
            out = folds == fold
            predicted[out] = fit_kind(kind, confidence[~out], right[~out])(confidence[out])
        unseen[kind] = predicted
    brier = {kind: float(np.mean((values - right) ** 2)) for kind, values in unseen.items()}
    best: Kind = "platt" if brier["platt"] <= brier["isotonic"] else "isotonic"
    return Fit(fit_kind(best, confidence, right), brier, unseen[best])


def fit_kind(kind: Kind, confidence: Floats, right: Flags) -> CorrectnessMap:
    """Fit one kind of map; with one outcome only, it is constant."""
    outcome = right.astype(np.float64)
    if outcome.min() == outcome.max():
        return CorrectnessMap(kind, (float(confidence[0]),), (float(outcome[0]),))
    if kind == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        isotonic.fit(confidence, outcome)
        return _points(kind, isotonic.X_thresholds_, isotonic.y_thresholds_)
    return _platt(confidence, right)


def _platt(confidence: Floats, right: Flags) -> CorrectnessMap:
    from sklearn.linear_model import LogisticRegression

    centre, scale = float(confidence.mean()), float(confidence.std()) or 1.0
    # Platt's targets (his eq. 1): a class of n rows is never more certain than (n + 1)/(n + 2).
    good, bad = int(right.sum()), int((~right).sum())
    sure, unsure = (good + 1) / (good + 2), 1 / (bad + 2)
    target = np.where(right, sure, unsure)
    column = ((confidence - centre) / scale)[:, None]
    model = LogisticRegression(C=1e6, max_iter=1000)
    both = np.concatenate([column, column])
    outcomes = np.repeat([1, 0], len(right))
    model.fit(both, outcomes, sample_weight=np.concatenate([target, 1 - target]))
    grid = np.linspace(confidence.min(), confidence.max(), PLATT_POINTS)
    values = model.predict_proba(((grid - centre) / scale)[:, None])[:, 1]
    return _points("platt", grid, values)


def _points(kind: Kind, confidence: Floats, probability: Floats) -> CorrectnessMap:
    return CorrectnessMap(
        kind,
        tuple(float(value) for value in confidence),
        tuple(float(value) for value in probability),
    )


def _folds(right: Flags, seed: int) -> npt.NDArray[np.int64]:
    """Number of each row's fold: right rows are dealt out in a random order, then wrong ones."""
    rng = np.random.default_rng(seed)
    folds = np.empty(len(right), dtype=np.int64)
    for rows in (np.flatnonzero(right), np.flatnonzero(~right)):
        folds[rng.permutation(rows)] = np.arange(len(rows)) % FOLDS
    return folds
