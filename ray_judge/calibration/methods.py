"""Which confidence method to use: each measured on the same rows, with bootstrap intervals.

AUROC: chance that a right row is surer than a wrong one. ECE: expected calibration error over ten
bins of equal count (Guo et al., arXiv 1706.04599, eq. 3). Brier: mean (p − right)². Risk–coverage:
error among the surest c of the rows; AURC: its integral over c (Geifman and El-Yaniv, arXiv
1705.08500). Rows of one confidence share their error, as if their order were drawn by lot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_judge.calibration.bounds import Floats
from ray_judge.calibration.correctness import Flags, fit

DRAWS = 1000
BINS = 10
LEVEL = 0.95
CURVE_POINTS = 21
CELLS = 4_000_000
"""Weights held at once: what a bootstrap of many rows is cut into."""


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
    draws: dict[str, Floats] = {}
    measured = []
    for name, confidence in confidences.items():
        found, draws[name] = measure(name, confidence, right, seed)
        measured.append(found)
    first = measured[0]
    best = min(measured, key=lambda one: one.aurc.value)
    if best is first:
        return Comparison(tuple(measured), first.method, _lowest(first, len(measured)))
    low, high = _percentiles(draws[best.method] - draws[first.method])
    gap = best.aurc.value - first.aurc.value
    said = f"AURC {best.aurc.value:.4f} against {first.aurc.value:.4f} (difference {gap:+.4f}, "
    said += f"95 % interval {low:+.4f} to {high:+.4f})"
    if high < 0:
        return Comparison(
            tuple(measured), best.method, f"Use {best.method}: it ranks the rows better: {said}."
        )
    return Comparison(
        tuple(measured),
        first.method,
        f"Use {first.method}: these {len(right)} rows do not show that {best.method} ranks them "
        f"better: {said}.",
    )


def _lowest(first: Measured, methods: int) -> str:
    figure = f"AURC {first.aurc.value:.4f} ({first.aurc.low:.4f} to {first.aurc.high:.4f})"
    if methods == 1:
        return f"{first.method} is the only method measured: {figure}."
    return f"Use {first.method}: no other method ranks these rows better; {figure}."


def measure(name: str, confidence: Floats, right: Flags, seed: int) -> tuple[Measured, Floats]:
    """Measure one method; give its figures and the AURC of each bootstrap draw."""
    count = len(right)
    mapped = fit(confidence, right, seed).unseen
    given = confidence if confidence.min() >= 0 and confidence.max() <= 1 else None
    ranked, bins = _Ranked(confidence, right), _Bins(mapped, right)
    own_bins = None if given is None else _Bins(given, right)
    at = np.linspace(0, 1, CURVE_POINTS)[1:]
    draws: dict[str, list[Floats]] = {}

    def take(weights: Floats) -> dict[str, Floats]:
        found = ranked(weights, at)
        total = weights.sum(axis=-1)
        found["mapped_ece"] = bins(weights)
        found["mapped_brier"] = weights @ (mapped - right) ** 2 / total
        if given is not None and own_bins is not None:
            found["ece"] = own_bins(weights)
            found["brier"] = weights @ (given - right) ** 2 / total
        return found

    value = {key: found[0] for key, found in take(np.ones((1, count))).items()}
    for weights in _resampled(count, seed):
        for key, found in take(weights).items():
            draws.setdefault(key, []).append(found)
    drawn = {key: np.concatenate(parts) for key, parts in draws.items()}
    figures = {
        key: Figure(float(value[key]), *_percentiles(drawn[key])) for key in drawn if key != "curve"
    }
    lows, highs = np.nanpercentile(drawn["curve"], [2.5, 97.5], axis=0)
    curve = tuple(
        (float(c), float(risk), float(low), float(high))
        for c, risk, low, high in zip(at, value["curve"], lows, highs, strict=True)
    )
    return (
        Measured(
            name,
            figures["auroc"],
            figures["aurc"],
            figures.get("ece"),
            figures.get("brier"),
            figures["mapped_ece"],
            figures["mapped_brier"],
            curve,
        ),
        drawn["aurc"],
    )


def _resampled(count: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn, per draw: the same draws for every method, so pairs compare."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // count)
    sizes = [min(at_once, DRAWS - start) for start in range(0, DRAWS, at_once)]
    even = np.full(count, 1 / count)
    for size in sizes:
        yield rng.multinomial(count, even, size=size).astype(np.float64)


def _percentiles(draws: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


class _Ranked:
    """Rows from the surest down, in blocks of one confidence; measured under any weights."""

    def __init__(self, confidence: Floats, right: Flags) -> None:
        self._order = np.argsort(-confidence, kind="stable")
        surest = confidence[self._order]
        self._right = right[self._order].astype(np.float64)
        self._starts = np.flatnonzero(np.r_[True, surest[1:] != surest[:-1]])

    def __call__(self, weights: Floats, coverage: Floats) -> dict[str, Floats]:
        """AUROC, AURC and risk at the given coverages; `weights` has shape (draws, n)."""
        ordered = weights[:, self._order]
        blocks = np.add.reduceat(ordered, self._starts, axis=1)
        good = np.add.reduceat(ordered * self._right, self._starts, axis=1)
        bad = blocks - good
        wrong_below = bad.sum(axis=1, keepdims=True) - np.cumsum(bad, axis=1)
        pairs = good.sum(axis=1) * bad.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = (good * (wrong_below + bad / 2)).sum(axis=1) / pairs
            return {"auroc": auroc, **self._risks(blocks, bad, coverage)}

    def _risks(self, blocks: Floats, bad: Floats, coverage: Floats) -> dict[str, Floats]:
        """Within a block errors come evenly, so that cumulative error is linear in coverage."""
        rows, errors = np.cumsum(blocks, axis=1), np.cumsum(bad, axis=1)
        total = rows[:, -1:]
        curve = np.empty((len(blocks), len(coverage)))
        for n in range(len(blocks)):
            wanted = coverage * total[n]
            xs, ys = np.r_[0.0, rows[n]], np.r_[0.0, errors[n]]
            curve[n] = np.interp(wanted, xs, ys) / wanted
        # ∫ (e + s·x) / (r + x) dx over a block of b rows with error share s, behind r rows with e
        before_rows, before_errors = rows - blocks, errors - bad
        share = np.divide(bad, blocks, out=np.zeros_like(rows), where=blocks > 0)
        growth = np.divide(rows, before_rows, out=np.ones_like(rows), where=before_rows > 0)
        area = bad + (before_errors - share * before_rows) * np.log(growth)
        return {"aurc": area.sum(axis=1) / total[:, 0], "curve": curve}


class _Bins:
    """Expected calibration error of predicted probabilities, under any weights."""

    def __init__(self, predicted: Floats, right: Flags) -> None:
        order = np.argsort(predicted, kind="stable")
        self._gap = (predicted - right)[order]
        self._order = order
        cuts = np.unique(np.arange(BINS) * len(order) // BINS)
        # equal predictions belong to one bin: a cut inside a block moves to the block's start
        ranked = predicted[order]
        self._starts = np.unique(np.searchsorted(ranked, ranked[cuts], side="left"))

    def __call__(self, weights: Floats) -> Floats:
        gaps = np.add.reduceat(weights[:, self._order] * self._gap, self._starts, axis=1)
        found: npt.NDArray[np.float64] = np.abs(gaps).sum(axis=1) / weights.sum(axis=1)
        return found
