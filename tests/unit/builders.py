"""What several unit tests build: a configuration, and judged rows."""

from __future__ import annotations

import copy
from typing import Any

import pyarrow as pa

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


def judged(*rows: dict[str, Any]) -> pa.Table:
    """Judged rows, numbered; a column that a row does not name is null."""
    full = [{"row": n, "row_key": str(n), "has_text": True} | row for n, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=JUDGED)
