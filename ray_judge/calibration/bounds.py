"""Exact binomial bounds (Clopper and Pearson, Biometrika 26, 1934), over arrays of any shape."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def upper_bound(count: Any, total: Any, delta: float) -> Floats:
    """The largest rate under which `count` or fewer of `total` still has probability `delta`.

    Covers the true rate with probability ≥ 1 − delta; 1 where nothing was seen.
    """
    count, total = np.broadcast_arrays(np.asarray(count), np.asarray(total))
    inside = count < total
    beta = special.betaincinv(count + 1, np.where(inside, total - count, 1), 1 - delta)
    return np.where(inside, beta, 1.0)


def lower_bound(count: Any, total: Any, delta: float) -> Floats:
    """Mirror image of `upper_bound`: 0 where nothing was seen."""
    count, total = np.broadcast_arrays(np.asarray(count), np.asarray(total))
    return np.asarray(1.0 - upper_bound(total - count, total, delta))


def interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval for a rate; (0, 1) where nothing was seen."""
    tail = (1 - level) / 2
    return float(lower_bound(count, total, tail)), float(upper_bound(count, total, tail))


@cache
def most_errors(rows: int, alpha: float, delta: float) -> Counts:
    """For n = 0 … `rows`: the most errors k with `upper_bound(k, n, delta)` ≤ `alpha`.

    −1 where not even 0 errors are few enough. Shape (rows + 1,). The bound is ≤ α exactly when
    P(Bin(n, α) ≤ k) ≤ δ, so that no root has to be found for each n.
    """
    from scipy import stats  # a second to import, for calibrations only

    n = np.arange(rows + 1)
    found = stats.binom.ppf(delta, n, alpha).astype(np.int64)  # smallest k with P(≤ k) ≥ δ
    most = np.where(stats.binom.cdf(found, n, alpha) <= delta, found, found - 1)
    most.flags.writeable = False  # one array for all who ask
    return most
