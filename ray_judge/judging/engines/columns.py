"""`columns`: a judge that has already run; its verdict probabilities are columns of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa

from ray_judge.config import RunConfig
from ray_judge.judging.confidence import confidence, no_judgment
from ray_judge.records import PAIRWISE_ALTERNATIVES, Example, Judgment

TOLERANCE = 1e-3
"""How far above 1 the probabilities of one row may sum (they are often rounded)."""


class ColumnsEngine:
    """Takes probabilities as given, without normalising: they are somebody's measurement."""

    needs_text = False

    def __init__(self, config: RunConfig) -> None:
        given: dict[str, str] = {str(k): v for k, v in (config.judge.prob_columns or {}).items()}
        self._columns = {name: given[name] for name in PAIRWISE_ALTERNATIVES if name in given}
        self._method = config.judge.confidence
        self.model = config.judge.model or "columns:" + ",".join(self._columns.values())

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        values = [rows.column(column).to_pylist() for column in self._columns.values()]
        return [self._judge(row) for row in zip(*values, strict=True)]

    def _judge(self, row: Sequence[float | None]) -> Judgment:
        probs: dict[str, float] = {}
        for (name, column), value in zip(self._columns.items(), row, strict=True):
            if value is None or not math.isfinite(value) or not 0 <= value <= 1 + TOLERANCE:
                return no_judgment(f"column {column} holds {value}, not a probability")
            probs[name] = float(value)
        mass = math.fsum(probs.values())
        if mass > 1 + TOLERANCE or mass <= 0:
            names = ", ".join(self._columns.values())
            return no_judgment(f"columns {names} sum to {mass:g}, not to a probability")
        best = max(probs, key=lambda name: probs[name])
        return Judgment(best, probs, min(mass, 1.0), confidence(probs, self._method))
