"""`generic`: any instruct model, asked in our own words, with the user's own rubric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_judge.config import JudgeConfig
from ray_judge.judging.formats.answers import BLANK, spelled
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.format import Parsed, Question
from ray_judge.judging.formats.marked import LEADS, Conclusion
from ray_judge.records import Example, Task

FAMILY = Family("generic", modes=("pairwise", "pointwise"))
PAIRWISE_SYSTEM = "You compare two answers to one instruction and decide which of them is better."
POINTWISE_SYSTEM = "You grade one answer to an instruction."
DEFAULT_RUBRIC = (
    "Prefer the answer that does what the instruction asks, correctly and completely. "
    "Neither length, style nor the order of the answers counts."
)
MARKER = "Verdict:"
EXPLAIN = (
    "First explain your judgement in a few sentences. Then end with one last line of exactly "
    f"this form, and write nothing behind it:\n{MARKER} "
)


def describe(example: Example, rubric: str | None) -> str:
    """Lay out an example under headings, in the order in which a reader needs them."""
    parts = [("Instruction", example.instruction)]
    if example.input:
        parts.append(("Input", example.input))
    if example.reference:
        parts.append(("Reference answer", example.reference))
    parts.append(("Criteria", example.rubric or rubric or DEFAULT_RUBRIC))
    names = ("Answer A", "Answer B") if len(example.responses) == 2 else ("Answer",)
    parts += zip(names, example.responses, strict=True)
    return "\n\n".join(f"[{heading}]\n{text}" for heading, text in parts)


@dataclass(frozen=True)
class GenericFormat:
    """Pairwise: one letter, `C` meaning a tie. Pointwise: one number.

    `decode: verdict` asks for the verdict alone; `full` for an explanation and, in the last line,
    the verdict.
    """

    task: Task
    verdicts: Mapping[str, str]
    """What the judge may say → the alternative that it means."""
    ask: str
    opening: str
    rubric: str | None
    chat: bool | None
    stop: tuple[str, ...] = ()
    max_output_tokens: int = 512

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        """Every verdict, with and without the space before it."""
        return spelled(self.verdicts, LEADS)

    def render(self, example: Example) -> Question:
        """Lay out the example and ask."""
        system = POINTWISE_SYSTEM if self.task == "pointwise" else PAIRWISE_SYSTEM
        user = f"{describe(example, self.rubric)}\n\n{self.ask}"
        return Question(system=system, user=user, opening=self.opening)

    def parse(self, answer: str) -> Parsed:
        """Read the last line; emphasis as in `**Verdict: A**` does not count."""
        conclusion = Conclusion(
            MARKER,
            like=r"\bverdict\W{0,4}:",
            verdicts=self.verdicts,
            goes_on=r"[*.]{0,4}\s*\Z",
            skip=BLANK + "*",
        )
        return conclusion.read(answer)


def make(judge: JudgeConfig, task: Task) -> GenericFormat:
    """Prepare the question's end and the verdicts for a task."""
    low, high = judge.score_range()
    if task == "pointwise":
        verdicts = {str(score): str(score) for score in range(low, high + 1)}
        ask = f"How good is the answer by the criteria, from {low} (worst) to {high} (best)?"
        form, alone = f"a number from {low} to {high}", "Reply with the number alone."
    else:
        verdicts = {"A": "A", "B": "B"} | ({"C": "tie"} if judge.ties else {})
        ask = "Which answer is better by the criteria?"
        form = "A, B or C, where C means that neither is better" if judge.ties else "A or B"
        alone = f"Reply with one letter: {form}."
    full = judge.decode == "full"
    ask = f"{ask} {EXPLAIN}({form})\n" if full else f"{ask} {alone}"
    opening = "" if full else f"\n\n{MARKER}"
    return GenericFormat(task, verdicts, ask, opening, judge.rubric, judge.chat)
