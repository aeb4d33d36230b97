"""Which rows the strong judge is asked about: a pure function of the judged rows and a policy.

A frame of judged rows has `chunk`, `row` (position in its shard), `row_key`, `judge_confidence`
(null when the judge gave no verdict) and `askable` (the row has text to ask about).
"""

from __future__ import annotations

from decimal import Decimal

import polars as pl

from ray_judge.config import RouteConfig
from ray_judge.records import Route

SURENESS = ["judge_confidence", "row_key"]
"""Least sure first; rows without a local verdict before all others; ties by row key."""


def needs_every_row(policy: RouteConfig) -> bool:
    """Say whether the policy has to see the whole run before it can route its first row."""
    return policy.policy == "fraction"


def route(judged: pl.DataFrame, policy: RouteConfig) -> pl.DataFrame:
    """Give the frame with a `route` column, in the order it came.

    `threshold`: confidence < τ escalates. `fraction`: exactly ⌊f·n⌋ of the n rows of the frame,
    the least confident, ties broken by row key (fewer only where fewer rows can be asked).
    A row without a local verdict is as unsure as can be; one without text is never asked.
    """
    if policy.policy == "threshold":
        unsure = pl.col("judge_confidence").is_null() | (
            pl.col("judge_confidence") < policy.threshold
        )
        return _routed(judged, pl.col("askable") & unsure)
    count = fraction_count(judged.height, policy.fraction or Decimal(0))
    chosen = (
        judged.with_row_index("_position")
        .filter(pl.col("askable"))
        .sort(SURENESS, nulls_last=False)
        .head(count)["_position"]
    )
    position = pl.int_range(pl.len(), dtype=pl.UInt32)
    return _routed(judged, position.is_in(chosen.implode()))


def fraction_count(rows: int, fraction: Decimal) -> int:
    """⌊f·n⌋ in decimal arithmetic: 0.29 of 100 rows is 29 (in floats it would be 28)."""
    return int(fraction * rows)


def in_asking_order(routed: pl.DataFrame) -> pl.DataFrame:
    """Keep the rows that are asked, the least sure first: a cap that binds drops the surest."""
    return routed.filter(pl.col("route") != Route.ACCEPT.value).sort(SURENESS, nulls_last=False)


def _routed(judged: pl.DataFrame, escalate: pl.Expr) -> pl.DataFrame:
    return judged.with_columns(
        pl.when(escalate)
        .then(pl.lit(Route.ESCALATE.value))
        .otherwise(pl.lit(Route.ACCEPT.value))
        .alias("route")
    )
