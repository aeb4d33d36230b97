"""What the demo judge is measured by: accuracy and confidence by domain, and a cascade's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sklearn.metrics import roc_auc_score

from ray_judge.demo.tasks import Pair

STRONG_ACCURACY = 0.97
ESCALATED = 0.45


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with the probabilities the judge gave to the verdict tokens A and B."""

    pair: Pair
    prob_a: float
    prob_b: float

    @property
    def correct(self) -> bool:
        return (self.prob_a >= self.prob_b) == (self.pair.label == "A")

    @property
    def confidence(self) -> float:
        return max(self.prob_a, self.prob_b)


def _separation(judged: Sequence[Judged], scores: Sequence[float]) -> dict[str, float]:
    """How well `scores` tell known tasks from unknown, and what a cascade by them would give."""
    order = sorted(range(len(judged)), key=scores.__getitem__)
    cut = round(ESCALATED * len(order))
    right = sum(judged[i].correct for i in order[cut:]) + STRONG_ACCURACY * cut
    inside = [j.pair.domain == "in" for j in judged]
    return {
        "auroc_in_vs_out": float(roc_auc_score(inside, scores)),
        "auroc_right_vs_wrong": float(roc_auc_score([j.correct for j in judged], scores)),
        "cascade_accuracy": right / len(order),
    }


def summary(judged: Sequence[Judged], base: Sequence[Judged] | None = None) -> dict[str, Any]:
    """All metrics; with `base`, also those of the confidence less the base's for that verdict."""
    result: dict[str, Any] = _separation(judged, [j.confidence for j in judged])
    for part in ("domain", "kind"):
        for name in dict.fromkeys(getattr(j.pair, part) for j in judged):
            some = [j for j in judged if getattr(j.pair, part) == name]
            accuracy, sure = fmean(j.correct for j in some), fmean(j.confidence for j in some)
            result[name] = {"accuracy": accuracy, "confidence": sure}
    if base is not None:
        less = [
            j.confidence - (b.prob_a if j.prob_a >= j.prob_b else b.prob_b)
            for j, b in zip(judged, base, strict=True)
        ]
        result["base_calibrated"] = _separation(judged, less)
    return result
