"""What the runs here have in common: their rows, their configuration, and whose a bill is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_judge.escalation.books.journal import Journal


def pairs(numbers: Sequence[int]) -> pa.Table:
    """Pairs with the probabilities of a judge that has run."""
    p_a = [0.5 + (n % 97) / 200 for n in numbers]
    table = {
        "instruction": [f"Write down the number {n}. €" for n in numbers],
        "response_a": [f"{n}" for n in numbers],
        "response_b": [f"perhaps {n + 1}" for n in numbers],
        "p_a": p_a,
        "p_b": [1 - p for p in p_a],
    }
    return pa.table(table)


def document(source: Path, output: Path, server: Any, **strong: Any) -> dict[str, Any]:
    """Make the configuration of a run that asks all rows of `source`, as fast as it can."""
    return {
        "input": str(source),
        "output": str(output),
        "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
        "route": {"policy": "fraction", "fraction": 1},
        "strong": {
            "model": "gpt-4.1",
            "max_cost_usd": 5,
            "base_url": server.base_url,
            "requests_per_minute": 600_000,
            "tokens_per_minute": 600_000_000,
            "concurrency": 16,
            **strong,
        },
    }


def by_question(bills: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for bill in bills:
        found[bill["canonical"]].append(bill)
    return found


def by_bill(journal: Journal) -> dict[int, Any]:
    """The journal's answers by the number of the bill that each was sent with, if it tells."""
    rows = [row for row in journal.rows if "-sim-" in (row.response_id or "")]
    return {int(row.response_id.rpartition("-")[2]): row for row in rows}
