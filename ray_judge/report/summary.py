"""summary.json: counted from the scored shards and the ledger, never from memory of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.calibration.audit import audit, check_promise
from ray_judge.calibration.document import Calibration
from ray_judge.cluster import call_each
from ray_judge.config import RunConfig
from ray_judge.errors import CorruptedError, PromiseBroken
from ray_judge.records import Outcome, Route, Source
from ray_judge.report.drift import drifted
from ray_judge.run.directory import Plan, RunDirectory

if TYPE_CHECKING:  # the workers that read shards need nothing of phase B
    from ray_judge.escalation.escalate import Answers

AUDIT_GROUP = "audit_group"
"""The column `route.audit_by` under a name that no output has."""
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
    calibration: Calibration | None,
    seconds: Mapping[str, float],
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Give the summary's document and the frame of counted columns that it was made from."""
    by = config.route.audit_by
    abstains = config.strong.abstain_below is not None
    more = ("strong_prob",) if abstains else ()
    calls = [(run, shard.name, plan.columns.label, by, more) for shard in plan.shards]
    parts = [pl.from_arrow(part) for part in call_each(scored_table, calls)]
    rows = pl.concat([part for part in parts if isinstance(part, pl.DataFrame)])
    document: dict[str, Any] = {
        "layout": 1,
        "digest": config.digest(),
        "rows": rows.height,
        "routes": _counts(rows, "route", [str(route) for route in Route]),
        "outcomes": _counts(
            rows, "outcome", [str(o) for o in Outcome if abstains or o is not Outcome.ABSTAINED]
        ),
        "sources": _counts(rows, "final_source", [str(source) for source in Source]),
        "errors": rows["error"].count(),
        "api_requests": answers.requests,
        "spent_usd": answers.settled_usd + answers.unproven_usd,
        "unproven_usd": answers.unproven_usd,
        "cap_usd": config.strong.max_cost_usd,
        "threshold": threshold,
        "judge_model": config.judges[0].model,
        "strong_model": config.strong.model,
        "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
    }
    document |= audited(config, rows, calibration)
    if abstains:
        document["review"] = reviewed(rows)
    document["drift"] = drifted(config, plan, run, rows, calibration)
    if plan.columns.label:
        document["label_accuracy"] = {
            "judge": accuracy(rows, "judge_verdict"),
            "final": accuracy(rows, "final_verdict"),
        }
    return document, rows


def reviewed(rows: pl.DataFrame) -> dict[str, int]:
    """Rows in review.parquet, and rows with a strong verdict whose probability is not known."""
    unknown = pl.col("strong_verdict").is_not_null() & pl.col("strong_prob").is_null()
    return {
        "rows": rows.filter(outcome=Outcome.ABSTAINED.value).height,
        "without_probabilities": rows.filter(unknown).height,
    }


def audited(
    config: RunConfig, rows: pl.DataFrame, calibration: Calibration | None
) -> dict[str, Any]:
    """What the audit showed, and what that makes of the promise."""
    found: dict[str, Any] = {"audit": None, "drift": None, "promise": None}
    seen = audit(rows, AUDIT_GROUP if config.route.audit_by else None)
    if config.route.audit:
        found["audit"] = seen.document()
        if config.strong.abstain_below is not None:
            found["audit"]["abstained"] = seen.abstained
    if calibration is None or config.tiers()[-1].route.policy != "guarantee":
        return found
    kept: bool | None = None
    if not calibration.attainable:
        said = "the guarantee is not attainable with these labels: every row is escalated"
    elif not config.route.audit:
        said = f"promised, and not audited: {calibration.promise()}"
    else:
        try:
            said = check_promise(calibration, seen)
            kept = True if seen.overall.n else None
        except PromiseBroken as broken:
            said, kept = broken.message, False
    found["promise"] = {"kept": kept, "said": said}
    return found


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


def scored_table(
    run: RunDirectory, name: str, label: str | None, by: str | None = None, more: Sequence[str] = ()
) -> pa.Table:
    """Read the counted columns of one scored shard, its labels as `label`, `by` as text."""
    names = [*COUNTED, *more]
    given = {"label": label, AUDIT_GROUP: by}
    wanted = list(dict.fromkeys([*names, *(column for column in given.values() if column)]))
    try:
        with run.storage.open_input(f"scored/{name}") as file:
            read = pq.read_table(file, columns=wanted)
        table = read.select(names)
        for role, column in given.items():
            if column:
                kind = read.schema.field("judge_verdict").type if role == "label" else pa.string()
                table = table.append_column(role, _plain(read.column(column)).cast(kind))
    except pa.ArrowException as error:
        raise CorruptedError(f"a scored shard is damaged: {error}", file=f"scored/{name}") from None
    return table


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values
