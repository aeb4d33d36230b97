"""Prometheus (Kim et al., arXiv 2310.08491) and Prometheus 2 (arXiv 2405.01535).

A critique by the user's rubric, then `[RESULT]` and a score from 1 to 5; Prometheus 2 also
compares two responses (`A` or `B`, no tie). Prometheus 1 judges a pair by scoring both.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray_judge.config import FORMAT_SCORES
from ray_judge.judging.formats.family import DEFAULT_RUBRIC, Family
from ray_judge.judging.formats.marked import Conclusion, Marked
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Task

LOW, HIGH = FORMAT_SCORES["prometheus"]
STOP = ("[INST]", "###Task Description")

FAMILY = Family(
    "prometheus",
    modes=("pointwise",),
    bases={
        "prometheus-eval/prometheus-7b-v1.0": "meta-llama/Llama-2-7b-chat-hf",
        "prometheus-eval/prometheus-13b-v1.0": "meta-llama/Llama-2-13b-chat-hf",
        "kaist-ai/prometheus-7b-v1.0": "meta-llama/Llama-2-7b-chat-hf",
        "kaist-ai/prometheus-13b-v1.0": "meta-llama/Llama-2-13b-chat-hf",
    },
)
FAMILY_2 = Family(
    "prometheus-2",
    modes=("pairwise", "pointwise"),
    bases={
        "prometheus-eval/prometheus-7b-v2.0": "mistralai/Mistral-7B-Instruct-v0.2",
        "prometheus-eval/prometheus-8x7b-v2.0": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    },
)

SCORE_LINES = "\n".join(
    f"Score {score}: {meaning}"
    for score, meaning in (
        (1, "it does nothing of it, or is wrong throughout."),
        (2, "it does a little of it, with serious faults."),
        (3, "it does the main part, with clear faults or gaps."),
        (4, "it does nearly all of it, with small faults."),
        (5, "it does all of it, without a fault."),
    )
)


def make(task: Task, template: Slots, *, forced: bool, rubric: str | None) -> Marked:
    """Make Prometheus 1's format, whose template is the whole prompt of a Llama-2 chat model."""
    opening = " [RESULT]" if forced else ""
    return Marked(template, task, _conclusion(task), opening, _rubric(task, rubric), STOP)


def make_2(
    task: Task, template: Slots, *, forced: bool, rubric: str | None, chat: bool | None
) -> Marked:
    """Make Prometheus 2's format, whose template is the user's message."""
    opening = "[RESULT]" if forced else ""
    filled = _rubric(task, rubric)
    return Marked(template, task, _conclusion(task), opening, filled, STOP, chat=chat)


def _rubric(task: Task, rubric: str | None) -> str:
    """Give the rubric in the form it was trained on: a criterion and, for scores, their meaning."""
    if rubric:
        return rubric
    return f"[{DEFAULT_RUBRIC}]" + (f"\n{SCORE_LINES}" if task == "pointwise" else "")


def _conclusion(task: Task) -> Conclusion:
    verdicts: Mapping[str, str] = {str(n): str(n) for n in range(LOW, HIGH + 1)}
    if task == "pairwise":
        verdicts = {"A": "A", "B": "B"}
    return Conclusion("[RESULT]", r"\[\s*(?:result|score)\s*\]", verdicts)
