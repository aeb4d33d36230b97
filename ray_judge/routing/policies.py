"""Which rows the strong judge is asked about: a pure function of the judged rows and a policy.

A frame of judged rows has `chunk`, `row` (position in its shard), `row_key`, `judge_confidence`
(null when the judge gave no verdict) and `has_text` (the row has text to ask about). The policy
`budget` also needs `cost_nano_usd`: what asking about the row is expected to cost, in
billionths of a dollar, so that sums are exact.
"""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import numpy.typing as npt
import polars as pl

from ray_judge.calibration.audit import draw_rows
from ray_judge.calibration.document import Tier
from ray_judge.calibration.selection import Flags, Floats
from ray_judge.config import RouteConfig
from ray_judge.errors import ConfigError
from ray_judge.records import SURENESS, Route


def needs_every_row(policy: RouteConfig) -> bool:
    """Say whether the policy has to see the whole run before it can route its first row."""
    return policy.policy in ("fraction", "budget")


def route(
    judged: pl.DataFrame, policy: RouteConfig, tier: Tier | None = None, seed: str = ""
) -> pl.DataFrame:
    """Give the frame with a `route` column, in the order it came.

    `threshold`: confidence < τ escalates. `fraction`: exactly ⌊f·n⌋ of the n rows of the frame,
    the least confident, ties broken by row key (fewer only where fewer rows can be asked).
    `budget`: see `within_budget`. `guarantee`: confidence < λ̂ of the calibration escalates.
    A row without a local verdict is as unsure as can be; one without text is never asked.

    `tier`: the calibration of this judge; `guarantee` needs it, `budget` uses it. `seed`: the
    run's own; `policy.audit` of the accepted rows, drawn by it, get the route `audit`.
    Raises ConfigError where the policy lacks what it needs.
    """
    judged = _null_for_nan(judged)
    audited = _drawn(judged, policy, seed)
    if policy.policy == "fraction":
        escalate = _least_sure(judged, fraction_count(judged.height, policy.fraction or Decimal(0)))
    elif policy.policy == "budget":
        gain = expected_gain(judged["judge_confidence"], tier)
        escalate = within_budget(judged, gain, policy.budget_usd or Decimal(0), audited)
    else:
        least = policy.threshold
        if policy.policy == "guarantee":
            if tier is None:
                raise ConfigError("policy: guarantee needs the calibration of this judge")
            least = tier.threshold
        unsure = pl.col("judge_confidence").is_null() | (pl.col("judge_confidence") < least)
        escalate = judged.select(pl.col("has_text") & unsure).to_series().to_numpy()
    return _routed(judged, escalate, audited)


def accepted(judged: pl.DataFrame, policy: RouteConfig, seed: str = "") -> pl.DataFrame:
    """Give the frame with a `route` column: rows of an earlier judge, accepted or audited."""
    judged = _null_for_nan(judged)
    return _routed(judged, np.zeros(judged.height, dtype=bool), _drawn(judged, policy, seed))


def fraction_count(rows: int, fraction: Decimal) -> int:
    """⌊f·n⌋ in decimal arithmetic: 0.29 of 100 rows is 29 (in floats it would be 28)."""
    return int(fraction * rows)


def expected_gain(confidence: pl.Series, tier: Tier | None) -> Floats:
    """P(strong right) − P(local right) per row, shape (n,).

    By the calibration where there is one; else a confidence that is a probability is taken for
    P(local right), and the strong judge for right. Without a local verdict nothing is right.
    Raises ConfigError for a confidence that is no probability.
    """
    values = confidence.cast(pl.Float64).fill_null(math.nan).to_numpy()
    if tier is not None:
        return tier.strong_right(values) - np.nan_to_num(tier.correct(values))
    known = values[~np.isnan(values)]
    if len(known) and not (known.min() >= 0 and known.max() <= 1):
        raise ConfigError(
            "policy: budget weighs P(correct) against dollars, and this judge's confidence is not "
            f"a probability (it runs from {known.min():.3g} to {known.max():.3g}): name a "
            "calibration in route.calibration"
        )
    return np.where(np.isnan(values), 1.0, 1.0 - values)


