"""Auto-J (Li et al., arXiv 2310.05470): a critique, then a decision, or a rating from 1 to 10.

The decision is a sentence of its own, and reasons often follow it. What follows may weigh both
responses, but not decide again: not name the other one as the better, nor take the decision back.
"""

from __future__ import annotations

from ray_judge.config import FORMAT_SCORES
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.marked import Conclusion, Marked
from ray_judge.judging.formats.slots import Slots
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

ANOTHER_DECISION = r"(?:\A|[.!?\n])\s*(response\s+\w+|tied?)\s*(?=[.!?\n]|\Z)"
ANOTHER_IS_BETTER = (
    r"\b(response\s+[12])\s+(?:is|was)\s+(?:\w+\s+){0,2}(?:better|preferred|superior|best)"
    r"(?=\s*(?:[.!?,;\n]|\Z|overall\b|because\b|since\b|as\b|than\b))"
)
RETRACTION = r"(?:\A|[.!?\n])\s*(?:no|wait|actually|correction|sorry|scratch\s+that|on\s+second)\b"

DECISION = Conclusion(
    marker="So, the final decision is",
    like=r"final\s+decision\s+is:?",
    verdicts={"Response 1": "A", "Response 2": "B", "Tie": "tie", "tie": "tie"},
    before=r"(?:\A|[.!?)\]\"”]|[^\s:]\s*\n)[\s*#]*\Z",
    goes_on=r"\s*\Z|[.!](?:\s|\Z)|[ \t]*\n|[,;:]?\s+(?:because|since|as|given|due\s+to)\s",
    takes_back=(ANOTHER_DECISION, ANOTHER_IS_BETTER, RETRACTION),
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
