"""calibration.json: what was learnt about one or more judges, and which judges those are.

A calibration holds for exactly the judges that it was made with: `check` refuses it for any other
and names the keys that differ.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ray_judge.calibration.correctness import CorrectnessMap
from ray_judge.calibration.drift import Reference
from ray_judge.calibration.selection import Selection
from ray_judge.errors import ConfigError

LAYOUT = 1
LabelKind = Literal["human", "strong"]
IDENTITY = ("format", "model", "revision", "template", "confidence", "task")
"""What a judge is known by, at least. `template`: SHA-256 of its prompt around fixed texts."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One judge: who it is, from which confidence on it is accepted, and how right it is.

    `correct`: confidence → P(verdict = label). `strong`: confidence → P(strong verdict = label)
    on the same rows, where it is known; against the strong judge's own verdicts that is 1.
    `reference`: the confidences on all rows that reached the judge, with a label or without.
    """

    judge: Mapping[str, Any]
    selection: Selection
    correct: CorrectnessMap
    reference: Reference
    strong: CorrectnessMap | None = None

    @property
    def threshold(self) -> float:
        """λ̂: rows this sure or surer are accepted; ∞ where the guarantee is not attainable."""
        return self.selection.threshold


@dataclass(frozen=True, slots=True)
class Calibration:
    """The document as a whole. `labels` of `rows` rows had a label; `data` is their digest.

    `comparison`: of confidence methods; with several judges one per judge, under `judges`.
    `strong_model`: who gave the labels (kind strong). `strong_error`: upper bound, at level
    `delta`, on how often the strong judge differs from human labels, where it is known.
    """

    alpha: float
    delta: float
    label_kind: LabelKind
    labels: int
    rows: int
    data: str
    tiers: tuple[Tier, ...]
    label_column: str | None = None
    strong_model: str | None = None
    strong_error: float | None = None
    warnings: tuple[str, ...] = ()
    comparison: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attainable(self) -> bool:
        """Whether any judge may be trusted at all at these levels."""
        return any(math.isfinite(tier.threshold) for tier in self.tiers)

    def promise(self) -> str:
        """What `policy: guarantee` promises with this calibration, in words."""
        whom = "human labels" if self.label_kind == "human" else f"{self.strong_model}'s verdicts"
        return (
            f"accepted verdicts agree with {whom} in at least {1 - self.alpha:.4g} of the rows, "
            f"with probability {1 - self.delta:.4g}"
        )


def judge_name(judge: Mapping[str, Any], number: int) -> str:
    """Name one of several judges to people, such as `judge 2 (the-model)`; numbers begin at 0."""
    return f"judge {number + 1} ({judge.get('model') or judge.get('engine') or judge['format']})"


def check(calibration: Calibration, judges: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a calibration that was made with other judges, naming every key. ConfigError.

    `judges`: the run's, in order, as the calibration names its own.
    """
    if len(calibration.tiers) != len(judges):
        raise ConfigError(
            f"this calibration is for {len(calibration.tiers)} local judge(s), the run has "
            f"{len(judges)}: calibrate again"
        )
    several = len(judges) > 1
    found = []
    for number, (tier, judge) in enumerate(zip(calibration.tiers, judges, strict=True), 1):
        for key in sorted(tier.judge.keys() | judge.keys()):
            before, now = tier.judge.get(key), judge.get(key)
            if before != now:
                where = f"judge {number}: " if several else ""
                found.append(f"{where}{key}: {before!r} in the calibration, {now!r} in the run")
    if found:
        raise ConfigError(
            f"this calibration is for another judge: {'; '.join(found)}. Calibrate again"
        )


def dumps(calibration: Calibration) -> bytes:
    """Write the document as JSON; ∞ is null there."""
    document = {"layout": LAYOUT, "promise": calibration.promise(), **asdict(calibration)}
    for tier in document["tiers"]:
        if math.isinf(tier["selection"]["threshold"]):
            tier["selection"]["threshold"] = None
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def loads(text: bytes, file: str) -> Calibration:
    """Read the document. Raises ConfigError naming the file and what is wrong with it."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"this calibration is not JSON: {error}", file=file) from None
    if not isinstance(document, dict) or "layout" not in document:
        raise ConfigError("this is no calibration of ray_judge", file=file)
    if document["layout"] != LAYOUT:
        raise ConfigError(
            f"this calibration has layout {document['layout']!r}, this ray_judge reads {LAYOUT}",
            file=file,
        )
    try:
        return _read(document)
    except KeyError as error:
        raise ConfigError(f"this calibration lacks {error.args[0]}", file=file) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"this calibration is damaged: {error}", file=file) from None


def _read(document: Mapping[str, Any]) -> Calibration:
    label_kind = document["label_kind"]
    if label_kind not in ("human", "strong"):
        raise ValueError(f"label_kind is {label_kind!r}")
    alpha, delta = float(document["alpha"]), float(document["delta"])
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise ValueError("alpha and delta must lie between 0 and 1")
    error = document["strong_error"]
    return Calibration(
        alpha,
        delta,
        label_kind,
        int(document["labels"]),
        int(document["rows"]),
        str(document["data"]),
        tuple(_tier(tier) for tier in document["tiers"]),
        document["label_column"],
        document["strong_model"],
        None if error is None else float(error),
        tuple(document["warnings"]),
        document["comparison"],
    )


def _tier(document: Mapping[str, Any]) -> Tier:
    judge = document["judge"]
    missing = [key for key in IDENTITY if key not in judge]
    if missing:
        raise KeyError(f"judge.{missing[0]}")
    given = document["selection"]
    threshold = math.inf if given["threshold"] is None else float(given["threshold"])
    known = document["reference"]
    return Tier(
        dict(judge),
        Selection(**{**given, "threshold": threshold}),
        _map(document["correct"]),
        Reference(int(known["rows"]), tuple(known["value"]), _rising(known["cumulative"])),
        None if document["strong"] is None else _map(document["strong"]),
    )


def _map(document: Mapping[str, Any]) -> CorrectnessMap:
    confidence, probability = _rising(document["confidence"]), document["probability"]
    if not confidence or len(confidence) != len(probability):
        raise ValueError("a map has no points, or not as many of both coordinates")
    if not all(0 <= value <= 1 for value in probability):
        raise ValueError("a map gives something that is no probability")
    return CorrectnessMap(document["kind"], confidence, tuple(map(float, probability)))


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if any(b < a or math.isnan(b - a) for a, b in itertools.pairwise(numbers)):
        raise ValueError("points are not in rising order")
    return numbers