def within_budget(judged: pl.DataFrame, gain: Floats, budget_usd: Decimal, audited: Flags) -> Flags:
    """Choose rows greedily by expected gain per dollar, never planning over the budget.

    Ties go by row key; a row that no longer fits is passed over for cheaper ones behind it. A row
    without expected gain is not asked. Audited rows are paid for first, whatever their gain: they
    are asked in any case, and escalated rather than audited where their gain has its place.
    Raises ConfigError where the audit alone costs more than the budget.
    """
    if "cost_nano_usd" not in judged.columns:
        raise ConfigError("policy: budget needs to know what each row's question costs")
    cost = judged["cost_nano_usd"].fill_null(0).cast(pl.Int64).to_numpy()
    left = int((budget_usd * 10**9).to_integral_value(ROUND_FLOOR))
    reserved = int(cost[audited].sum())
    if reserved > left:
        raise ConfigError(
            f"the audit alone is expected to cost ${reserved / 1e9:.4f}, more than the budget of "
            f"${budget_usd}: lower route.audit or raise route.budget_usd"
        )
    worth = np.where(cost > 0, gain / np.maximum(cost, 1), np.inf)
    candidates = judged["has_text"].to_numpy() & (gain > 0)
    ranking = pl.DataFrame({"worth": -worth, "row_key": judged["row_key"]})
    order = ranking.with_row_index("place").sort("worth", "row_key")["place"].to_numpy()
    order = order[candidates[order]]
    free = np.where(audited, 0, cost)
    escalate = np.zeros(judged.height, dtype=bool)
    escalate[_greedy(order, free, left - reserved)] = True
    # an audited row costs nothing more, so only its rank says whether it belongs to the chosen
    paid = order[escalate[order] & ~audited[order]]
    least = worth[paid].min() if len(paid) else np.inf
    escalate[audited & (worth < least)] = False
    return escalate


def _greedy(order: npt.NDArray[np.uint32], cost: npt.NDArray[np.int64], left: int) -> list[int]:
    """Take rows in this order while they fit, passing over those that do not."""
    taken: list[int] = []
    while len(order):
        order = order[cost[order] <= left]
        sums = np.cumsum(cost[order])
        count = int(np.searchsorted(sums, left, side="right"))
        if not count:
            break
        taken += order[:count].tolist()
        left -= int(sums[count - 1])
        order = order[count:]
    return taken


def _least_sure(judged: pl.DataFrame, count: int) -> Flags:
    able = judged.with_row_index("_position").filter(pl.col("has_text"))
    chosen = able.sort(SURENESS, nulls_last=False)["_position"][:count]
    return np.isin(np.arange(judged.height), chosen.to_numpy())


def _null_for_nan(judged: pl.DataFrame) -> pl.DataFrame:
    """A confidence that is no number is as unsure as none at all, whatever the policy."""
    return judged.with_columns(pl.col("judge_confidence").cast(pl.Float64).fill_nan(None))


def _drawn(judged: pl.DataFrame, policy: RouteConfig, seed: str) -> Flags:
    """Rows that are audited if they are accepted: drawn among those with a verdict and text."""
    if not policy.audit:
        return np.zeros(judged.height, dtype=bool)
    able = judged["has_text"].to_numpy() & judged["judge_confidence"].is_not_null().to_numpy()
    return np.asarray(able & draw_rows(judged["row_key"], seed, float(policy.audit)).to_numpy())


def _routed(judged: pl.DataFrame, escalate: Flags, audited: Flags) -> pl.DataFrame:
    names = np.where(
        escalate, Route.ESCALATE.value, np.where(audited, Route.AUDIT.value, Route.ACCEPT.value)
    )
    return judged.with_columns(pl.Series("route", names.astype(object), dtype=pl.String))
