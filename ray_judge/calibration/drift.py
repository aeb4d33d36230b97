"""Whether tonight's confidences still look like those that the judge was calibrated on.

PSI, the population stability index, over tenths of the reference: Σ (p − q) ln(p / q); by custom
below 0.1 is stable and above 0.25 has shifted. KS: Kolmogorov's D, sup |F − G|, and its p-value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from ray_judge.calibration.correctness import Rising
from ray_judge.calibration.selection import Floats

POINTS = 512
"""The reference keeps at most so many steps of its distribution function."""
Verdict = Literal["stable", "moderate", "shifted"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A distribution of confidence: F at rising values, of `rows` rows."""

    rows: int
    value: Rising
    cumulative: Rising


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a night's confidences are from the reference."""

    rows: int
    psi: float
    ks: float
    ks_p: float
    verdict: Verdict


def reference(confidence: Floats) -> Reference:
    """Describe confidences (n, finite) for later nights to be compared with."""
    values, counts = np.unique(confidence, return_counts=True)
    cumulative = np.cumsum(counts) / max(1, len(confidence))
    if len(values) > POINTS:
        wanted = np.linspace(0, 1, POINTS)
        keep = np.unique(np.minimum(np.searchsorted(cumulative, wanted), len(values) - 1))
        values, cumulative = values[keep], cumulative[keep]
    return Reference(len(confidence), tuple(values.tolist()), tuple(cumulative.tolist()))


def drift(known: Reference, confidence: Floats) -> Drift | None:
    """Compare a night's confidences (finite) with the reference; None where either has none."""
    if not len(confidence) or not known.rows:
        return None
    rows = len(confidence)
    before = _steps(known.value, known.cumulative)
    now = _steps(np.sort(confidence), np.arange(1, rows + 1) / rows)
    places = np.union1d(known.value, confidence)
    distance = float(np.abs(before(places) - now(places)).max())
    size = math.sqrt(known.rows * rows / (known.rows + rows))
    edges = _bin_edges(known)
    psi = _stability_index(before(edges), known.rows, now(edges), rows)
    verdict: Verdict = "stable" if psi < 0.1 else "moderate" if psi < 0.25 else "shifted"
    return Drift(rows, psi, distance, float(special.kolmogorov(size * distance)), verdict)


def _bin_edges(known: Reference) -> Floats:
    """Tenths of the reference; equal confidences are never split between two bins."""
    cumulative, value = np.asarray(known.cumulative), np.asarray(known.value)
    tenths = np.searchsorted(cumulative, np.arange(1, 10) / 10 - 1e-12)
    places = np.unique(np.minimum(tenths, len(value) - 1))
    # a value that holds a tenth by itself is a bin of its own: what lies below it is another
    alone = value[places][np.diff(cumulative, prepend=0.0)[places] >= 0.1]
    return np.union1d(value[places], np.nextafter(alone, -np.inf))


def _stability_index(before: Floats, rows_before: int, now: Floats, rows: int) -> float:
    p, q = (
        # half a row in each bin keeps an empty one from being infinitely far away
        (np.diff(at, prepend=0.0, append=1.0) * count + 0.5) / (count + 0.5 * (len(at) + 1))
        for at, count in ((before, rows_before), (now, rows))
    )
    return float(np.sum((q - p) * np.log(q / p)))


def _steps(value: npt.ArrayLike, cumulative: npt.ArrayLike) -> Callable[[Floats], Floats]:
    shares = np.append(0.0, cumulative)
    return lambda places: shares[np.searchsorted(value, places, side="right")]
