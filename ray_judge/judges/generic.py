"""`generic`: any instruct model, asked in our own words, with the user's own rubric."""

from __future__ import annotations

from collections.abc import Mapping

from ray_judge.config import JudgeConfig
from ray_judge.judges.format import Question
from ray_judge.records import Example, Task

PAIRWISE_SYSTEM = "You compare two answers to one instruction and decide which of them is better."
POINTWISE_SYSTEM = "You grade one answer to an instruction."
DEFAULT_RUBRIC = (
    "Prefer the answer that does what the instruction asks, correctly and completely. "
    "Neither length, style nor the order of the answers counts."
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


class GenericFormat:
    """Pairwise: one letter, `C` meaning a tie. Pointwise: one digit."""

    def __init__(self, judge: JudgeConfig, task: Task) -> None:
        """Prepare the closing sentence and the spellings for the task."""
        self.chat = judge.chat
        self._rubric = judge.rubric
        self.spellings: Mapping[str, tuple[str, ...]]
        if task == "pointwise":
            low, high = judge.scores
            self._system = POINTWISE_SYSTEM
            self._ask = (
                f"How good is the answer by the criteria, from {low} (worst) to {high} (best)? "
                "Reply with the digit alone."
            )
            self.spellings = {str(n): (str(n), f" {n}") for n in range(low, high + 1)}
        else:
            self._system = PAIRWISE_SYSTEM
            letters = "A, B or C, where C means that neither is better" if judge.ties else "A or B"
            self._ask = f"Which answer is better by the criteria? Reply with one letter: {letters}."
            self.spellings = {"A": ("A", " A"), "B": ("B", " B")}
            if judge.ties:
                self.spellings = {**self.spellings, "tie": ("C", " C")}

    def render(self, example: Example) -> Question:
        """Ask for the verdict alone."""
        body = describe(example, self._rubric)
        return Question(system=self._system, user=f"{body}\n\n{self._ask}", opening="\n\nVerdict:")
