"""Whether tonight's confidences still look like those that the judge was calibrated on.

PSI, the population stability index, over tenths of the reference: Σ (p − q) ln(p / q); by custom
below 0.1 is stable and above 0.25 has shifted. KS: Kolmogorov's D, sup |F − G|, and its p-value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from ray_judge.calibration.bounds import Floats
from ray_judge.calibration.correctness import Rising

POINTS = 512
"""The reference keeps at most so many steps of its distribution function."""
MODERATE, SHIFTED = 0.1, 0.25


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
    verdict: Literal["stable", "moderate", "shifted"]


def reference(confidence: Floats) -> Reference:
    """Describe confidences (n, finite) so that a later night can be compared with them."""
    values, counts = np.unique(confidence, return_counts=True)
    cumulative = np.cumsum(counts) / max(1, len(confidence))
    if len(values) > POINTS:
        wanted = np.linspace(0, 1, POINTS)
        keep = np.unique(np.minimum(np.searchsorted(cumulative, wanted), len(values) - 1))
        values, cumulative = values[keep], cumulative[keep]
    return Reference(len(confidence), tuple(map(float, values)), tuple(map(float, cumulative)))


def drift(known: Reference, confidence: Floats) -> Drift | None:
    """Compare a night's confidences (finite) with the reference; None where either has none."""
    if not len(confidence) or not known.rows:
        return None
    now = np.sort(confidence)
    psi = _stability_index(known, now)
    places = np.union1d(known.value, now)
    distance = float(np.abs(_share_known(known, places) - _share_now(now, places)).max())
    size = math.sqrt(known.rows * len(now) / (known.rows + len(now)))
    verdict: Literal["stable", "moderate", "shifted"] = "stable"
    if psi >= MODERATE:
        verdict = "shifted" if psi >= SHIFTED else "moderate"
    return Drift(len(now), psi, distance, float(special.kolmogorov(size * distance)), verdict)


def _stability_index(known: Reference, now: Floats) -> float:
    """PSI over tenths of the reference; equal confidences are never split between two bins."""
    cumulative, value = np.asarray(known.cumulative), np.asarray(known.value)
    tenths = np.searchsorted(cumulative, np.arange(1, 10) / 10 - 1e-12)
    places = np.unique(np.minimum(tenths, len(value) - 1))
    # a value that holds a tenth by itself is a bin of its own: what lies below it is another
    alone = value[places][np.diff(cumulative, prepend=0.0)[places] >= 0.1]
    edges = np.union1d(value[places], np.nextafter(alone, -np.inf))
    before = np.diff(_share_known(known, edges), prepend=0.0, append=1.0)
    after = np.diff(_share_now(now, edges), prepend=0.0, append=1.0)
    # half a row in each bin keeps an empty one from being infinitely far away
    p = (before * known.rows + 0.5) / (known.rows + 0.5 * len(before))
    q = (after * len(now) + 0.5) / (len(now) + 0.5 * len(after))
    return float(np.sum((q - p) * np.log(q / p)))


def _share_known(known: Reference, places: Floats) -> Floats:
    steps = np.searchsorted(known.value, places, side="right")
    return np.concatenate([[0.0], known.cumulative])[steps]


def _share_now(ordered: Floats, places: Floats) -> Floats:
    return np.asarray(np.searchsorted(ordered, places, side="right") / len(ordered))
