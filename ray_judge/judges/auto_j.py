"""Auto-J (Li et al., arXiv 2310.05470): a critique, then a decision, or a rating from 1 to 10.

Its prompt asks it to conclude with the decision, so whatever follows the decision may not name
another alternative: a judge that goes on to weigh both has not decided.
"""

from __future__ import annotations

from ray_judge.config import FORMAT_SCORES
from ray_judge.judges.family import Family
from ray_judge.judges.marked import Conclusion, Marked
from ray_judge.judges.slots import Slots
from ray_judge.records import Task

LOW, HIGH = FORMAT_SCORES["auto-j"]

FAMILY = Family(
    "auto-j",
    modes=("pairwise", "pointwise"),
    bases={
        "GAIR/autoj-13b": "meta-llama/Llama-2-13b-chat-hf",
        "GAIR/autoj-13b-GPTQ-4bits": "meta-llama/Llama-2-13b-chat-hf",
        "GAIR/autoj-bilingual-6b": "01-ai/Yi-6B-Chat",
    },
)

DECISION = Conclusion(
    marker="So, the final decision is",
    like=r"final\s+decision\s+is:?",
    verdicts={"Response 1": "A", "Response 2": "B", "Tie": "tie", "tie": "tie"},
    goes_on=r"\s*\Z|[.!](?:\s|\Z)|\s*\n|[,;:]\s|\s(?:because|since|as|due\sto)\s",
    others=r"\b(response\s+[12ab]|tied?)\b",
)
RATING = Conclusion(
    marker="Rating: [[",
    like=r"rating\W{0,3}\s*\[\[|\[\[|\brating\s*:",
    verdicts={str(score): str(score) for score in range(LOW, HIGH + 1)},
    closing="]]",
)


def make(task: Task, template: Slots, *, forced: bool) -> Marked:
    """Make the format for pairs or for single responses; `forced`: without the critique."""
    conclusion = RATING if task == "pointwise" else DECISION
    opening = f" {conclusion.marker}" if forced else ""
    return Marked(template, task, conclusion, opening, rubric="", stop=("[INST]",))
