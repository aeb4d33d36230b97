"""Which judges there are: the fine-tuned families, and the way to a format from a configuration.

JudgeLM (Zhu et al., arXiv 2310.17631) gives two scores in its first line, PandaLM (Wang et al.,
arXiv 2306.05087) `1`, `2` or `Tie`, and both explain behind it. Auto-J (Li et al., arXiv
2310.05470) ends its critique with a decision or a rating, Prometheus (Kim et al., arXiv
2310.08491) and Prometheus 2 (arXiv 2405.01535) with `[RESULT]` and a verdict by the user's rubric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ray_judge.config import FORMAT_SCORES, JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.formats import custom, demo, generic
from ray_judge.judging.formats.first_line import FirstLine
from ray_judge.judging.formats.format import DEFAULT_RUBRIC, Format, Template
from ray_judge.judging.formats.marked import Marked
from ray_judge.judging.formats.templates import PINS, pin_for, state, template
from ray_judge.records import Task

LLAMA_7B, LLAMA_13B = "meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-13b-chat-hf"
SCORE_LINES = """
Score 1: it does nothing of it, or is wrong throughout.
Score 2: it does a little of it, with serious faults.
Score 3: it does the main part, with clear faults or gaps.
Score 4: it does nearly all of it, with small faults.
Score 5: it does all of it, without a fault."""
"""What Prometheus was trained to find behind a criterion, where it gives scores."""

# What follows Auto-J's decision may weigh both responses, but not decide again: not name the
# other one as the better, nor take the decision back.
ANOTHER_DECISION = r"(?:\A|[.!?\n])\s*(response\s+\w+|tied?)\s*(?=[.!?\n]|\Z)"
ANOTHER_IS_BETTER = (
    r"\b(response\s+[12])\s+(?:is|was)\s+(?:\w+\s+){0,2}(?:better|preferred|superior|best)"
    r"(?=\s*(?:[.!?,;\n]|\Z|overall\b|because\b|since\b|as\b|than\b))"
)
RETRACTION = r"(?:\A|[.!?\n])\s*(?:no|wait|actually|correction|sorry|scratch\s+that|on\s+second)\b"


def _judgelm(mode: Task) -> FirstLine:
    # Its prompt ends with a colon; what follows depends on the tokenizer.
    leads = ("", " ", "\n")
    scores = _scores("judgelm")
    if mode == "pointwise":
        return FirstLine(scores, "a whole score from 1 to 10", leads)
    verdicts = {
        f"{a} {b}": "tie" if a == b else "A" if int(a) > int(b) else "B"
        for a in scores
        for b in scores
    }
    return FirstLine(verdicts, "two whole scores from 1 to 10", leads)


def _pandalm(mode: Task) -> FirstLine:
    if mode == "pointwise":
        return FirstLine(_scores("pandalm"), "a whole score from 1 to 5")
    return FirstLine({"1": "A", "2": "B", "Tie": "tie"}, "1, 2 or Tie")


def _auto_j(mode: Task) -> Marked:
    if mode == "pointwise":
        like = r"rating\W{0,3}\s*\[\[|\[\[|\brating\s*:"
        return Marked("Rating: [[", like, _scores("auto-j"), closing="]]")
    return Marked(
        "So, the final decision is",
        r"final\s+decision\s+is:?",
        {"Response 1": "A", "Response 2": "B", "Tie": "tie", "tie": "tie"},
        before=r"(?:\A|[.!?)\]\"”]|[^\s:]\s*\n)[\s*#]*\Z",
        goes_on=r"\s*\Z|[.!](?:\s|\Z)|[ \t]*\n|[,;:]?\s+(?:because|since|as|given|due\s+to)\s",
        takes_back=(ANOTHER_DECISION, ANOTHER_IS_BETTER, RETRACTION),
    )


def _prometheus(mode: Task) -> Marked:
    verdicts = {"A": "A", "B": "B"} if mode == "pairwise" else _scores("prometheus")
    return Marked("[RESULT]", r"\[\s*(?:result|score)\s*\]", verdicts)


def _scores(family: str) -> dict[str, str]:
    low, high = FORMAT_SCORES[family]
    return {str(score): str(score) for score in range(low, high + 1)}


@dataclass(frozen=True, slots=True)
class Family:
    """One `judge.format` whose judges were tuned on a prompt of their own."""

    answers: Callable[[Task], FirstLine | Marked]
    stop: tuple[str, ...]
    bases: Mapping[str, str]
    """Model → what its authors tuned it from (`calibrated_entropy` compares the two)."""
    lead: str = " "
    """What stands between the prompt and a marker that is forced upon the model."""
    by_chat: bool = False
    """The template is a user's message, not the whole prompt."""


