"""What many tests build: a configuration, pairs, and judged rows."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from ray_judge.config import RunConfig, parse
from ray_judge.records import PAIRWISE_ALTERNATIVES, judged_schema

JUDGED = judged_schema("pairwise", PAIRWISE_ALTERNATIVES)


def document(**changes: Any) -> dict[str, Any]:
    """A good configuration; `strong__model="x"` changes one key, `...` takes it away."""
    tree: dict[str, Any] = {
        "input": "in",
        "output": "out",
        "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
        "route": {"policy": "fraction", "fraction": 0.3},
        "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is ...:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
    return tree


def config(**changes: Any) -> RunConfig:
    return parse(document(**changes))


FAST = {"requests_per_minute": 600_000, "tokens_per_minute": 600_000_000, "concurrency": 16}
"""Of `strong`: a run that asks as fast as it can."""


def pairs(rows: int, *, first: int = 0, **columns: Sequence[Any] | pa.Array) -> pa.Table:
    """Pairs with the probabilities of a judge that has run: the higher the row, the surer."""
    numbers = range(first, first + rows)
    p_a = [0.5 + (n % 97) / 200 for n in numbers]
    data: dict[str, Any] = {
        "instruction": [f"Write down the number {n}. €" for n in numbers],
        "response_a": [f"{n}" for n in numbers],
        "response_b": [f"perhaps {n + 1}" for n in numbers],
        "p_a": p_a,
        "p_b": [1 - p for p in p_a],
        **columns,
    }
    return pa.table(data)


def documented(page: str) -> list[Any]:
    """The YAML blocks of one of the project's pages."""
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def judged(*rows: dict[str, Any]) -> pa.Table:
    """Judged rows, numbered; a column that a row does not name is null."""
    full = [{"row": n, "row_key": str(n), "has_text": True} | row for n, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=JUDGED)
