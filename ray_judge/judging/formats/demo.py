"""`demo`: the tiny judge shipped with the package; the token after its prompt is the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_judge.judging.formats.answers import none, shown
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.format import Parsed, Question
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Example, Task

TEMPLATE = "{instruction}\nA: {response_a}\nB: {response_b}\nBest: "
ALTERNATIVES = ("A", "B")
FAMILY = Family("demo", modes=("pairwise",))
SLOTS = Slots.split(TEMPLATE, ("instruction", "response_a", "response_b"))


@dataclass(frozen=True)
class DemoFormat:
    """Pairs only, no ties; the model was trained on exactly this text."""

    task: Task = "pairwise"
    chat: bool | None = False
    spellings: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {name: (name,) for name in ALTERNATIVES}
    )
    stop: tuple[str, ...] = ()
    max_output_tokens: int = 1

    def render(self, example: Example) -> Question:
        """Fill the template."""
        return Question(SLOTS.fill(example, rubric=""))

    def parse(self, answer: str) -> Parsed:
        """Read an answer that is a verdict and nothing else."""
        if answer in ALTERNATIVES:
            return Parsed(answer)
        return none(f"the answer is {shown(answer)}, not A or B" if answer else "it is empty")
