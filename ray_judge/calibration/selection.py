"""From which confidence on a judge may be trusted: fixed-sequence testing, for one or more judges.

"Trust or Escalate" (Jung et al., arXiv 2407.18370v1, §3.1 and Theorem 1). From the surest labelled
rows downwards, R⁺(λ) is the Clopper–Pearson upper bound, at level δ, on the error among the rows
with confidence ≥ λ; λ̂ is the last λ before the first R⁺ > α. Three things differ from the code
published with it: λ̂ = ∞ where nothing passes (that code accepts its strictest λ there, which
voids the guarantee); rows of one confidence are taken together; and the sequence starts at a size
chosen without a look at the labels, where the test has power. All bounds are exact (Clopper and
Pearson, Biometrika 26, 1934); `scipy.stats` is imported by the first of them: it takes .5 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from ray_judge.errors import ConfigError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
POWER = 0.8
"""The sequence starts where a judge whose true error is α/2 passes with this probability."""


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


@dataclass(frozen=True, slots=True)
class Selection:
    """What the test found for one judge.

    `threshold`: λ̂; ∞ (null in JSON) when nothing passes. `rows`: labelled rows of this judge's
    part that reached it; `accepted` of them have confidence ≥ λ̂, and `right` of these are right.
    `upper`: R⁺(λ̂), or None.
    """

    threshold: Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
    rows: int
    accepted: int
    right: int
    upper: float | None
    start: int
    delta: float


def check_levels(alpha: float, delta: float) -> None:
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, not {value:g}")


@cache
def start_size(alpha: float, delta: float) -> int:
    """Smallest n at which a judge whose true error is α/2 passes with probability `POWER`."""
    from scipy.stats import binom

    check_levels(alpha, delta)
    enough, size = np.array([]), 64
    while not len(enough):
        size *= 4
        allowed = most_errors(size, alpha, delta)[1:]  # of −1 the distribution function is 0
        power = binom.cdf(allowed, np.arange(1, size + 1), alpha / 2)
        enough = np.flatnonzero(power >= POWER)
    return int(enough[0]) + 1


def last_passed(confidence: Floats, wrong: Flags, alpha: float, delta: float, start: int) -> Floats:
    """λ̂ for each of many label sets at once: shapes (..., n) and (..., n) → (...).

    Confidences are finite. A λ is tested only where a block of equal confidences ends: the rows
    that λ accepts are whole blocks.
    """
    n = confidence.shape[-1]
    if n == 0:
        return np.full(confidence.shape[:-1], math.inf)
    order = np.argsort(-confidence, axis=-1, kind="stable")
    surest = np.take_along_axis(confidence, order, axis=-1)
    errors = np.cumsum(np.take_along_axis(wrong, order, axis=-1), axis=-1)
    ends = np.ones(surest.shape, dtype=bool)
    ends[..., :-1] = surest[..., 1:] != surest[..., :-1]
    tested = ends & (np.arange(1, n + 1) >= start)
    # for sizes that are powers of two: few, so that they are worked out once for all label sets
    allowed = most_errors(1 << (n - 1).bit_length(), alpha, delta)
    failures = np.cumsum(tested & (errors > allowed[1 : n + 1]), axis=-1)
    passed = tested & (failures == 0)
    last = n - 1 - np.argmax(passed[..., ::-1], axis=-1)
    found = np.take_along_axis(surest, last[..., None], axis=-1)[..., 0]
    return np.where(passed.any(axis=-1), found, math.inf)


def select(
    confidence: Floats, right: Flags, *, alpha: float, delta: float, start: int | None = None
) -> Selection:
    """Choose the threshold of one judge from its labelled rows, shapes (n,) and (n,)."""
    start = start_size(alpha, delta) if start is None else start
    threshold = float(last_passed(confidence, ~right, alpha, delta, start))
    accepted = confidence >= threshold
    count, good = int(accepted.sum()), int(right[accepted].sum())
    upper = upper_bound(count - good, count, delta) if count else None
    return Selection(threshold, len(confidence), count, good, upper, start, delta)


def in_parts(rows: int, parts: int, seed: int = 0) -> Counts:
    """Deal rows out at random into parts of equal size (± 1): the part of each, shape (rows,)."""
    return np.random.default_rng(seed).permutation(rows) % parts


def select_in_turn(
    judges: Sequence[tuple[Floats, Flags]],
    *,
    alpha: float,
    delta: float,
    start: int | None = None,
    parts: Counts | None = None,
) -> list[Selection]:
    """Choose the thresholds of several judges: each on the rows that none before it accepts.

    `judges`: (confidence, right) on the same n rows. Each gets δ / number of judges, so that all
    promises hold together with probability ≥ 1 − δ. A confidence of NaN stands for no verdict:
    such a row is never accepted and says nothing about that judge.

    `parts`: the number of the one judge that each row's label tests, shape (n,). Without it every
    label tests every judge, as published; as labels then choose the rows that they test, a judge's
    own promise may be broken more often than δ / number of judges.
    """
    left = np.ones(len(judges[0][0]), dtype=bool)
    found = []
    for number, (confidence, right) in enumerate(judges):
        seen = left & ~np.isnan(confidence)
        if parts is not None:
            seen &= parts == number
        share = delta / len(judges)
        found.append(select(confidence[seen], right[seen], alpha=alpha, delta=share, start=start))
        left &= ~(confidence >= found[-1].threshold)
    return found
