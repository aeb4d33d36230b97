"""Exact binomial bounds (Clopper and Pearson, Biometrika 26, 1934).

`scipy.stats` takes half a second to import, so it is imported by the first bound that is asked for.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval for a rate; (0, 1) where nothing was seen."""
    tail = (1 - level) / 2
    return 1 - upper_bound(total - count, total, tail), upper_bound(count, total, tail)


def upper_bound(count: int, total: int, delta: float) -> float:
    """The rate that the true one exceeds with probability ≤ delta; 1 where nothing was seen."""
    from scipy.stats import binomtest

    if not total:
        return 1.0
    return float(binomtest(count, total, alternative="less").proportion_ci(1 - delta).high)


@cache
def most_errors(rows: int, alpha: float, delta: float) -> Counts:
    """For n = 0 … `rows`: the most errors k with `upper_bound(k, n, delta)` ≤ `alpha`.

    −1 where not even 0 errors are few enough. Shape (rows + 1,). The bound is ≤ α exactly when
    P(Bin(n, α) ≤ k) ≤ δ, so that no root has to be found for each n.
    """
    from scipy.stats import binom

    n = np.arange(rows + 1)
    found = binom.ppf(delta, n, alpha).astype(np.int64)  # smallest k with P(≤ k) ≥ δ
    most = np.where(binom.cdf(found, n, alpha) <= delta, found, found - 1)
    most.flags.writeable = False  # the cache hands out one array
    return most
