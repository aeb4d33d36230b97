"""JudgeLM (Zhu et al., arXiv 2310.17631): two scores from 1 to 10 in the first line, then why.

The larger score wins; equal scores are a tie. Asked about a single response, it gives one score.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray_judge.config import FORMAT_SCORES
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.first_line import FirstLine
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Task

LOW, HIGH = FORMAT_SCORES["judgelm"]
SCORES = range(LOW, HIGH + 1)
LEADS = ("", " ", "\n")  # its prompt ends with a colon; what follows depends on the tokenizer
STOP = ("### Instruction:", "[Question]")
MAX_OUTPUT_TOKENS = 512

FAMILY = Family(
    "judgelm",
    modes=("pairwise", "pointwise"),
    bases={
        "BAAI/JudgeLM-7B-v1.0": "lmsys/vicuna-7b-v1.3",
        "BAAI/JudgeLM-13B-v1.0": "lmsys/vicuna-13b-v1.3",
        "BAAI/JudgeLM-33B-v1.0": "lmsys/vicuna-33b-v1.3",
    },
)


def make(task: Task, template: Slots) -> FirstLine:
    """Make the format for pairs or for single responses."""
    if task == "pointwise":
        verdicts: Mapping[str, str] = {str(score): str(score) for score in SCORES}
        wanted = f"a whole score from {LOW} to {HIGH}"
    else:
        verdicts = {f"{a} {b}": decide(a, b) for a in SCORES for b in SCORES}
        wanted = f"two whole scores from {LOW} to {HIGH}"
    return FirstLine(template, task, verdicts, wanted, LEADS, STOP, MAX_OUTPUT_TOKENS)


def decide(score_a: int, score_b: int) -> str:
    """Name the alternative that two scores decide for."""
    if score_a == score_b:
        return "tie"
    return "A" if score_a > score_b else "B"
