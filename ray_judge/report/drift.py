"""How far a night is from the calibration: confidences, and what each judge passed on."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import polars as pl

from ray_judge.calibration.document import Tier, judge_name
from ray_judge.calibration.drift import drift
from ray_judge.records import Route
from ray_judge.routing.tiers import Cascade

MEASURED = ("rows", "psi", "ks", "ks_p", "verdict")


def measure_drift(cascade: Cascade, rows: pl.DataFrame) -> dict[str, Any] | None:
    """Give the summary's `drift`; None without a calibration, or without any confidence.

    `rows`: the `route` of all scored rows. The figures are those of the judge that has moved
    furthest (by PSI); `judges` has each one's, on the rows that came to it. A later judge is
    compared only where those before it route by the calibration: otherwise other rows come to it
    than came then, and their difference is no drift.
    """
    calibration = cascade.calibration
    if calibration is None:
        return None
    guaranteed = [tier.route.policy == "guarantee" for tier in cascade.config.tiers()]
    own = [cascade.own_confidences(number) for number in range(len(guaranteed))]
    escalated = rows.filter(route=Route.ESCALATE.value).height
    reached = [*map(len, own), escalated]
    judges = []
    for number, tier in enumerate(calibration.tiers):
        alike = all(guaranteed[:number])
        moved = drift(tier.reference, own[number].drop_nulls().to_numpy()) if alike else None
        then = guaranteed[number] and tier.selection.rows
        judges.append(
            {
                "judge": judge_name(tier.judge, number),
                "reached": reached[number],
                **(asdict(moved) if moved else dict.fromkeys(MEASURED)),
                "passed_on": reached[number + 1] / reached[number] if reached[number] else None,
                "passed_on_then": _left(tier) if then else None,
            }
        )
    compared = [judge for judge in judges if judge["psi"] is not None]
    if not compared:
        return None
    worst: dict[str, Any] = max(compared, key=lambda judge: judge["psi"])
    return {
        **{key: worst[key] for key in MEASURED},
        "escalated": escalated / max(1, rows.height),
        "escalated_then": math.prod(map(_left, calibration.tiers)) if guaranteed[-1] else None,
        "judges": judges,
    }


def _left(tier: Tier) -> float:
    """Share of the labelled rows that came to this judge, and that it did not accept."""
    return 1 - tier.selection.accepted / max(1, tier.selection.rows)
