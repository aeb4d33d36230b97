"""What several unit tests build: a configuration, and judged rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ray_judge.config import RunConfig, parse
from ray_judge.records import PAIRWISE_ALTERNATIVES, judged_schema

COLUMNS_JUDGE = {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}}
JUDGED = judged_schema("pairwise", PAIRWISE_ALTERNATIVES)


def config(**changes: Any) -> RunConfig:
    """A small configuration; `...` takes a key of the top away."""
    tree: dict[str, Any] = {
        "input": "in",
        "output": "out",
        "judge": {"model": "m"},
        "route": {"fraction": 0.5},
        "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
    }
    return parse({key: value for key, value in (tree | changes).items() if value is not ...})


def document(**changes: Any) -> dict[str, Any]:
    """A good configuration; `strong__model="x"` changes one key, `...` takes it away."""
    tree: dict[str, Any] = {
        "input": "in",
        "output": "out",
        "judge": dict(COLUMNS_JUDGE),
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
            node[last] = value
    return tree


def judged(*rows: dict[str, Any]) -> pa.Table:
    """Judged rows, numbered; a column that a row does not name is null."""
    full = [{"row": n, "row_key": str(n), "has_text": True} | row for n, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=JUDGED)
