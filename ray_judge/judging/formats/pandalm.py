"""PandaLM (Wang et al., arXiv 2306.05087): `1`, `2` or `Tie` in the first line, then why.

Behind the verdict come a reason and a reference answer of the judge's own. Asked about a single
response, it gives a score from 1 to 5 in that line.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray_judge.config import FORMAT_SCORES
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.first_line import FirstLine
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Task

LOW, HIGH = FORMAT_SCORES["pandalm"]
LEADS = ("", " ")
STOP = ("### Instruction:",)
MAX_OUTPUT_TOKENS = 512  # as its authors generate

FAMILY = Family(
    "pandalm",
    modes=("pairwise", "pointwise"),
    bases={"WeOpenML/PandaLM-7B-v1": "huggyllama/llama-7b"},
)


def make(task: Task, template: Slots) -> FirstLine:
    """Make the format for pairs or for single responses."""
    if task == "pointwise":
        verdicts: Mapping[str, str] = {str(n): str(n) for n in range(LOW, HIGH + 1)}
        wanted = f"a whole score from {LOW} to {HIGH}"
    else:
        verdicts = {"1": "A", "2": "B", "Tie": "tie"}
        wanted = "1, 2 or Tie"
    return FirstLine(template, task, verdicts, wanted, LEADS, STOP, MAX_OUTPUT_TOKENS)
