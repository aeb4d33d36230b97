"""What the demo judge is measured by: accuracy and confidence by domain, and a cascade's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sklearn.metrics import roc_auc_score

from ray_judge.demo.tasks import Pair

STRONG_ACCURACY: Final = 0.97
ESCALATED: Final = (0.40, 0.45, 0.50)


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with the probabilities the judge gave to the verdict tokens A and B."""

    pair: Pair
    prob_a: float
    prob_b: float

    @property
    def correct(self) -> bool:
        """Whether the likelier verdict is the true one."""
        return (self.prob_a >= self.prob_b) == (self.pair.label == "A")

    @property
    def confidence(self) -> float:
        """Probability of the likelier verdict."""
        return max(self.prob_a, self.prob_b)


def cascade_accuracy(judged: Sequence[Judged], scores: Sequence[float], escalated: float) -> float:
    """Expected accuracy when the `escalated` share with the least score is escalated."""
    order = sorted(range(len(judged)), key=scores.__getitem__)
    cut = round(escalated * len(order))
    right = sum(judged[i].correct for i in order[cut:])
    return (right + STRONG_ACCURACY * cut) / len(order)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _separation(judged: Sequence[Judged], scores: Sequence[float]) -> dict[str, float]:
    """How well `scores` tell known tasks from unknown, and right verdicts from wrong."""

    def area(marks: Sequence[bool]) -> float:
        both = any(marks) and not all(marks)
        return float(roc_auc_score(marks, scores)) if both else float("nan")

    found = {
        "auroc_in_vs_out": area([j.pair.domain == "in" for j in judged]),
        "auroc_right_vs_wrong": area([j.correct for j in judged]),
    }
    for share in ESCALATED:
        found[f"cascade_accuracy_{share:.2f}"] = cascade_accuracy(judged, scores, share)
    return found


def summary(judged: Sequence[Judged], base: Sequence[Judged] | None = None) -> dict[str, Any]:
    """All metrics; with `base`, also those of the confidence less the base's for that verdict."""
    inside = [j for j in judged if j.pair.domain == "in"]
    outside = [j for j in judged if j.pair.domain == "out"]
    kinds = list(dict.fromkeys(j.pair.kind for j in judged))
    result: dict[str, Any] = {
        "accuracy_in": _mean([j.correct for j in inside]),
        "accuracy_out": _mean([j.correct for j in outside]),
        "confidence_in": _mean([j.confidence for j in inside]),
        "confidence_out": _mean([j.confidence for j in outside]),
        **_separation(judged, [j.confidence for j in judged]),
        "accuracy_by_kind": {
            kind: _mean([j.correct for j in judged if j.pair.kind == kind]) for kind in kinds
        },
        "confidence_by_kind": {
            kind: _mean([j.confidence for j in judged if j.pair.kind == kind]) for kind in kinds
        },
    }
    if base is not None:
        less = [
            j.confidence - (b.prob_a if j.prob_a >= j.prob_b else b.prob_b)
            for j, b in zip(judged, base, strict=True)
        ]
        result["base_calibrated"] = _separation(judged, less)
    return result
