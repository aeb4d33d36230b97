"""Judges that answer first and explain then: the verdict is all of the answer's first line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_judge.judging.formats.answers import BLANK, none, shown, spelled, spelling_start
from ray_judge.judging.formats.format import Parsed, Question
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Example, Task


@dataclass(frozen=True)
class FirstLine:
    """A format whose answers begin with a line that is a verdict and nothing else."""

    template: Slots
    task: Task
    verdicts: Mapping[str, str]
    """The whole line → the alternative that it means."""
    wanted: str
    """What the line should have been, for people."""
    leads: tuple[str, ...]
    """What may stand in front of the verdict where it begins (tokenizers differ)."""
    stop: tuple[str, ...]
    max_output_tokens: int
    chat: bool | None = False

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        """Every line, with every lead."""
        return spelled(self.verdicts, self.leads)

    def render(self, example: Example) -> Question:
        """Fill the template. These templates have no place for a reference or for criteria."""
        return Question(self.template.fill(example, rubric=""))

    def parse(self, answer: str) -> Parsed:
        """Read the first line that is not blank. The line behind it must not be another verdict."""
        begin = len(answer) - len(answer.lstrip(BLANK))
        line, _, rest = answer[begin:].partition("\n")
        said = line.rstrip(BLANK)
        if not said:
            return none("the answer is empty")
        if said not in self.verdicts:
            return none(f"the answer's first line is {shown(said)}, not {self.wanted}")
        then = rest.lstrip(BLANK).partition("\n")[0].strip(BLANK + ".,;:!*")
        if then in self.verdicts and then != said:
            return none(f"the answer begins with two verdicts, {shown(said)} and {shown(then)}")
        return Parsed(self.verdicts[said], spelling_start(answer, begin, self.leads))
