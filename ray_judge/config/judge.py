"""`judge`: the local judge, format + model + engine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ray_judge.config.tree import Address, Positive, RouteConfig, Tree, Variable
from ray_judge.records import REQUIRED, Task

FORMAT_SCORES: Mapping[str, tuple[int, int]] = {
    "judgelm": (1, 10),
    "pandalm": (1, 5),
    "auto-j": (1, 10),
    "prometheus": (1, 5),
    "prometheus-2": (1, 5),
}
"""Lowest and highest score that each judge was trained to give (their templates say so)."""
NOT_OF_REWARDS = (
    "adapter", "by_scores", "chat", "decode", "max_output_tokens", "overlong", "prob_columns",
    "swap", "templates", "thinking",
)  # fmt: skip
"""Keys of judges that write, which `format: reward` goes without."""
OWN_OPTIONS = frozenset({"add_generation_prompt", "chat_template", "conversation", "tokenize"})
"""Of a chat template's rendering: what ray_judge sets itself."""
Choice = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
"""YAML reads an unquoted score as a number."""


class CustomFormat(Tree):
    """`format: custom`: how the user's own judge is asked and answers (docs/custom-judge.md)."""

    template: str
    """The prompt, with `{instruction}`, `{response_a}` ... where the row's texts go."""
    system: str | None = None
    choices: dict[Choice, tuple[str, ...]]
    """Alternative (`A`, `B`, `tie`; or a score) → texts that mean it, leading space included."""
    opening: str = ""
    """decode: verdict: the answer up to where the verdict sits."""
    verdict: str | None = None
    """decode: full: a regular expression whose group `verdict` matches one of the choices."""
    stop: tuple[str, ...] = ()
    max_output_tokens: Positive = 512

    def task(self) -> Task:
        return "pairwise" if "A" in self.choices else "pointwise"

    @model_validator(mode="after")
    def _check_choices(self) -> CustomFormat:
        names = set(self.choices)
        scores = len(names) > 1 and all(re.fullmatch("0|[1-9][0-9]{0,2}", n) for n in names)
        if not ({"A", "B"} <= names <= {"A", "B", "tie"}) and not scores:
            raise ValueError(
                "choices are A and B, with or without tie, to compare a pair; or whole scores, "
                "such as 1 to 5, to score one response"
            )
        known: dict[str, str] = {}
        for name, spellings in self.choices.items():
            texts = [text.strip() for text in spellings]
            if not texts or not all(texts):
                raise ValueError(f"choice {name} needs texts that are not blank")
            for text in texts:
                if (other := known.setdefault(text, name)) != name:
                    raise ValueError(f"choices {other} and {name} have the same text {text!r}")
        return self

    @model_validator(mode="after")
    def _check_verdict_and_template(self) -> CustomFormat:
        if self.verdict is not None:
            try:
                groups = re.compile(self.verdict).groupindex
            except re.error as error:
                raise ValueError(f"verdict is not a regular expression: {error}") from None
            if "verdict" not in groups:
                raise ValueError("verdict needs a group of this name: (?P<verdict>...)")
        task, places = self.task(), re.findall(r"(\{\w+\})", self.template)
        needed = [f"{{{name}}}" for name in (*REQUIRED[task][1:], "instruction")]
        if missing := [place for place in needed if place not in places]:
            raise ValueError(f"template has no place for {', '.join(missing)}")
        for place in places:
            if place in ("{response}", "{response_a}", "{response_b}") and place not in needed:
                raise ValueError(f"template has {place}, but its choices are a {task} judge's")
        return self


class HttpConfig(Tree):
    """`engine: http`: a server of OpenAI's API that returns log-probabilities."""

    base_url: Address
    api: Literal["completions", "chat"] = "completions"
    """completions: the prompt is one text. chat: messages, in the server's template."""
    api_key_env: Variable | None = None
    top_logprobs: Annotated[int, Field(ge=1, le=1000)] = 20
    """How many of the likeliest tokens the server shows."""
    concurrency: Positive = 64
    timeout_s: float = Field(default=120, gt=0)


