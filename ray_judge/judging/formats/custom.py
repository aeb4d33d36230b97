"""`custom`: the user's own judge, from `judge.custom` in the YAML alone (docs/custom-judge.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ray_judge.config import CustomFormat, JudgeConfig
from ray_judge.judging.formats.answers import none, shown
from ray_judge.judging.formats.family import DEFAULT_RUBRIC, Family
from ray_judge.judging.formats.format import Parsed, Question
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Example, Task

FAMILY = Family("custom", modes=("pairwise", "pointwise"))


@dataclass(frozen=True)
class OwnFormat:
    """What the configuration says, and nothing else."""

    task: Task
    template: Slots
    system: str | None
    opening: str
    spellings: Mapping[str, tuple[str, ...]]
    verdict: re.Pattern[str] | None
    """Finds a verdict in an answer, as its group `verdict`."""
    rubric: str
    chat: bool | None
    stop: tuple[str, ...]
    max_output_tokens: int

    def render(self, example: Example) -> Question:
        """Fill the template."""
        return Question(
            system=self.system,
            user=self.template.fill(example, self.rubric),
            opening=self.opening,
        )

    def parse(self, answer: str) -> Parsed:
        """Find the verdict. Several matches must say the same; the last one is where it sits."""
        if not answer.strip():
            return none("the answer is empty")
        if self.verdict is None:
            return none("judge.custom.verdict is not given: an answer cannot be read")
        found: Parsed | None = None
        for match in self.verdict.finditer(answer):
            said = match["verdict"] or ""
            name = self._meaning(said)
            if name is None:
                return none(f"{shown(said)} is not one of judge.custom.choices")
            if found is not None and found.verdict != name:
                return none("the answer has several verdicts that differ")
            begin = match.start("verdict") + len(said) - len(said.lstrip())
            found = Parsed(name, self._start(answer, begin, name, said.strip()))
        return found or none("judge.custom.verdict finds no verdict in the answer")

    def _meaning(self, said: str) -> str | None:
        for name, texts in self.spellings.items():
            if said.strip() in (text.strip() for text in texts):
                return name
        return None

    def _start(self, answer: str, begin: int, name: str, said: str) -> int:
        """Go back over the white space that belongs to the spelling: the longest that fits."""
        leads = (text[: len(text) - len(text.lstrip())] for text in self.spellings[name]
                 if text.strip() == said)  # fmt: skip
        return begin - max((len(lead) for lead in leads if answer.endswith(lead, 0, begin)),
                           default=0)  # fmt: skip


def make(judge: JudgeConfig, custom: CustomFormat) -> OwnFormat:
    """Take the configuration over; its choices say whether it judges pairs or responses."""
    task = custom.task()
    full = judge.decode == "full"
    return OwnFormat(
        task=task,
        template=Slots.split(custom.template, custom.placeholders(task)),
        system=custom.system,
        opening="" if full else custom.opening,
        spellings={name: tuple(texts) for name, texts in custom.choices.items()},
        verdict=re.compile(custom.verdict, re.MULTILINE) if custom.verdict else None,
        rubric=judge.rubric or DEFAULT_RUBRIC,
        chat=judge.chat,
        stop=custom.stop,
        max_output_tokens=custom.max_output_tokens,
    )
