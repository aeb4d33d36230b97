"""The seam between a chunk of rows and whatever judges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from ray_judge.config import RunConfig
from ray_judge.records import Example, Judgment


class Engine(Protocol):
    """Judges many rows at once. Thread-safe: several chunks are in flight per engine."""

    model: str
    """What `judge_model` says."""
    needs_text: bool
    """False for an engine that judges by `rows` alone: it gets every row, and no examples."""

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        """Judge the examples, in order. `rows` are the same rows with `extra_columns`.

        A misfortune of one row is that row's `error`; EngineError is for the engine itself.
        """
        ...


def extra_columns(config: RunConfig) -> tuple[str, ...]:
    """Name the input columns that the engine reads besides the example's own."""
    return tuple((config.judge.prob_columns or {}).values())


def check_engine(config: RunConfig) -> None:
    """Refuse what can be known to fail before a model is loaded. Raises ConfigError."""
    if config.judge.engine == "vllm":
        from ray_judge.engines.vllm import check_model

        check_model(str(config.judge.model))


def make_engine(config: RunConfig) -> Engine:
    """Start the engine that the configuration names (seconds to minutes for a model).

    Raises ConfigError for a model that is not there and EngineError when it does not start.
    """
    if config.judge.engine == "columns":
        from ray_judge.engines.columns import ColumnsEngine

        return ColumnsEngine(config)
    from ray_judge.engines.vllm import VllmEngine

    return VllmEngine(config)
