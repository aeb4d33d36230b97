"""calibration.json: what was learnt about one or more judges, and which judges those are.

A calibration holds for exactly the judges that it was made with (see `calibration_of`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ray_judge.calibration.correctness import Comparison, CorrectnessMap
from ray_judge.calibration.drift import Reference
from ray_judge.calibration.selection import Floats, Selection
from ray_judge.errors import ConfigError

LabelKind = Literal["human", "strong"]
Level = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Tier:
    """One judge: who it is, from which confidence on it is accepted, and how right it is.

    `correct`: confidence → P(verdict = label). `strong`: confidence → P(strong verdict = label)
    on the same rows, where it is known; against the strong judge's own verdicts that is 1.
    `reference`: the confidences on all rows that reached the judge, with a label or without.
    `comparison`: of its confidence methods. `temperature`: of a reward model's margin; `rewards`:
    those that mean its lowest and its highest score.
    """

    judge: Mapping[str, Any]
    selection: Selection
    correct: CorrectnessMap
    reference: Reference
    strong: CorrectnessMap | None = None
    comparison: Comparison | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    rewards: tuple[float, float] | None = None

    @property
    def threshold(self) -> float:
        """λ̂: rows this sure or surer are accepted; ∞ where the guarantee is not attainable."""
        return self.selection.threshold

    def strong_right(self, confidence: Floats) -> Floats:
        """P(strong verdict = label) by this judge's confidence; its mean where that is NaN."""
        if self.strong is None:
            return np.ones(len(confidence))
        mean = np.mean(self.strong.probability)
        return np.where(np.isnan(confidence), mean, self.strong(confidence))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The document as a whole. `labels` of `rows` rows had a label; `data` is their digest.

    `strong_model`: who gave the labels (kind strong). `strong_error`: upper bound, at level
    `delta`, on how often the strong judge differs from human labels, where it is known.
    """

    alpha: Level
    delta: Level
    label_kind: LabelKind
    data: str
    labels: int = 0
    rows: int = 0
    tiers: tuple[Tier, ...] = ()
    label_column: str | None = None
    strong_model: str | None = None
    strong_error: float | None = None
    warnings: tuple[str, ...] = ()
    layout: Literal[1] = 1

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
    """Name a judge to people, such as `judge 2 (the-model)`; numbers begin at 0."""
    return f"judge {number + 1} ({judge.get('model') or judge.get('engine') or judge['format']})"


_DOCUMENT = TypeAdapter(Calibration)


def dumps(calibration: Calibration) -> bytes:
    """Write the document as JSON, with its promise in words; ∞ is null there."""
    document = {"promise": calibration.promise(), **json.loads(_DOCUMENT.dump_json(calibration))}
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def loads(text: bytes, file: str) -> Calibration:
    """Read the document. Raises ConfigError naming the file and what is wrong with it."""
    try:
        return _DOCUMENT.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole of it"
        raise ConfigError(
            f"this is no calibration that ray_judge can read: {place}: {first['msg']}", file=file
        ) from None
