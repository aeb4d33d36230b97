"""What the runs here have in common: their configuration, and whose a bill is."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from ray_judge.escalation.books.journal import Journal
from tests.unit import builders


def document(source: Path, output: Path, server: Any, **strong: Any) -> dict[str, Any]:
    """Make the configuration of a run that asks all rows of `source`, as fast as it can."""
    asked = {"model": "gpt-4.1", "max_cost_usd": 5, "base_url": server.base_url, **builders.FAST}
    wish = {"input": str(source), "output": str(output), "strong": {**asked, **strong}}
    return builders.document(**wish, route__fraction=1)


def by_question(bills: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for bill in bills:
        found[bill["canonical"]].append(bill)
    return found


def by_bill(journal: Journal) -> dict[int, Any]:
    """The journal's answers by the number of the bill that each was sent with, if it tells."""
    rows = [row for row in journal.rows if "-sim-" in (row.response_id or "")]
    return {int(row.response_id.rpartition("-")[2]): row for row in rows}
