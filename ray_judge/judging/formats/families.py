"""Which judges there are: the fine-tuned families, and the way to a format from a configuration.

JudgeLM (arXiv 2310.17631) gives two scores in its first line, PandaLM (2306.05087) `1`, `2` or
`Tie`, and both explain behind it. Auto-J (2310.05470) ends its critique with a decision or a
rating, Prometheus (2310.08491) and Prometheus 2 (2405.01535) with `[RESULT]` and a verdict.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ray_judge.config import FORMAT_SCORES, CustomFormat, JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.formats.format import (
    BLANK,
    DEFAULT_RUBRIC,
    FirstLine,
    Format,
    Marked,
    Searched,
    Template,
)
from ray_judge.judging.formats.templates import PINS, pin_for, state, template
from ray_judge.records import OPTIONAL, REQUIRED, Example, Task

DEMO_TEMPLATE = "{instruction}\nA: {response_a}\nB: {response_b}\nBest: "
"""The tiny judge shipped with the package was trained on exactly this text."""
DEMO = Format(
    "pairwise",
    Template.split(DEMO_TEMPLATE, ("instruction", "response_a", "response_b")),
    FirstLine({"A": "A", "B": "B"}, "A or B", leads=("",)),
    chat=False,
    max_output_tokens=1,
)
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
LLAMA_13B = "meta-llama/Llama-2-13b-chat-hf"
SCORE_LINES = """
Score 1: it does nothing of it, or is wrong throughout.
Score 2: it does a little of it, with serious faults.
Score 3: it does the main part, with clear faults or gaps.
Score 4: it does nearly all of it, with small faults.
Score 5: it does all of it, without a fault."""
"""What Prometheus was trained to find behind a criterion, where it gives scores."""

# What follows Auto-J's decision may weigh both responses, but not decide again.
ANOTHER_DECISION = r"(?:\A|[.!?\n])\s*(response\s+\w+|tied?)\s*(?=[.!?\n]|\Z)"
ANOTHER_IS_BETTER = (
    r"\b(response\s+[12])\s+(?:is|was)\s+(?:\w+\s+){0,2}(?:better|preferred|superior|best)"
    r"(?=\s*(?:[.!?,;\n]|\Z|overall\b|because\b|since\b|as\b|than\b))"
)
RETRACTION = r"(?:\A|[.!?\n])\s*(?:no|wait|actually|correction|sorry|scratch\s+that|on\s+second)\b"


def _judgelm(mode: Task) -> FirstLine:
    verdicts, wanted = _scores("judgelm"), "a whole score from 1 to 10"
    if mode == "pairwise":
        pairs = [(int(a), int(b)) for a in verdicts for b in verdicts]
        verdicts = {f"{a} {b}": "tie" if a == b else "A" if a > b else "B" for a, b in pairs}
        wanted = "two whole scores from 1 to 10"
    # Its prompt ends with a colon; what follows depends on the tokenizer.
    return FirstLine(verdicts, wanted, leads=("", " ", "\n"))


def _pandalm(mode: Task) -> FirstLine:
    if mode == "pointwise":
        return FirstLine(_scores("pandalm"), "a whole score from 1 to 5")
    return FirstLine({"1": "A", "2": "B", "Tie": "tie"}, "1, 2 or Tie")


def _auto_j(mode: Task) -> Marked:
    if mode == "pointwise":
        like = r"rating\W{0,3}\s*\[\[|\[\[|\brating\s*:"
        return Marked(_scores("auto-j"), "Rating: [[", like, closing="]]")
    return Marked(
        {"Response 1": "A", "Response 2": "B", "Tie": "tie", "tie": "tie"},
        "So, the final decision is",
        r"final\s+decision\s+is:?",
        before=r"(?:\A|[.!?)\]\"”]|[^\s:]\s*\n)[\s*#]*\Z",
        goes_on=r"\s*\Z|[.!](?:\s|\Z)|[ \t]*\n|[,;:]?\s+(?:because|since|as|given|due\s+to)\s",
        takes_back=(ANOTHER_DECISION, ANOTHER_IS_BETTER, RETRACTION),
    )


def _prometheus(mode: Task) -> Marked:
    verdicts = {"A": "A", "B": "B"} if mode == "pairwise" else _scores("prometheus")
    return Marked(verdicts, "[RESULT]", r"\[\s*(?:result|score)\s*\]")


def _scores(family: str) -> dict[str, str]:
    low, high = FORMAT_SCORES[family]
    return {str(score): str(score) for score in range(low, high + 1)}


@dataclass(frozen=True, slots=True)
class Family:
    """One `judge.format` whose judges were tuned on a prompt of their own.

    `by_chat`: the template is a user's message, not the whole prompt.
    """

    answers: Callable[[Task], FirstLine | Marked]
    stop: tuple[str, ...]
    by_chat: bool = False


FAMILIES: Mapping[str, Family] = {
    "judgelm": Family(_judgelm, ("### Instruction:", "[Question]")),
    "pandalm": Family(_pandalm, ("### Instruction:",)),
    "auto-j": Family(_auto_j, ("[INST]",)),
    "prometheus": Family(_prometheus, ("[INST]", "###Task Description")),
    "prometheus-2": Family(_prometheus, ("[INST]", "###Task Description"), by_chat=True),
}
BASES: dict[str, dict[str, str]] = {
    "judgelm": {f"BAAI/JudgeLM-{size}B-v1.0": f"lmsys/vicuna-{size}b-v1.3" for size in (7, 13, 33)},
    "pandalm": {"WeOpenML/PandaLM-7B-v1": "huggyllama/llama-7b"},
    "auto-j": {
        "GAIR/autoj-13b": LLAMA_13B,
        "GAIR/autoj-13b-GPTQ-4bits": LLAMA_13B,
        "GAIR/autoj-bilingual-6b": "01-ai/Yi-6B-Chat",
    },
    "prometheus": {
        f"{owner}/prometheus-{size}b-v1.0": f"meta-llama/Llama-2-{size}b-chat-hf"
        for owner in ("prometheus-eval", "kaist-ai")
        for size in (7, 13)
    },
    "prometheus-2": {
        "prometheus-eval/prometheus-7b-v2.0": "mistralai/Mistral-7B-Instruct-v0.2",
        "prometheus-eval/prometheus-8x7b-v2.0": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    },
}
"""Model → what its authors tuned it from (`calibrated_entropy` compares the two)."""
MODES: Mapping[str, tuple[Task, ...]] = {
    **{name: tuple(pin.mode for pin in PINS if pin.judge == name) for name in FAMILIES},
    **dict.fromkeys(("generic", "custom"), ("pairwise", "pointwise")),
    "demo": ("pairwise",),
}


def format_for(judge: JudgeConfig, task: Task) -> Format:
    """Make the format that the configuration names, with its template filled in (ConfigError).

    For a pairwise task it is pointwise where the family cannot compare, or `by_scores` asks for
    it: then both responses are scored.
    """
    modes = MODES[judge.format] if judge.custom is None else (judge.custom.task(),)
    if "pointwise" not in modes and (task == "pointwise" or judge.by_scores):
        key = "by_scores" if task == "pairwise" else "task: pointwise"
        raise ConfigError(f"judge.format {judge.format} gives no scores here: {key} needs them")
    mode: Task = task if task in modes and not judge.by_scores else "pointwise"
    made = DEMO
    if judge.custom is not None:
        made = _custom(judge, judge.custom)
    elif judge.format != "demo":
        made = (_generic if judge.format == "generic" else _tuned)(judge, mode)
    return replace(made, opening="") if judge.decode == "full" else made


def describe(example: Example, rubric: str | None) -> str:
    """Lay out an example under headings, in the order in which a reader needs them.

    `rubric`: where the example has none of its own; None leaves the criteria out then.
    """
    parts = [("Instruction", example.instruction)]
    if example.input:
        parts.append(("Input", example.input))
    if example.reference:
        parts.append(("Reference answer", example.reference))
    if criteria := example.rubric or rubric:
        parts.append(("Criteria", criteria))
    names = ("Answer A", "Answer B") if len(example.responses) == 2 else ("Answer",)
    parts += zip(names, example.responses, strict=True)
    return "\n\n".join(f"[{heading}]\n{text}" for heading, text in parts)


@dataclass(frozen=True)
class Headings:
    """The example under headings, and behind it what is asked."""

    ask: str

    def fill(self, example: Example, rubric: str) -> str:
        return f"{describe(example, rubric)}\n\n{self.ask}"


def _generic(judge: JudgeConfig, task: Task) -> Format:
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


def _tuned(judge: JudgeConfig, mode: Task) -> Format:
    family = FAMILIES[judge.format]
    if judge.chat and not family.by_chat:
        asked = f"judge.format {judge.format} is asked with the whole prompt that it was tuned on"
        raise ConfigError(f"{asked}: judge.chat cannot be true")
    pin = pin_for(judge.format, mode)
    answers = family.answers(mode)
    lead = "" if family.by_chat else " "  # what stands between the prompt and a forced marker
    opening = f"{lead}{answers.marker}" if isinstance(answers, Marked) else ""
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


def _custom(judge: JudgeConfig, custom: CustomFormat) -> Format:
    task = custom.task()
    meant = {text: name for name, texts in custom.choices.items() for text in texts}
    return Format(
        task,
        Template.split(custom.template, (*REQUIRED[task], *OPTIONAL)),
        Searched(meant, custom.verdict, leads=("",)),
        system=custom.system,
        opening=custom.opening,
        rubric=judge.rubric or DEFAULT_RUBRIC,
        chat=judge.chat,
        stop=custom.stop,
        max_output_tokens=custom.max_output_tokens,
    )


def base_of(judge: JudgeConfig) -> str:
    """Name the model that a judge was tuned from: as configured, else as its authors say.

    An adapter was tuned on the model that it is put on. Raises ConfigError where nobody says.
    """
    known = ChainMap(*BASES.values()).get(str(judge.model))
    if base := judge.base_model or (judge.adapter and judge.model) or known:
        return base
    raise ConfigError(
        "confidence: calibrated_entropy needs judge.base_model: the model that "
        f"{judge.model} was tuned from"
    )


def list_judges() -> list[str]:
    """Describe every family: modes, score range, models with their bases, templates."""
    lines: list[str] = []
    for name, modes in MODES.items():
        lines.append(name)
        bases = BASES.get(name, {}).items()
        lines += [f"  model      {model}, tuned from {base}" for model, base in bases]
        for mode in modes:
            what = "a pair" if mode == "pairwise" else "scores as configured"
            if mode == "pointwise" and name in FORMAT_SCORES:
                what = "scores from {} to {}".format(*FORMAT_SCORES[name])
            if name in FAMILIES:
                pin = pin_for(name, mode)
                at = f"{pin.repository}@{pin.commit[:12]} {pin.path}"
                what += f"; template {pin.literal_sha256[:12]} of {at}: {state(pin)}"
            lines.append(f"  {mode:10} {what}")
    return lines
