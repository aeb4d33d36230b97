"""summary.json: counted from the scored shards and the ledger, never from memory of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ray_judge.config import RunConfig
from ray_judge.errors import CorruptedError, RayJudgeError
from ray_judge.escalation.escalate import Answers
from ray_judge.records import Outcome, Route, Source
from ray_judge.run_directory import Plan, RunDirectory
from ray_judge.workers import results

COUNTED = (
    "route",
    "outcome",
    "judge_verdict",
    "judge_confidence",
    "strong_verdict",
    "final_verdict",
    "final_source",
    "error",
)


def summarise(
    config: RunConfig,
    plan: Plan,
    run: RunDirectory,
    answers: Answers,
    threshold: float | None,
    seconds: Mapping[str, float],
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Give the summary's document and the frame of counted columns that it was made from."""
    calls = [(run, shard.name, plan.columns.label) for shard in plan.shards]
    parts = [pl.from_arrow(part) for part in results(read_scored, calls)]
    rows = pl.concat([part for part in parts if isinstance(part, pl.DataFrame)])
    document: dict[str, Any] = {
        "layout": 1,
        "digest": config.digest(),
        "rows": rows.height,
        "routes": _counts(rows, "route", [str(route) for route in Route]),
        "outcomes": _counts(rows, "outcome", [str(outcome) for outcome in Outcome]),
        "sources": _counts(rows, "final_source", [str(source) for source in Source]),
        "errors": rows["error"].count(),
        "api_requests": answers.requests,
        "spent_usd": answers.settled_usd + answers.unproven_usd,
        "unproven_usd": answers.unproven_usd,
        "cap_usd": config.strong.max_cost_usd,
        "threshold": threshold,
        "judge_model": config.judge.model,
        "strong_model": config.strong.model,
        "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
    }
    if plan.columns.label:
        document["label_accuracy"] = {
            "judge": accuracy(rows, "judge_verdict"),
            "final": accuracy(rows, "final_verdict"),
        }
    return document, rows


def accuracy(rows: pl.DataFrame, column: str) -> float | None:
    """Share of the labelled rows whose verdict equals the label; no verdict is not right."""
    labelled = rows.filter(pl.col("label").is_not_null())
    if not labelled.height:
        return None
    right = labelled.select((pl.col(column) == pl.col("label")).fill_null(value=False).sum())
    return float(right.item()) / labelled.height


def _counts(rows: pl.DataFrame, column: str, names: list[str]) -> dict[str, int]:
    counted = dict(rows.group_by(column).len().rows())
    return {name: counted.get(name, 0) for name in names}


@ray.remote(num_cpus=0.5, max_retries=3)
def read_scored(run: RunDirectory, name: str, label: str | None) -> pa.Table | RayJudgeError:
    """Read the counted columns of one scored shard, and its labels as `label`."""
    wanted = [*COUNTED, *([label] if label else [])]
    try:
        with run.storage.open_input(f"scored/{name}") as file:
            table = pq.read_table(file, columns=list(wanted))
    except RayJudgeError as error:
        return error
    except pa.ArrowException as error:
        return CorruptedError(f"a scored shard is damaged: {error}", file=f"scored/{name}")
    if label:
        kind = table.schema.field("judge_verdict").type
        table = table.rename_columns([*COUNTED, "label"])
        values = table.column("label")
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        table = table.set_column(len(COUNTED), "label", values.cast(kind))
    return table
