"""From confidence to P(correct): isotonic or Platt regression, whichever predicts better.

Isotonic: Zadrozny and Elkan, KDD 2002. Platt: "Probabilistic outputs for support vector machines",
1999. The choice is by Brier score on folds that the fit did not see. The map is kept as points,
between which it is linear, so that using it needs neither scikit-learn nor a pickle.

Which confidence to use: each method is measured on the same rows, with bootstrap intervals.
AUROC: chance that a right row is surer than a wrong one. ECE: expected calibration error over ten
bins of equal count (Guo et al., arXiv 1706.04599, eq. 3). Brier: mean (p − right)². Risk–coverage:
error among the surest rows; AURC: its mean over 1 … n rows (Geifman and El-Yaniv, arXiv
1705.08500). Rows of one confidence share their error, as if their order were drawn by lot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from ray_judge.calibration.selection import Flags, Floats

Kind = Literal["isotonic", "platt"]
FOLDS = 5
PLATT_POINTS = 129
DRAWS = 1000
BINS = 10
CURVE_POINTS = 20


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


def fit_temperature(margin: Floats, right: Flags) -> float | None:
    """Fit T of P(right) = σ(margin/T), by maximum likelihood (Guo et al., section 4.2).

    Shapes (n,). None where a larger margin makes no verdict likelier to be right, or all are.
    """
    from sklearn.linear_model import LogisticRegression

    if right.all() or not right.any():
        return None
    scale = margin.std() or 1.0
    model = LogisticRegression(C=1e6, fit_intercept=False, max_iter=1000)
    slope = float(model.fit((margin / scale)[:, None], right).coef_[0, 0])
    return float(scale / slope) if slope > 0 else None


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate and its bootstrap interval (percentiles, 95 %)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One method's figures.

    `ece` and `brier` are of the confidence itself, and None where it is no probability; the
    `mapped` ones are of P(correct), predicted for rows that the fit did not see.
    `curve`: (coverage, risk, low, high), from the surest rows to all.
    """

    method: str
    auroc: Figure
    aurc: Figure
    ece: Figure | None
    brier: Figure | None
    mapped_ece: Figure
    mapped_brier: Figure
    curve: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All methods, and a sentence that says which to use."""

    methods: tuple[Measured, ...]
    use: str
    advice: str


def compare(confidences: Mapping[str, Floats], right: Flags, seed: int = 0) -> Comparison:
    """Measure methods (name → confidence, shape (n,)) on the same rows of both outcomes.

    The simplest method comes first. Another is advised only where its AURC is lower than that of
    the first one in (almost) every bootstrap draw: the interval of the difference is below 0.
    """
    found = [measure(name, values, right, seed) for name, values in confidences.items()]
    measured, draws = [one for one, _ in found], {one.method: areas for one, areas in found}
    first, best = measured[0], min(measured, key=lambda one: one.aurc.value)
    use, area = first.method, first.aurc
    if best is first:
        why = f"no other method ranks these rows better; AURC {area.value:.4f} "
        why += f"({area.low:.4f} to {area.high:.4f})"
    else:
        low, high = _percentiles(draws[best.method] - draws[use])
        why = f"these {len(right)} rows do not show that {best.method} ranks them better"
        if high < 0:
            use, why = best.method, "it ranks the rows better"
        why += f": AURC {best.aurc.value:.4f} against {area.value:.4f} (difference "
        why += f"{best.aurc.value - area.value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f})"
    return Comparison(tuple(measured), use, f"Use {use}: {why}.")


def measure(name: str, confidence: Floats, right: Flags, seed: int = 0) -> tuple[Measured, Floats]:
    """Measure one method; give its figures and the AURC of each bootstrap draw.

    The draws are by `seed` alone, and so the same for every method: their figures compare in pairs.
    """
    probabilities = {"mapped_": fit(confidence, right, seed)[1]}
    if confidence.min() >= 0 and confidence.max() <= 1:
        probabilities[""] = confidence

    def figures(rows: Any) -> dict[str, Any]:
        found = _ranking(confidence[rows], right[rows])
        for prefix, values in probabilities.items():
            found[f"{prefix}ece"] = _calibration_error(values[rows], right[rows])
            found[f"{prefix}brier"] = np.mean((values[rows] - right[rows]) ** 2)
        return found

    rng, count = np.random.default_rng(seed), len(right)
    value = figures(slice(None))
    sampled = [figures(rng.integers(0, count, count)) for _ in range(DRAWS)]
    draws = {key: np.array([one[key] for one in sampled]) for key in value}
    coverage = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS
    curve = np.stack([coverage, value.pop("curve"), *_percentiles(draws["curve"])], axis=1)
    found: dict[str, Any] = {"ece": None, "brier": None}
    found |= {key: Figure(float(one), *_percentiles(draws[key])) for key, one in value.items()}
    return Measured(name, curve=tuple(map(tuple, curve.tolist())), **found), draws["aurc"]


def _percentiles(draws: Floats) -> Any:
    return np.nanpercentile(draws, [2.5, 97.5], axis=0).tolist()


def _ranking(confidence: Floats, right: Flags) -> dict[str, Any]:
    """From blocks of equally sure rows: ten times as fast as scikit-learn's `roc_auc_score`."""
    _, block, size = np.unique(-confidence, return_inverse=True, return_counts=True)
    bad = size - (good := np.bincount(block, right))
    less_sure = bad[::-1].cumsum()[::-1] - bad / 2  # wrong rows; half of those that are as sure
    pairs = good.sum() * bad.sum()
    rows = np.arange(1, len(right) + 1)
    risk = np.repeat(bad / size, size).cumsum() / rows
    shown = -(-np.arange(1, CURVE_POINTS + 1) * len(right) // CURVE_POINTS) - 1  # rounded up
    return {
        "auroc": (good * less_sure).sum() / pairs if pairs else np.nan,
        "aurc": risk.mean(),
        "curve": risk[shown],
    }


def _calibration_error(predicted: Floats, right: Flags) -> float:
    """ECE; equal predictions belong to one bin, so that a bin may be larger than a tenth."""
    first = np.sort(predicted)[np.arange(BINS) * len(predicted) // BINS]
    bins = np.searchsorted(np.unique(first), predicted, side="right")
    return float(np.abs(np.bincount(bins, predicted - right)).sum() / len(predicted))
