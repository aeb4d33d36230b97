"""From examples to judgments, whatever reads the model: orders, pairs by scores, confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pyarrow as pa

from ray_judge.config import RunConfig
from ray_judge.judging.confidence import (
    both_orders,
    by_scores,
    judgment,
    no_judgment,
    orders_agree,
    verdict_probs,
)
from ray_judge.judging.engines.engine import Reader, Reading
from ray_judge.judging.formats import Format
from ray_judge.records import Example, Judgment


class ModelEngine:
    """A judge that reads texts. An example is one prompt, or two: both orders (swap), or each
    response of a pair by itself (a pointwise judge).
    """

    needs_text = True

    def __init__(self, config: RunConfig, format_: Format, reader: Reader) -> None:
        self._config, self._reader = config, reader
        self._singles = config.task == "pairwise" and format_.task == "pointwise"
        self.model = reader.name

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        prompts = [self._split(example) for example in examples]
        readings = iter(self._reader.read([prompt for group in prompts for prompt in group]))
        return [self._judge([next(readings) for _ in group]) for group in prompts]

    def _split(self, example: Example) -> list[Example]:
        if self._singles:  # which response comes first makes no difference to a score
            return [example.single(response) for response in example.responses]
        return [example, example.swapped()] if self._config.judge.swap else [example]

    def _judge(self, readings: Sequence[Reading | str]) -> Judgment:
        good = [reading for reading in readings if isinstance(reading, Reading)]
        if reasons := [reading for reading in readings if isinstance(reading, str)]:
            return no_judgment(reasons[0])
        try:
            reads = [verdict_probs(reading.logprobs) for reading in good]
        except ValueError as error:
            return no_judgment(str(error))
        probs, mass = reads[0]
        if len(reads) == 2:
            probs, mass = (by_scores if self._singles else both_orders)(*reads)
        entropies = [reading.entropy for reading in good if reading.entropy is not None]
        judge = self._config.judge
        found = judgment(
            probs,
            mass,
            task=self._config.task,
            method=judge.confidence,
            min_mass=judge.min_mass,
            entropy=fmean(entropies) if entropies else None,
            score=judge.score,
            unseen=max(reading.unseen for reading in good),
        )
        notes = dict.fromkeys(f"judge: {reading.note}" for reading in good if reading.note)
        calibrated = judge.confidence == "calibrated_entropy"
        return replace(
            found,
            error="; ".join([*([found.error] if found.error else []), *notes]) or None,
            orders_agree=orders_agree(*reads) if len(reads) == 2 and not self._singles else None,
            scored=tuple(r.scored for r in good if r.scored) if calibrated else (),
        )
