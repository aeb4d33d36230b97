"""One YAML file is a whole run: it becomes one frozen tree, and its digest is stamped on the run.

Unknown keys are errors that name the nearest known key. Money is `Decimal`; rates are per
minute; times are seconds. `load` is the only way in: file, then `--set key=value` overrides.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_judge.errors import ConfigError
from ray_judge.records import Task

Positive = Annotated[int, Field(gt=0)]
Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
COLUMN_ROLES = (
    "instruction",
    "response_a",
    "response_b",
    "response",
    "id",
    "input",
    "reference",
    "rubric",
    "label",
)

FLEX_TIMEOUT_S = 900.0
"""A flex answer may take this long (developers.openai.com, "Flex processing", 2026-11)."""

OPERATIONAL = (
    "output",
    "judge.replicas",
    "judge.gpus_per_replica",
    "judge.cpus_per_replica",
    "judge.share_gpu",
    "judge.engine_options",
    "judge.templates",
    "judge.http.base_url",
    "judge.http.api_key_env",
    "judge.http.concurrency",
    "judge.http.timeout_s",
    "strong.base_url",
    "strong.api_key_env",
    "strong.concurrency",
    "strong.requests_per_minute",
    "strong.tokens_per_minute",
    "strong.timeout_s",
    "strong.max_cost_usd",
    "strong.max_cost_usd_per_month",
    "strong.give_up_after_s",
    "strong.price",
    "strong.batch",
)
"""Keys that say how fast, where and for how much, but cannot change a verdict: they may differ
when a run is continued (`strong.max_cost_usd` only upwards)."""


class Tree(BaseModel):
    """A frozen node of the configuration; extra keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Share = Annotated[Decimal, Field(ge=0, le=1, allow_inf_nan=False)]


class RouteConfig(Tree):
    """Which rows the strong judge is asked about."""

    policy: Literal["threshold", "fraction", "budget", "guarantee"] = "fraction"
    fraction: Share | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    budget_usd: Usd | None = None
    """policy: budget: dollars that are spent at most, on the rows where they buy most."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """policy: guarantee: accepted verdicts agree in at least 1 − alpha ..."""
    delta: float | None = Field(default=None, gt=0, lt=1)
    """... with probability 1 − delta. Null: as the calibration says; else they must agree."""
    calibration: str | None = None
    """Path or URI of a calibration.json. `guarantee` needs it, `budget` ranks by it, and every
    policy reports how far tonight's confidences have moved from it."""
    audit: Share = Decimal(0)
    """Share of the accepted rows that the strong judge is asked about all the same."""
    audit_by: str | None = None
    """An input column: the audit's agreement is also told for each of its values."""

    @model_validator(mode="after")
    def _own_key(self) -> RouteConfig:
        keys = {"threshold": "threshold", "fraction": "fraction", "budget": "budget_usd"}
        for policy, key in keys.items():
            given = getattr(self, key) is not None
            if given and policy != self.policy:
                raise ValueError(f"{key} goes with policy: {policy}, not {self.policy}")
            if not given and policy == self.policy:
                raise ValueError(f"policy: {policy} needs the key {key}")
        if self.policy == "guarantee" and self.calibration is None:
            raise ValueError(
                "policy: guarantee needs the key calibration (ray-judge calibrate makes the file)"
            )
        if self.policy != "guarantee" and (self.alpha is not None or self.delta is not None):
            raise ValueError(f"alpha and delta go with policy: guarantee, not {self.policy}")
        if self.audit_by is not None and not self.audit:
            raise ValueError("audit_by goes with audit: a share above 0")
        return self


FORMAT_SCORES: Mapping[str, tuple[int, int]] = {
    "judgelm": (1, 10),
    "pandalm": (1, 5),
    "auto-j": (1, 10),
    "prometheus": (1, 5),
    "prometheus-2": (1, 5),
}
"""Lowest and highest score that each judge was trained to give (their templates say so)."""
CONFIDENCES = Literal["probability", "margin", "entropy", "calibrated_entropy"]


CUSTOM_RESPONSES: Mapping[Task, tuple[str, ...]] = {
    "pairwise": ("response_a", "response_b"),
    "pointwise": ("response",),
}


