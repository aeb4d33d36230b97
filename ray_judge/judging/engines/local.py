"""From examples to judgments, whatever reads the model: orders, pairs by scores, confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from ray_judge.config import RunConfig
from ray_judge.judging.confidence import (
    Read,
    both_orders,
    by_scores,
    judgment,
    mean,
    orders_agree,
    verdict_probs,
)
from ray_judge.judging.engines.engine import Reader, Reading
from ray_judge.judging.formats import Format
from ray_judge.records import Example, Judgment


class ModelEngine:
    """A judge that reads texts.

    An example is one prompt, or two: both orders (swap), or each response of a pair by itself
    (a pointwise judge).
    """

    needs_text = True

    def __init__(self, config: RunConfig, format_: Format, reader: Reader) -> None:
        """Take the parts; the reader's model is loaded already."""
        self._config = config
        self._singles = config.task == "pairwise" and format_.task == "pointwise"
        self._reader = reader
        self.model = reader.name

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        """Judge each example."""
        prompts = [self._prompts(example) for example in examples]
        readings = iter(self._reader.read([prompt for group in prompts for prompt in group]))
        return [self._judgment([next(readings) for _ in group]) for group in prompts]

    def _prompts(self, example: Example) -> list[Example]:
        """In the order in which `_combined` takes the readings."""
        if self._singles:  # which response comes first makes no difference to a score
            return [example.single(response) for response in example.responses]
        return [example, example.swapped()] if self._config.judge.swap else [example]

    def _judgment(self, readings: Sequence[Reading | str]) -> Judgment:
        good: list[Reading] = []
        for reading in readings:
            if isinstance(reading, str):
                return Judgment(None, None, None, None, f"judge: {reading}")
            good.append(reading)
        try:
            reads = [verdict_probs(reading.logprobs) for reading in good]
            probs, mass = self._combined(reads)
        except ValueError as error:
            return Judgment(None, None, None, None, f"judge: {error}")
        entropies = [reading.entropy for reading in good if reading.entropy is not None]
        judge = self._config.judge
        found = judgment(
            probs,
            mass,
            task=self._config.task,
            method=judge.confidence,
            min_mass=judge.min_mass,
            entropy=mean(entropies) if entropies else None,
            score=judge.score,
            unseen=max(reading.unseen for reading in good),
        )
        if len(reads) == 2 and not self._singles:
            found = replace(found, orders_agree=orders_agree(*reads))
        return _with(found, good, base=judge.confidence == "calibrated_entropy")

    def _combined(self, reads: Sequence[Read]) -> tuple[dict[str, float], float]:
        if self._singles:
            return by_scores(*reads)
        if len(reads) == 2:
            return both_orders(*reads)
        probs, mass = reads[0]
        return dict(probs), mass


def _with(found: Judgment, readings: Sequence[Reading], *, base: bool) -> Judgment:
    """Add what was done to the prompts, and what the base model is to be asked."""
    notes = list(_notes(readings))
    error = "; ".join([*([found.error] if found.error else []), *notes]) or None
    scored = tuple(r.scored for r in readings if r.scored) if base else ()
    return replace(found, error=error, scored=scored)


def _notes(readings: Sequence[Reading]) -> Iterator[str]:
    for note in dict.fromkeys(reading.note for reading in readings if reading.note):
        yield f"judge: {note}"
