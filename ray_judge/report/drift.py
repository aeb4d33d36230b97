"""How far a night is from the calibration: confidences, and what each judge passed on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from ray_judge.calibration.document import Calibration, Tier, judge_name
from ray_judge.calibration.drift import drift
from ray_judge.config import RunConfig
from ray_judge.records import Route
from ray_judge.routing.tiers import own_confidences
from ray_judge.run.directory import Plan, RunDirectory

MEASURED = ("rows", "psi", "ks", "ks_p", "verdict")


def drifted(
    config: RunConfig,
    plan: Plan,
    run: RunDirectory,
    rows: pl.DataFrame,
    calibration: Calibration | None,
) -> dict[str, Any] | None:
    """Give the summary's `drift`; None without a calibration, or without any confidence.

    `rows`: `route` and `judge_confidence` of all scored rows. With several local judges the
    figures are those of the judge that has moved furthest (by PSI), and `judges` has each one's.
    """
    if calibration is None:
        return None
    escalated = rows.filter(route=Route.ESCALATE.value).height
    guaranteed = config.tiers()[-1].route.policy == "guarantee"
    shares = {
        "escalated": escalated / max(1, rows.height),
        "escalated_then": math.prod(map(_left, calibration.tiers)) if guaranteed else None,
    }
    if len(config.judges) == 1:
        seen = rows["judge_confidence"].drop_nulls().to_numpy()
        moved = drift(calibration.tiers[0].reference, seen)
        return None if moved is None else {**asdict(moved), **shares}
    judges = _by_judge(config, plan, run, escalated, calibration)
    compared = [judge for judge in judges if judge["psi"] is not None]
    if not compared:
        return None
    worst: Mapping[str, Any] = max(compared, key=lambda judge: float(judge["psi"]))
    return {**{key: worst[key] for key in MEASURED}, **shares, "judges": judges}


def _by_judge(
    config: RunConfig,
    plan: Plan,
    run: RunDirectory,
    escalated: int,
    calibration: Calibration,
) -> list[dict[str, Any]]:
    """Each judge's own figures: on the rows that came to it, of its own confidence in them.

    A later judge is compared only where those before it route by the calibration: otherwise
    other rows come to it than came then, and their difference is no drift.
    """
    tiers = config.tiers()
    own = [own_confidences(run, plan, number) for number in range(len(tiers))]
    reached = [len(confidence) for confidence in own]
    found = []
    for number, tier in enumerate(calibration.tiers):
        guaranteed = tiers[number].route.policy == "guarantee"
        alike = all(before.route.policy == "guarantee" for before in tiers[:number])
        moved = drift(tier.reference, own[number].drop_nulls().to_numpy()) if alike else None
        passed_on = reached[number + 1] if number + 1 < len(tiers) else escalated
        measured = dict.fromkeys(MEASURED) if moved is None else asdict(moved)
        found.append(
            {
                "judge": judge_name(tier.judge, number),
                "reached": reached[number],
                **measured,
                "passed_on": passed_on / reached[number] if reached[number] else None,
                "passed_on_then": _left(tier) if guaranteed and tier.selection.rows else None,
            }
        )
    return found


def _left(tier: Tier) -> float:
    """Share of the labelled rows that came to this judge, and that it did not accept."""
    return 1 - tier.selection.accepted / max(1, tier.selection.rows)
