"""Several local judges, one after the other: what each was asked, and what they say together.

Tier 0 judges every row; each later one judges the rows that its predecessor's policy passed on.
A row's local verdict is that of the last tier that gave one, and `judge_model` says which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.calibration.document import Calibration, Tier
from ray_judge.config import RunConfig
from ray_judge.records import Route
from ray_judge.routing.policies import route
from ray_judge.run.directory import Plan, RunDirectory

Rows = Mapping[str, Sequence[int]]
"""Chunk → rows of its shard, rising: what a tier judges."""


@dataclass(frozen=True)
class Cascade:
    """One run as its phases take it: what is asked, of which inputs, where, calibrated by what."""

    config: RunConfig
    plan: Plan
    run: RunDirectory
    calibration: Calibration | None = None

    def calibrated(self, tier: int) -> Tier | None:
        return self.calibration.tiers[tier] if self.calibration else None

    def seed(self) -> str:
        """What a run's draws stand on: its configuration and input, so that no two nights match."""
        prints = [shard.fingerprint for shard in self.plan.shards]
        return hashlib.sha256("\n".join([self.config.digest(), *prints]).encode()).hexdigest()

    def own_confidences(self, tier: int) -> pl.Series:
        """How sure a tier's judge was of each row that reached it; null where no verdict."""
        committed = self.run.judged(tier)
        parts = [
            pl.Series(pl.from_arrow(self.run.read_judged(tier, chunk.name)["judge_confidence"]))
            for chunk in self.plan.chunks()
            if chunk.name in committed
        ]
        return pl.concat(parts) if parts else pl.Series([], dtype=pl.Float64)

    def passed_on(self, tier: int) -> Rows:
        """The rows that a tier's policy sends to the next one, once all its chunks are judged."""
        frames = [judged_frame(self.run, tier + 1, chunk.name) for chunk in self.plan.chunks()]
        here = pl.concat(frames).filter(pl.col("tier") == tier)
        policy = self.config.tiers()[tier].route
        decided = route(here, policy, self.calibrated(tier), self.seed())
        chosen = decided.filter(route=Route.ESCALATE.value).sort("chunk", "row")
        return dict(chosen.group_by("chunk").agg("row").rows())


def read_judged(run: RunDirectory, tiers: int, chunk: str) -> tuple[pa.Table, list[int]]:
    """A chunk's judged rows, all tiers together, and the last tier that each row reached."""
    table = run.read_judged(0, chunk)
    if tiers == 1:
        return table, [0] * len(table)
    rows: list[dict[str, Any]] = table.to_pylist()
    place = {row["row"]: n for n, row in enumerate(rows)}
    reached = [0] * len(rows)
    for tier in range(1, tiers):
        if not run.has_judged(tier, chunk):
            break
        for later in run.read_judged(tier, chunk).to_pylist():
            n = place[later["row"]]
            rows[n], reached[n] = _together(rows[n], later), tier
    return pa.Table.from_pylist(rows, schema=table.schema), reached


def _together(before: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The later tier's verdict; without one the earlier verdict stands, as unsure as can be."""
    if later["judge_verdict"] is not None:
        return dict(later)
    errors = [error for error in (before["error"], later["error"]) if error]
    return {**before, "judge_confidence": None, "error": "; ".join(errors) or None}


def judged_frame(run: RunDirectory, tiers: int, chunk: str) -> pl.DataFrame:
    """What routing and asking need of a judged chunk; `tier` is the last one a row reached."""
    table, reached = read_judged(run, tiers, chunk)
    table = table.select(["row", "row_key", "judge_confidence", "has_text"])
    return pl.DataFrame(pl.from_arrow(table)).with_columns(
        pl.lit(chunk).alias("chunk"), pl.Series("tier", reached, pl.Int32)
    )
