"""What unit tests share: a good configuration, in which a test changes what it is about."""

from __future__ import annotations

from typing import Any


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
            node[last] = value
    return tree