class CustomFormat(Tree):
    """`format: custom`: how the user's own judge is asked and answers (docs/custom-judge.md)."""

    template: str
    """The prompt. `{instruction}`, `{response_a}`, `{response_b}` (or `{response}`), `{input}`,
    `{reference}` and `{rubric}` stand for the row's texts; other braces are themselves."""
    system: str | None = None
    """The system message, for models with a chat template."""
    choices: dict[str, tuple[str, ...]]
    """Alternative (`A`, `B`, `tie`; or a score) → the texts that mean it, as the judge writes
    them where its verdict sits, leading space included."""
    opening: str = ""
    """decode: verdict: the beginning of the answer, up to where the verdict sits."""
    verdict: str | None = None
    """decode: full: a regular expression that finds the verdict in a whole answer (`^` and `$` are
    at every line). Its group `verdict` matches one of the choices, white space aside."""
    stop: tuple[str, ...] = ()
    max_output_tokens: Positive = 512

    def task(self) -> Task:
        """Say what it judges: choices `A` and `B` compare a pair, numbers score one response."""
        return "pairwise" if "A" in self.choices else "pointwise"

    def placeholders(self, task: Task) -> tuple[str, ...]:
        """Name what its template may stand for; the responses and the instruction it must."""
        return (*CUSTOM_RESPONSES[task], "instruction", "input", "reference", "rubric")

    @field_validator("choices", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        """YAML reads an unquoted score as a number."""
        if not isinstance(value, dict):
            return value
        return {str(name) if type(name) is int else name: texts for name, texts in value.items()}

    @field_validator("choices")
    @classmethod
    def _plain_choices(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        names = set(value)
        if not ({"A", "B"} <= names <= {"A", "B", "tie"}) and not (
            len(names) > 1 and all(re.fullmatch("0|[1-9][0-9]{0,2}", name) for name in names)
        ):
            raise ValueError(
                "choices are A and B, with or without tie, to compare a pair; or whole scores, "
                "such as 1 to 5, to score one response"
            )
        texts: dict[str, str] = {}
        for name, spellings in value.items():
            if not spellings or not all(text.strip() for text in spellings):
                raise ValueError(f"choice {name} needs texts that are not blank")
            for text in spellings:
                if texts.setdefault(text.strip(), name) != name:
                    raise ValueError(
                        f"choices {texts[text.strip()]} and {name} have the same text "
                        f"{text.strip()!r}"
                    )
        return value

    @field_validator("verdict")
    @classmethod
    def _finds_a_verdict(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groupindex
            except re.error as error:
                raise ValueError(f"verdict is not a regular expression: {error}") from None
            if "verdict" not in groups:
                raise ValueError("verdict needs a group of this name: (?P<verdict>...)")
        return value

    @model_validator(mode="after")
    def _asks_about_all(self) -> CustomFormat:
        task = self.task()
        other = CUSTOM_RESPONSES["pointwise" if task == "pairwise" else "pairwise"]
        needed = (*CUSTOM_RESPONSES[task], "instruction")
        missing = [name for name in needed if f"{{{name}}}" not in self.template]
        if missing:
            names = ", ".join(f"{{{name}}}" for name in missing)
            raise ValueError(f"template has no place for {names}")
        foreign = [name for name in other if f"{{{name}}}" in self.template]
        if foreign:
            raise ValueError(
                f"template has {{{foreign[0]}}}, but its choices are those of a {task} judge"
            )
        return self


class HttpConfig(Tree):
    """`engine: http`: a server of OpenAI's API that returns log-probabilities."""

    base_url: str
    api: Literal["completions", "chat"] = "completions"
    """completions: the prompt is sent as one text. chat: as messages, the server's template."""
    api_key_env: str | None = None
    top_logprobs: Annotated[int, Field(ge=1, le=1000)] = 20
    """How many of the likeliest tokens the server shows; what is not among them is bounded."""
    concurrency: Positive = 64
    timeout_s: float = Field(default=120, gt=0)


class JudgeConfig(Tree):
    """The local judge: format + model + engine."""

    format: Literal[
        "generic", "demo", "judgelm", "pandalm", "auto-j", "prometheus", "prometheus-2", "custom"
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
    """Use the tokenizer's chat template; null means: when it has one."""
    rubric: str | None = None
    """The user's own criteria, put into the prompts that have a place for them."""
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
    """decode: full: the most tokens of one answer; null: what the format needs."""
    templates: str | None = None
    """A file or folder in which the judge's own template is found, for machines without a
    network; null: the cache, else its repository."""
    custom: CustomFormat | None = None
    http: HttpConfig | None = None
    replicas: Positive = 1
    gpus_per_replica: float | None = Field(default=None, ge=0)
    """Null: as many as the engine needs when the cluster has GPUs, else none."""
    cpus_per_replica: float | None = Field(default=None, gt=0)
    """Null: one with a GPU, else a fraction that leaves the machine room to read and write."""
    share_gpu: bool | None = None
    """calibrated_entropy: judge and base model on one GPU; null: when their weights fit."""
    confidence: CONFIDENCES = "probability"
    min_mass: float = Field(default=0.5, ge=0, le=1)
    """Below this share of probability on all alternatives a row counts as unconfident."""
    max_model_len: Positive | None = None
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to vLLM's engine as they are (`gpu_memory_utilization`, `tensor_parallel_size`)."""
    prob_columns: dict[Literal["A", "B", "tie"], str] | None = None
    route: RouteConfig | None = None
    """In a list of `judges`: which rows go on to the next one; null: the run's `route`."""

    @field_validator("scores")
    @classmethod
    def _rising(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 100:
            raise ValueError("scores are two whole numbers, the lower first, such as [1, 5]")
        return value

    def score_range(self) -> tuple[int, int]:
        """Lowest and highest score that this judge gives."""
        return self.scores or FORMAT_SCORES.get(self.format, (1, 5))

    @model_validator(mode="after")
    def _whole(self) -> JudgeConfig:
        if self.scores and self.format in FORMAT_SCORES:
            low, high = FORMAT_SCORES[self.format]
            raise ValueError(f"format: {self.format} gives scores from {low} to {high}")
        if (self.format == "custom") != (self.custom is not None):
            raise ValueError("format: custom goes with the key custom (docs/custom-judge.md)")
        if self.custom is not None:
            self._check_custom(self.custom)
        if (self.engine == "http") != (self.http is not None):
            raise ValueError("engine: http goes with the key http: {base_url: ...}")
        if self.confidence in ("entropy", "calibrated_entropy") and self.engine not in (
            "vllm",
            "transformers",
        ):
            raise ValueError(
                f"confidence: {self.confidence} needs the whole vocabulary's probabilities: "
                "engine: vllm or transformers"
            )
        if self.base_model and self.confidence != "calibrated_entropy":
            raise ValueError("base_model goes with confidence: calibrated_entropy")
        if self.decode == "full" and self.format == "demo":
            raise ValueError("format: demo answers with its verdict alone: decode: verdict")
        if self.engine == "columns":
            if not self.prob_columns or not {"A", "B"} <= set(self.prob_columns):
                raise ValueError("engine: columns needs prob_columns: {A: ..., B: ...}")
            if self.swap:
                raise ValueError("engine: columns cannot swap: its judge has already run")
        elif self.prob_columns:
            raise ValueError("prob_columns goes with engine: columns")
        elif not self.model:
            raise ValueError(f"engine: {self.engine} needs a model")
        return self

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


class PriceConfig(Tree):
    """Prices for a model that the built-in table does not list, US dollars per million tokens."""

    input_usd_per_mtok: Usd
    output_usd_per_mtok: Usd
    cached_input_usd_per_mtok: Usd | None = None
    batch_factor: Usd | None = None
    """What multiplies them in a batch, such as 0.5; null: a batch costs as much as any request."""
    flex_factor: Usd | None = None
    """The same for an answer that names the flex tier."""


class BatchConfig(Tree):
    """`mode: batch`: the provider's limits, and how long a run waits for it."""

    max_requests: Annotated[int, Field(gt=0, le=50_000)] = 50_000
    """Requests in one batch."""
    max_bytes: Annotated[int, Field(gt=0, le=200_000_000)] = 200_000_000
    """Bytes of one batch's input file."""
    enqueued_tokens: Positive | None = None
    """The account's limit on prompt tokens in batches that have not ended, for this model; null:
    not known, the provider's refusals make batches smaller."""
    poll_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    wait_s: float = Field(default=86_400, ge=0, allow_inf_nan=False)
    """How long a run waits for its batches before it pauses (exit 4); 0: submit and leave."""
    patience_s: float = Field(default=60, ge=0, allow_inf_nan=False)
    """How long the provider's list must go on not showing a batch whose creation was not
    answered, before its questions go into another."""


class StrongConfig(Tree):
    """The strong judge: any OpenAI-compatible chat API, under a cap."""

    model: str
    base_url: str | None = None
    api_key_env: str | None = "OPENAI_API_KEY"
    mode: Literal["online", "batch", "flex"] = "online"
    """batch: within a day, at half the price; flex: at half the price when there is room."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    concurrency: Positive = 64
    swap: bool = False
    requests_per_minute: Positive = 5000
    tokens_per_minute: Positive = 2_000_000
    max_cost_usd: Usd
    max_cost_usd_per_month: Usd | None = None
    ledger: str | None = None
    """URI of a ledger shared between runs; null keeps it in the run directory."""
    journal: str | None = None
    """URI of a journal shared between runs; null keeps it in the run directory."""
    price: PriceConfig | None = None
    rubric: str | None = None
    """Criteria for the strong judge; null uses the judge's."""
    ties: bool = True
    scores: tuple[float, float] = (1, 10)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Not sent when null (reasoning models refuse it)."""
    max_output_tokens: Positive = 300
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    reasks: int = Field(default=1, ge=0, le=5)
    """How often an answer that cannot be used is asked again, each time paid for."""
    timeout_s: float = Field(default=120, gt=0)
    """For one request; with mode: flex, 900 unless given (OpenAI's advice)."""
    give_up_after_s: float = Field(default=1800, gt=0)
    """How long the provider may be down before the run pauses (exit 4)."""

    @model_validator(mode="before")
    @classmethod
    def _patient_with_flex(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("mode") == "flex":
            return {"timeout_s": FLEX_TIMEOUT_S, **given}
        return given


class RunConfig(Tree):
    """The whole run."""

    input: str
    output: str
    task: Task = "pairwise"
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Role → column, where they differ; null: the data has none, whatever its name."""
    judge: JudgeConfig
    judges: tuple[JudgeConfig, ...] = ()
    """Several local judges, asked one after the other, in place of `judge`: a row stops at the
    first one that is sure."""
    route: RouteConfig
    strong: StrongConfig
    chunk_rows: Positive = 1000
    allow_empty_shards: bool = False

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for role in value:
            if role not in COLUMN_ROLES:
                raise ValueError(f"no such column role: {role}{nearest(role, COLUMN_ROLES)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, given: Any) -> Any:
        """`judges: [...]` is `judge: ...` for several; the first one is `judge`, too."""
        if isinstance(given, dict) and given.get("judges"):
            if "judge" in given:
                raise ValueError("judge and judges exclude each other: name one judge or a list")
            return {**given, "judge": given["judges"][0]}
        return given

    @model_validator(mode="after")
    def _fits_task(self) -> RunConfig:
        for judge in self.judges or (self.judge,):
            if self.task == "pairwise":
                continue
            if judge.format == "demo" or judge.swap or self.strong.swap:
                raise ValueError("task: pointwise goes without format: demo and without swap")
            if judge.engine == "columns" or judge.by_scores:
                raise ValueError("engine: columns and by_scores are for task: pairwise")
            if judge.score_range() != self.judge.score_range():
                raise ValueError("all judges of a run must score on the same range")
        for judge in self.judges[:-1]:
            if judge.route is None:
                raise ValueError("each of several judges but the last needs its own route")
            if judge.route.policy == "budget":
                raise ValueError(
                    "policy: budget weighs what the strong judge costs: last judge only"
                )
            if judge.route.policy == "guarantee" and self.route.calibration is None:
                raise ValueError("policy: guarantee needs route.calibration, made for all judges")
        return self

    def tiers(self) -> tuple[RunConfig, ...]:
        """One configuration per local judge, in order: its `judge`, and the `route` behind it."""
        if not self.judges:
            return (self,)
        rubric = self.strong.rubric or next((j.rubric for j in self.judges if j.rubric), None)
        strong = self.strong.model_copy(update={"rubric": rubric})
        return tuple(
            self.model_copy(
                update={
                    "judge": judge,
                    "judges": (),
                    "route": judge.route or self.route,
                    "strong": strong,
                }
            )
            for judge in self.judges
        )

    def document(self) -> dict[str, Any]:
        """Give the tree as plain JSON values; money as strings."""
        document: dict[str, Any] = self.model_dump(mode="json")
        if self.judges:
            del document["judge"]  # it is the first of them
        return document

    def within_budget(self) -> RunConfig:
        """Lower the cap to the policy's budget: what is planned may be dearer than expected."""
        budget = self.route.budget_usd
        if budget is None or budget >= self.strong.max_cost_usd:
            return self
        strong = self.strong.model_copy(update={"max_cost_usd": budget})
        return self.model_copy(update={"strong": strong})

    def digest(self) -> str:
        """SHA-256 (hex) over every key that can change a verdict."""
        flat = {k: v for k, v in _flatten(self.document()).items() if not _operational(k)}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()

    def alternatives(self) -> tuple[str, ...]:
        """Give the names in `judge_probs`, in order: `A, B, tie`, or the scores."""
        if self.task == "pairwise":
            return ("A", "B", "tie")
        low, high = self.judge.score_range()
        return tuple(str(score) for score in range(low, high + 1))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name every key that may not change between two configurations of one run, with values."""
    old, new = _flatten(before), _flatten(now)
    found = [
        f"{key}: {old.get(key)!r} → {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _operational(key)
    ]
    cap = "strong.max_cost_usd"
    if cap in old and Decimal(str(new[cap])) < Decimal(str(old[cap])):
        found.append(f"{cap}: {old[cap]} → {new[cap]} (a cap may only be raised)")
    return found


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` overrides (values are YAML).

    Raises ConfigError naming the key, what is wrong with it, and the nearest known key.
    """
    file = Path(path)
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", file=file) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a YAML file: {error}", file=file) from None
    if not isinstance(document, dict):
        raise ConfigError("the configuration is not a mapping of keys to values", file=file)
    for override in overrides:
        _apply(document, override)
    return parse(document, file=str(file))


def parse(document: Mapping[str, Any], *, file: str | None = None) -> RunConfig:
    """Check a mapping of plain values and freeze it. Raises ConfigError."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_explain(problem) for problem in error.errors()), file=file
        ) from None


def api_key(strong: StrongConfig) -> str:
    """Read the key from the environment. Raises ConfigError when it is missing or unusable."""
    if strong.api_key_env is None:
        return "none"
    key = os.environ.get(strong.api_key_env, "")
    if not key:
        raise ConfigError(
            f"no API key: set the environment variable {strong.api_key_env}, or name another "
            "one in strong.api_key_env (null for a server without keys)"
        )
    if key != "".join(key.split()) or not key.isascii():
        raise ConfigError(f"the API key in {strong.api_key_env} has white space or other text")
    return key


def _apply(document: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found:
        raise ConfigError(f"--set takes key=value, not {override!r}")
    *parents, last = key.strip().split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a group of keys")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None


def _explain(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(where, _known_keys(RunConfig))}"
    if problem["type"] == "missing":
        hint = ": there is no run without a cap" if where == "strong.max_cost_usd" else ""
        return f"missing key {where}{hint}"
    given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}"


def nearest(word: str, known: Sequence[str]) -> str:
    """Give ` (did you mean ...?)` with the known word that is closest, or nothing."""
    close = [key for key in known if key.startswith(word)][:1]
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # a key in the wrong group: compare the last part alone
        last = word.rpartition(".")[2]
        close = [key for key in known if key.rpartition(".")[2] == last][:1]
    return f" (did you mean {close[0]}?)" if close else ""


def _known_keys(tree: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in tree.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, Tree):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            flat |= _flatten({str(n): item for n, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _operational(key: str) -> bool:
    key = re.sub(r"\Ajudges\.\d+\.", "judge.", key)
    return any(key == name or key.startswith(name + ".") for name in OPERATIONAL)
