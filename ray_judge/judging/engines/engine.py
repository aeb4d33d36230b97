"""From rows to judgments: a chunk of rows ─► engine ─► reader ─► language model.

An engine is a judge that has already run (`ColumnsEngine`) or one that reads texts (`ModelEngine`):
of a model in this process token by token (`tokens.py`), or of a server (`http.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import fmean
from typing import Any, Protocol

import pyarrow as pa

from ray_judge.cluster import is_own_machine
from ray_judge.config import JudgeConfig, RunConfig, nearest
from ray_judge.errors import ConfigError
from ray_judge.judging.confidence import (
    both_orders,
    by_rewards,
    by_scores,
    confidence,
    judgment,
    no_judgment,
    orders_agree,
    verdict_probs,
)
from ray_judge.judging.engines.checkpoint import check_model, find_folder, read_template
from ray_judge.judging.engines.verdict_tree import Position
from ray_judge.judging.formats import Format, base_of, format_for
from ray_judge.judging.formats.reasoning import template_options
from ray_judge.records import PAIRWISE_ALTERNATIVES, Example, Judgment, Scored


class Engine(Protocol):
    """Judges many rows at once. Thread-safe: several chunks are in flight per engine.

    `model`: what `judge_model` says. `needs_text`: false for an engine that judges by `rows`
    alone (the input's own, with `extra_columns`): it gets every row, and no examples.
    A misfortune of one row is that row's `error`; EngineError is for the engine itself.
    """

    model: str
    needs_text: bool

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says where the verdict of one prompt sits.

    `logprobs`: alternative → natural logs of the unmasked probabilities of its spellings.
    `entropy`: mean of Σ p ln p over the generated tokens, where it was asked for.
    `scored`: what the base model is asked about. `note`: what was done to the prompt.
    `unseen`: most probability that alternatives which the server did not show can have together.
    `would_write`: the token that is likeliest there, whatever the alternatives are.
    """

    logprobs: Mapping[str, Sequence[float]]
    entropy: float | None = None
    scored: Scored | None = None
    note: str | None = None
    unseen: float = 0.0
    would_write: str | None = None


class Reader(Protocol):
    """Reads the verdict's position of each example; text instead says why there is none."""

    def read(self, examples: Sequence[Example]) -> list[Reading | str]: ...


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """What a model wrote: tokens, the end's included. `ended`: not by the budget."""

    ids: tuple[int, ...]
    text: str
    entropies: tuple[float, ...]
    ended: bool


Ask = tuple[Sequence[int], Sequence[int]]
"""A prompt's tokens, and those whose probability behind it is asked for."""


class LanguageModel(Protocol):
    """A model in this process, asked by tokens. Thread-safe.

    `context`: tokens of prompt and answer together. `tokenizer`: as of transformers.
    `positions` reads the next token's distribution behind each prompt; `write` writes an answer
    behind each, of at most `most` tokens: greedily, or drawn at a temperature, for the same list of
    prompts always alike; `entropies` gives Σ p ln p at each token of given answers: a token's own
    distribution, not the next's.
    """

    context: int
    tokenizer: Any

    def positions(self, asks: Sequence[Ask]) -> list[Position]: ...

    def write(
        self, prompts: Sequence[Sequence[int]], *, most: int, stop: Sequence[str],
        temperature: float = 0.0,
    ) -> list[WrittenAnswer]: ...  # fmt: skip

    def entropies(self, scored: Sequence[Scored]) -> list[list[float]]: ...


class RewardModel(Protocol):
    """A model in this process that gives one number for a whole conversation. Thread-safe.

    `pad`: the token that its authors filled up batches with, which counts for nothing at the end.
    """

    context: int
    tokenizer: Any
    pad: int | None

    def rewards(self, conversations: Sequence[Sequence[int]]) -> list[float]: ...


DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
NEEDS = {"vllm": ("vllm",), "transformers": ("torch", "transformers")}
"""Engine → packages."""
TOLERANCE = 1e-3
"""How far above 1 the probabilities of one row may sum (they are often rounded)."""


class ColumnsEngine:
    """Takes probabilities, or rewards, as given: they are somebody's measurement."""

    needs_text = False

    def __init__(self, config: RunConfig) -> None:
        given, self._judge = config.judge.columns(), config.judge
        self._columns = {name: given[name] for name in PAIRWISE_ALTERNATIVES if name in given}
        self.model = config.judge.model or "columns:" + ",".join(self._columns.values())

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        values = [rows.column(column).to_pylist() for column in self._columns.values()]
        judge = self._compare if self._judge.format == "reward" else self._read
        return [judge(row) for row in zip(*values, strict=True)]

    def _compare(self, row: Sequence[float | None]) -> Judgment:
        for column, value in zip(self._columns.values(), row, strict=True):
            if value is None or not math.isfinite(value):
                return no_judgment(f"column {column} holds {value}, not a reward")
        first, second = (float(value or 0.0) for value in row)
        return by_rewards(first, second, self._judge.temperature or 1.0)

    def _read(self, row: Sequence[float | None]) -> Judgment:
        probs: dict[str, float] = {}
        for (name, column), value in zip(self._columns.items(), row, strict=True):
            if value is None or not math.isfinite(value) or not 0 <= value <= 1 + TOLERANCE:
                return no_judgment(f"column {column} holds {value}, not a probability")
            probs[name] = float(value)
        mass = math.fsum(probs.values())
        if mass > 1 + TOLERANCE or mass <= 0:
            names = ", ".join(self._columns.values())
            return no_judgment(f"columns {names} sum to {mass:g}, not to a probability")
        best = max(probs, key=lambda name: probs[name])
        sure = confidence(probs, self._judge.confidence)
        return Judgment(best, probs, min(mass, 1.0), sure)


class ModelEngine:
    """A judge that reads texts. An example is one prompt, or two: both orders (swap), or each
    response of a pair by itself (a pointwise judge).
    """

    needs_text = True

    def __init__(self, config: RunConfig, format_: Format, reader: Reader) -> None:
        self._config, self._reader = config, reader
        self._singles = config.task == "pairwise" and format_.task == "pointwise"
        self.model = name_model(config.judge)

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        prompts = [self._split(example) for example in examples]
        readings = iter(self._reader.read([prompt for group in prompts for prompt in group]))
        return [self._judge([next(readings) for _ in group]) for group in prompts]

    def _split(self, example: Example) -> list[Example]:
        if self._singles:  # which response comes first makes no difference to a score
            return [example.single(response) for response in example.responses]
        return [example, example.swapped()] if self._config.judge.swap else [example]

    def _judge(self, readings: Sequence[Reading | str]) -> Judgment:
        good = [reading for reading in readings if isinstance(reading, Reading)]
        if reasons := [reading for reading in readings if isinstance(reading, str)]:
            return no_judgment(reasons[0])
        try:
            reads = [verdict_probs(reading.logprobs) for reading in good]
        except ValueError as error:
            return no_judgment(str(error))
        probs, mass = reads[0]
        if len(reads) == 2:
            probs, mass = (by_scores if self._singles else both_orders)(*reads)
        entropies = [reading.entropy for reading in good if reading.entropy is not None]
        judge, unseen = self._config.judge, max(reading.unseen for reading in good)
        entropy = fmean(entropies) if entropies else None
        task, rather = self._config.task, good[0].would_write
        found = judgment(
            probs, mass, judge, task, entropy=entropy, unseen=unseen, would_write=rather
        )
        notes = dict.fromkeys(f"judge: {reading.note}" for reading in good if reading.note)
        calibrated = judge.confidence == "calibrated_entropy"
        return replace(
            found,
            error="; ".join([*([found.error] if found.error else []), *notes]) or None,
            orders_agree=orders_agree(*reads) if len(reads) == 2 and not self._singles else None,
            scored=tuple(r.scored for r in good if r.scored) if calibrated else (),
        )


def extra_columns(config: RunConfig) -> tuple[str, ...]:
    """Name the input columns that the engines read besides the example's own."""
    given = [tier.judge.columns() for tier in config.tiers()]
    return tuple(dict.fromkeys(column for columns in given for column in columns.values()))


def check_engine(config: RunConfig) -> Format | None:
    """Refuse what can be known to fail before a model is loaded (ConfigError).

    Gives the format; None for a judge that is not asked in words.
    """
    judge = config.judge
    if judge.engine == "columns":
        return None
    if judge.engine in ("vllm", "transformers"):
        _check_local(judge)
    if judge.format == "reward":
        return None
    format_ = format_for(judge, config.task)
    templated = judge.thinking is not None or judge.chat_template_kwargs
    if templated and format_.chat is False:
        said = f"judge.format {judge.format} is asked without a chat template"
        raise ConfigError(f"{said}: thinking and chat_template_kwargs do not go with it")
    if judge.http is not None:
        from ray_judge.judging.engines.http import check_request, read_key

        check_request(judge, format_)
        if is_own_machine():
            read_key(judge.http)
    return format_


def _check_local(judge: JudgeConfig) -> None:
    if judge.dtype not in DTYPES:
        said = f"judge.dtype: there is no type {judge.dtype!r}{nearest(judge.dtype, DTYPES)}"
        raise ConfigError(f"{said}: one of {', '.join(DTYPES)}")
    if judge.engine == "transformers" and judge.quantization:
        raise ConfigError("judge.quantization goes with engine: vllm, not transformers")
    if is_own_machine() and (lost := [name for name in NEEDS[judge.engine] if not _has(name)]):
        raise ConfigError(
            f"judge.engine: {judge.engine} needs the package {lost[0]}, which is not installed: "
            "install ray-judge[cpu] or ray-judge[gpu]"
        )
    check_model(
        "judge.model", str(judge.model), judge.engine_options, reward=judge.format == "reward"
    )
    template = read_template(str(judge.model))
    if judge.thinking is not None and template is not None:
        template_options(judge, template)
    if judge.adapter:
        find_folder("judge.adapter", judge.adapter, "adapter_config.json")
    if judge.confidence == "calibrated_entropy":
        check_model("judge.base_model", base_of(judge), judge.engine_options)


def _has(package: str) -> bool:
    return find_spec(package) is not None


def make_engine(config: RunConfig, format_: Format | None) -> Engine:
    """Start the engine that the configuration names (seconds to minutes); see `make_model`."""
    judge = config.judge
    if judge.engine == "columns":
        return ColumnsEngine(config)
    from ray_judge.judging.engines.http import HttpReader
    from ray_judge.judging.engines.rewards import RewardEngine
    from ray_judge.judging.engines.tokens import TokenReader

    if judge.format == "reward":
        return RewardEngine(config, make_reward_model(judge))
    assert format_ is not None
    if judge.engine == "http":
        return ModelEngine(config, format_, HttpReader(judge, format_))
    return ModelEngine(config, format_, TokenReader(judge, format_, make_model(config)))


def make_model(config: RunConfig, *, base: bool = False) -> LanguageModel:
    """Load the judge, or the base model that it was tuned from. Raises whatever the engine does."""
    judge, key = config.judge, "judge.model"
    if base:
        of_base = {"model": base_of(judge), "revision": judge.base_revision, "adapter": None}
        judge, key = judge.model_copy(update=of_base), "judge.base_model"
    check_model(key, str(judge.model), judge.engine_options)
    if judge.engine == "transformers":
        from ray_judge.judging.engines.transformers import TransformersModel

        return TransformersModel(judge)
    from ray_judge.judging.engines.vllm import VllmModel

    return VllmModel(judge)


def make_reward_model(judge: JudgeConfig) -> RewardModel:
    """Load a reward model. Raises whatever the engine does."""
    check_model("judge.model", str(judge.model), judge.engine_options, reward=True)
    if judge.engine == "transformers":
        from ray_judge.judging.engines.transformers import TransformersRewards

        return TransformersRewards(judge)
    from ray_judge.judging.engines.vllm import VllmRewards

    return VllmRewards(judge)


def name_model(judge: JudgeConfig) -> str:
    name = f"{judge.model}@{judge.revision}" if judge.revision else str(judge.model)
    return f"{name}+{judge.adapter}" if judge.adapter else name


def decode_answer(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> str:
    """Give an answer's text: without its end token, and up to the first stop text."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    for word in stop:
        text = text.partition(word)[0]
    return text
