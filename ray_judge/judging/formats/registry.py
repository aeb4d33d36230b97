"""Which text each fine-tuned judge is asked with: pinned by repository, commit, path and hash.

The prompt that a judge was tuned on belongs to it like its weights, and is not ours to ship. Each
pin names one string literal in one file of one commit, by the SHA-256 of its text in UTF-8;
`templates.py` gets it from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_judge.errors import ConfigError
from ray_judge.records import Task


@dataclass(frozen=True, slots=True)
class Pin:
    """One judge's template for one task, without its text."""

    judge: str
    mode: Task
    repository: str
    """On GitHub: `owner/name`."""
    commit: str
    path: str
    literal_sha256: str
    placeholders: tuple[str, ...]
    characters: int
    """How long the text is: by it a changed copy is told from a text that is none."""

    @property
    def name(self) -> str:
        """Name it for people and for files."""
        return f"{self.judge}-{self.mode}"


CASCADED_EVAL = (
    "HuihuiChyan/UnlimitedJudge",
    "f7d6167dd244f8199f4d41c1c91ff545d73c44c0",
    "src/build_prompt_judge.py",
)
"""The code of the paper that studied these judges side by side (arXiv 2403.02839)."""
PROMETHEUS_EVAL = (
    "prometheus-eval/prometheus-eval",
    "dcfb44272d5d0414832f5dbb8c2a05ebc2614234",
    "libs/prometheus-eval/prometheus_eval/prompts.py",
)

PINS: tuple[Pin, ...] = (
    Pin(
        "judgelm",
        "pairwise",
        *CASCADED_EVAL,
        "65bb333c23ac8b2d5c27fa7e887c15dd43f8b2bf77a62f15603235034193db49",
        ("answer1_body", "answer2_body", "question_body"),
        1017,
    ),
    Pin(
        "judgelm",
        "pointwise",
        *CASCADED_EVAL,
        "2a5c17182d0b5c3ae3107782f019d990f263f51d32ac519dd8d25d8272a4c816",
        ("answer_body", "question_body"),
        766,
    ),
    Pin(
        "pandalm",
        "pairwise",
        *CASCADED_EVAL,
        "96fc1224b04218a402fe1cde960d571cdb3469190306fbea4e7d240a828070c5",
        ("answer1_body", "answer2_body", "question_body"),
        266,
    ),
    Pin(
        "pandalm",
        "pointwise",
        *CASCADED_EVAL,
        "7a2bedf57bf5f35287c569eed62008be8b0700296f7536c7c0d67c46a607a572",
        ("answer_body", "question_body"),
        270,
    ),
    Pin(
        "auto-j",
        "pairwise",
        *CASCADED_EVAL,
        "f70e2f5609fd1c5e468e315b23161e1ad449fc42ad7dc08571aac918fd08bf04",
        ("answer1_body", "answer2_body", "question_body"),
        725,
    ),
    Pin(
        "auto-j",
        "pointwise",
        *CASCADED_EVAL,
        "533b8f53a2411e77f448c8a63054877ef269c7d29ca4555e7a752147599cf6ed",
        ("answer_body", "question_body"),
        389,
    ),
    Pin(
        "prometheus",
        "pointwise",
        *CASCADED_EVAL,
        "4dc38f386512b10def362b711886b2715e49a4dfacb99332512e2b6873ad42eb",
        ("answer_body", "question_body", "rubric"),
        826,
    ),
    Pin(
        "prometheus-2",
        "pairwise",
        *PROMETHEUS_EVAL,
        "ca920719db01d48a23abefa2fde5f1810e50f7bd551dfcddcf87b53dd68941a9",
        ("instruction", "response_A", "response_B", "rubric"),
        954,
    ),
    Pin(
        "prometheus-2",
        "pointwise",
        *PROMETHEUS_EVAL,
        "f4358c8f7953f324df3d70c86bc483d29eb8016567f1b1571cfbe6dee6722656",
        ("instruction", "response", "rubric"),
        738,
    ),
)


def pin_for(judge: str, mode: Task) -> Pin:
    """Find the pin of a judge's template. Raises ConfigError when there is none."""
    for pin in PINS:
        if (pin.judge, pin.mode) == (judge, mode):
            return pin
    raise ConfigError(f"there is no template for judge.format {judge}, task {mode}")


def pins_of(names: Sequence[str]) -> tuple[Pin, ...]:
    """Choose pins by judge (`judgelm`) or by judge and mode (`judgelm-pairwise`); none: all."""
    for name in names:
        if not any(name in (pin.judge, pin.name) for pin in PINS):
            known = ", ".join(dict.fromkeys(pin.judge for pin in PINS))
            raise ConfigError(f"no judge {name} has a template of its own: {known} do")
    return tuple(pin for pin in PINS if not names or pin.judge in names or pin.name in names)
