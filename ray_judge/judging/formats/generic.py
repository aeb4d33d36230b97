"""`generic`: any instruct model, asked in our own words, with the user's own rubric."""

from __future__ import annotations

from dataclasses import dataclass

from ray_judge.config import JudgeConfig
from ray_judge.judging.formats.answers import BLANK, Marked
from ray_judge.judging.formats.format import Format
from ray_judge.records import Example, Task

PAIRWISE_SYSTEM = "You compare two answers to one instruction and decide which of them is better."
POINTWISE_SYSTEM = "You grade one answer to an instruction."
GENERIC_RUBRIC = (
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
    parts.append(("Criteria", example.rubric or rubric or GENERIC_RUBRIC))
    names = ("Answer A", "Answer B") if len(example.responses) == 2 else ("Answer",)
    parts += zip(names, example.responses, strict=True)
    return "\n\n".join(f"[{heading}]\n{text}" for heading, text in parts)


@dataclass(frozen=True)
class Headings:
    """The example under headings, and behind it what is asked."""

    ask: str

    def fill(self, example: Example, rubric: str) -> str:
        return f"{describe(example, rubric)}\n\n{self.ask}"


def make(judge: JudgeConfig, task: Task) -> Format:
    """Make the format for a task: a letter for a pair, `C` meaning a tie, a number for a response.

    `decode: verdict` asks for it alone; `full` for an explanation and, in the last line, the
    verdict, where emphasis as in `**Verdict: A**` does not count.
    """
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
    like, goes_on = r"\bverdict\W{0,4}:", r"[*.]{0,4}\s*\Z"
    answers = Marked(verdicts, MARKER, like, goes_on=goes_on, skip=BLANK + "*")
    return Format(
        task,
        Headings(f"{ask} {EXPLAIN}({form})\n" if judge.decode == "full" else f"{ask} {alone}"),
        answers,
        system=POINTWISE_SYSTEM if task == "pointwise" else PAIRWISE_SYSTEM,
        opening=f"\n\n{MARKER}",
        rubric=judge.rubric or GENERIC_RUBRIC,
        chat=judge.chat,
    )