FAMILIES: Mapping[str, Family] = {
    "judgelm": Family(
        _judgelm,
        stop=("### Instruction:", "[Question]"),
        bases={
            "BAAI/JudgeLM-7B-v1.0": "lmsys/vicuna-7b-v1.3",
            "BAAI/JudgeLM-13B-v1.0": "lmsys/vicuna-13b-v1.3",
            "BAAI/JudgeLM-33B-v1.0": "lmsys/vicuna-33b-v1.3",
        },
    ),
    "pandalm": Family(
        _pandalm,
        stop=("### Instruction:",),
        bases={"WeOpenML/PandaLM-7B-v1": "huggyllama/llama-7b"},
    ),
    "auto-j": Family(
        _auto_j,
        stop=("[INST]",),
        bases={
            "GAIR/autoj-13b": LLAMA_13B,
            "GAIR/autoj-13b-GPTQ-4bits": LLAMA_13B,
            "GAIR/autoj-bilingual-6b": "01-ai/Yi-6B-Chat",
        },
    ),
    "prometheus": Family(
        _prometheus,
        stop=("[INST]", "###Task Description"),
        bases={
            "prometheus-eval/prometheus-7b-v1.0": LLAMA_7B,
            "prometheus-eval/prometheus-13b-v1.0": LLAMA_13B,
            "kaist-ai/prometheus-7b-v1.0": LLAMA_7B,
            "kaist-ai/prometheus-13b-v1.0": LLAMA_13B,
        },
    ),
    "prometheus-2": Family(
        _prometheus,
        stop=("[INST]", "###Task Description"),
        bases={
            "prometheus-eval/prometheus-7b-v2.0": "mistralai/Mistral-7B-Instruct-v0.2",
            "prometheus-eval/prometheus-8x7b-v2.0": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        },
        lead="",
        by_chat=True,
    ),
}
MODES: Mapping[str, tuple[Task, ...]] = {
    **{name: tuple(pin.mode for pin in PINS if pin.judge == name) for name in FAMILIES},
    "generic": ("pairwise", "pointwise"),
    "custom": ("pairwise", "pointwise"),
    "demo": ("pairwise",),
}


def format_for(judge: JudgeConfig, task: Task) -> Format:
    """Make the format that the configuration names, with its template filled in.

    For a pairwise task it is pointwise where the family cannot compare, or `by_scores` asks for
    it: then both responses are scored. Raises ConfigError for what does not fit together, and
    where a template is neither at hand nor to be had.
    """
    modes = MODES[judge.format] if judge.custom is None else (judge.custom.task(),)
    if "pointwise" not in modes and (task == "pointwise" or judge.by_scores):
        key = "by_scores" if task == "pairwise" else "task: pointwise"
        raise ConfigError(f"judge.format {judge.format} gives no scores here: {key} needs them")
    mode: Task = task if task in modes and not judge.by_scores else "pointwise"
    if judge.custom is not None:
        made = custom.make(judge, judge.custom)
    elif judge.format == "demo":
        made = demo.FORMAT
    elif judge.format == "generic":
        made = generic.make(judge, mode)
    else:
        made = _tuned(judge, mode)
    return replace(made, opening="") if judge.decode == "full" else made


def _tuned(judge: JudgeConfig, mode: Task) -> Format:
    family = FAMILIES[judge.format]
    if judge.chat and not family.by_chat:
        raise ConfigError(
            f"judge.format {judge.format} is asked with the whole prompt that it was tuned on: "
            "judge.chat cannot be true"
        )
    pin = pin_for(judge.format, mode)
    answers = family.answers(mode)
    opening = f"{family.lead}{answers.marker}" if isinstance(answers, Marked) else ""
    criteria = f"[{DEFAULT_RUBRIC}]" + (SCORE_LINES if mode == "pointwise" else "")
    return Format(
        mode,
        Template.split(template(pin, judge.templates), pin.placeholders),
        answers,
        opening=opening,
        rubric=judge.rubric or criteria,
        chat=judge.chat if family.by_chat else False,
        stop=family.stop,
        max_output_tokens=1024 if opening else 512,
    )


def base_model_of(judge: JudgeConfig) -> str | None:
    """Name the model that a judge was tuned from: as configured, else as its authors say.

    An adapter was tuned on the very model that it is put on. Null: nobody says.
    """
    if judge.base_model or judge.adapter:
        return judge.base_model or judge.model
    known = {model: base for family in FAMILIES.values() for model, base in family.bases.items()}
    return known.get(judge.model or "")


def list_judges() -> list[str]:
    """Describe every family: modes, score range, models with their bases, templates."""
    lines: list[str] = []
    for name, modes in MODES.items():
        bases = FAMILIES[name].bases if name in FAMILIES else {}
        lines.append(name)
        lines += [f"  model      {model}, tuned from {base}" for model, base in bases.items()]
        lines += [f"  {mode:10} {_describe(name, mode)}" for mode in modes]
    return lines


def _describe(name: str, mode: Task) -> str:
    what = "a pair" if mode == "pairwise" else "scores as configured"
    if mode == "pointwise" and name in FORMAT_SCORES:
        what = "scores from {} to {}".format(*FORMAT_SCORES[name])
    for pin in PINS:
        if (pin.judge, pin.mode) == (name, mode):
            at = f"{pin.repository}@{pin.commit[:12]} {pin.path}"
            return f"{what}; template {pin.literal_sha256[:12]} of {at}: {state(pin)}"
    return what