class JudgeConfig(Tree):
    """The local judge: format + model + engine."""

    format: Literal[
        "generic",
        "demo",
        "judgelm",
        "pandalm",
        "auto-j",
        "prometheus",
        "prometheus-2",
        "custom",
        "reward",
    ] = "generic"
    engine: Literal["vllm", "transformers", "http", "columns"] = "vllm"
    model: str | None = None
    revision: str | None = None
    base_model: str | None = None
    """calibrated_entropy: what the judge was tuned from; null: what its authors name."""
    base_revision: str | None = None
    adapter: str | None = None
    """A LoRA adapter (path or hub name) on `model`."""
    dtype: str = "auto"
    quantization: str | None = None
    decode: Literal["verdict", "full"] = "verdict"
    """verdict: stop as soon as the verdict is known; full: the critique is written, too."""
    chat: bool | None = None
    """Use the tokenizer's chat template; null: when it has one."""
    thinking: bool | None = None
    """`off` and `on` (YAML's truth values): whether the model reasons before it answers, by the
    chat template's own switch; null: as the template does by itself."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template as they are."""
    samples: Positive = 1
    """confidence: votes: how many answers each prompt gets."""
    temperature: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """decode: full: of the answers, null: 0. format: reward: what the margin is divided by, null:
    as the calibration says, else 1."""
    rewards: tuple[float, float] | None = None
    """format: reward, one response: the rewards that mean the lowest and the highest score."""
    rubric: str | None = None
    """Criteria for the prompts that have a place for them."""
    ties: bool = True
    """Whether `generic` offers a tie."""
    scores: tuple[int, int] | None = None
    """Lowest and highest score of a pointwise `generic` or `custom` judge; null: [1, 5]."""
    score: Literal["mode", "mean"] = "mode"
    """Which score is the verdict: the likeliest, or the expected one."""
    by_scores: bool = False
    """Judge a pair by scoring both responses, with a judge that can do both."""
    swap: bool = False
    overlong: Literal["error", "cut"] = "error"
    """A prompt beyond the context: that row's error, or the longer response cut in its middle."""
    max_output_tokens: Positive | None = None
    """decode: full: of one answer; null: what the format needs, and 4,096 for thinking: on."""
    templates: str | None = None
    """A file or folder with the judge's own template; null: the cache, else its repository."""
    custom: CustomFormat | None = None
    http: HttpConfig | None = None
    replicas: Positive = 1
    gpus_per_replica: float | None = Field(default=None, ge=0)
    """Null: as many as the engine needs when the cluster has GPUs, else none."""
    cpus_per_replica: float | None = Field(default=None, gt=0)
    """Null: one with a GPU, else a fraction that leaves the machine room to read and write."""
    share_gpu: bool | None = None
    """calibrated_entropy: judge and base model on one GPU; null: when their weights fit."""
    confidence: Literal["probability", "margin", "entropy", "calibrated_entropy", "votes"] = (
        "probability"
    )
    min_mass: float = Field(default=0.5, ge=0, le=1)
    """Below this share of probability on all alternatives a row counts as unconfident."""
    max_model_len: Positive | None = None
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to vLLM's engine as they are (`gpu_memory_utilization`, `tensor_parallel_size`)."""
    prob_columns: dict[Literal["A", "B", "tie"], str] | None = None
    reward_columns: dict[Literal["A", "B"], str] | None = None
    """engine: columns, format: reward: the rewards of both responses."""
    route: RouteConfig | None = None
    """In a list of `judges`: which rows go on to the next one; null: the run's `route`."""

    def score_range(self) -> tuple[int, int]:
        """Lowest and highest score that this judge gives."""
        return self.scores or FORMAT_SCORES.get(self.format, (1, 5))

    def columns(self) -> dict[str, str]:
        """engine: columns: alternative → the input column with its probability or reward."""
        given = self.reward_columns if self.format == "reward" else self.prob_columns
        return {str(name): column for name, column in (given or {}).items()}

    @model_validator(mode="before")
    @classmethod
    def _is_as_sure_as_its_margin(cls, given: Any) -> Any:
        reward = isinstance(given, dict) and given.get("format") == "reward"
        return {"confidence": "margin", **given} if reward else given

    @model_validator(mode="after")
    def _fits_together(self) -> JudgeConfig:
        for wrong, said in chain(self._conflicts(), self._conflicts_of_rewards()):
            if wrong:
                raise ValueError(said)
        if self.custom is not None:
            self._check_custom(self.custom)
        return self

    def _conflicts(self) -> Iterator[tuple[Any, str]]:
        """What does not go together: whether it is so, and what is said then."""
        columns, full, votes = (
            self.engine == "columns", self.decode == "full", self.confidence == "votes"
        )  # fmt: skip
        low, high = self.scores or (1, 5)
        yield not 0 <= low < high <= 100, "scores are two whole numbers, the lower first: [1, 5]"
        low, high = FORMAT_SCORES.get(self.format, (low, high))
        told = f"format: {self.format} gives scores from {low} to {high}"
        yield self.scores and self.format in FORMAT_SCORES, told
        given = (self.format == "custom", self.custom is not None)
        yield given[0] != given[1], "format: custom goes with the key custom (docs/custom-judge.md)"
        given = (self.engine == "http", self.http is not None)
        yield given[0] != given[1], "engine: http goes with the key http: {base_url: ...}"
        said = f"confidence: {self.confidence} needs the whole vocabulary's probabilities: "
        lacks = "entropy" in self.confidence and self.engine not in ("vllm", "transformers")
        yield lacks, f"{said}engine: vllm or transformers"
        based = self.confidence == "calibrated_entropy"
        yield self.base_model and not based, "base_model goes with confidence: calibrated_entropy"
        said = "format: demo answers with its verdict alone: decode: verdict"
        yield full and self.format == "demo", said
        name = "reward_columns" if self.format == "reward" else "prob_columns"
        lacks = columns and not {"A", "B"} <= set(self.columns())
        yield lacks, f"engine: columns needs {name}: {{A: ..., B: ...}}"
        yield columns and self.swap, "engine: columns cannot swap: its judge has already run"
        yield self.prob_columns and not columns, "prob_columns goes with engine: columns"
        names = self.columns().values()
        yield len(set(names)) < len(names), f"{name} names one column twice"
        yield not columns and not self.model, f"engine: {self.engine} needs a model"
        said = "thinking: on needs decode: full: the verdict is behind the reasoning"
        yield self.thinking and not full, said
        said = "thinking and chat_template_kwargs are for a judge with a chat template"
        plain = self.chat is False or columns
        yield plain and (self.thinking is not None or self.chat_template_kwargs), said
        taken = sorted(OWN_OPTIONS.intersection(self.chat_template_kwargs))
        yield taken, f"chat_template_kwargs: ray_judge itself says {', '.join(taken)}"
        said = "confidence: votes counts answers: it needs decode: full, samples of 2 or more, and "
        enough = full and not columns and self.samples > 1 and self.temperature
        yield votes and not enough, f"{said}a temperature above 0"
        yield self.samples > 1 and not votes, "samples goes with confidence: votes"

    def _conflicts_of_rewards(self) -> Iterator[tuple[Any, str]]:
        if self.format != "reward":
            for key in ("rewards", "reward_columns"):
                yield getattr(self, key), f"{key} goes with format: reward"
            lost = self.temperature is not None and self.decode == "verdict"
            yield lost, "temperature goes with decode: full or format: reward"
            return
        fields = type(self).model_fields
        for key in NOT_OF_REWARDS:
            said = f"format: reward goes without {key}: its model writes nothing"
            yield getattr(self, key) != fields[key].default, said
        yield self.engine == "http", "format: reward needs engine: vllm, transformers or columns"
        cold = self.confidence != "margin" or self.temperature == 0
        yield cold, "format: reward goes with confidence: margin, and a temperature above 0"
        low, high = self.rewards or (0, 1)
        yield low >= high, "rewards are two numbers, the lower first, such as [-4.5, 8.0]"

    def _check_custom(self, custom: CustomFormat) -> None:
        if self.decode == "full" and custom.verdict is None:
            raise ValueError("decode: full needs custom.verdict, which finds it in the answer")
        low, high = self.score_range()
        if custom.task() == "pairwise":
            if self.scores:
                raise ValueError("scores goes with custom.choices that are scores")
        elif sorted(custom.choices, key=int) != [str(score) for score in range(low, high + 1)]:
            raise ValueError(
                f"custom.choices are not the scores from {low} to {high}: set scores to their "
                "lowest and highest, and name each one between"
            )
