"""summary.json: counted from the scored shards and the ledger, never from memory of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.calibration.audit import audit, check_promise
from ray_judge.config import RunConfig, nearest
from ray_judge.errors import CorruptedError, InputError, PromiseBroken
from ray_judge.records import Outcome, Route, Source
from ray_judge.report.drift import measure_drift
from ray_judge.routing.tiers import Cascade
from ray_judge.run.columns import as_series
from ray_judge.run.directory import RunDirectory
from ray_judge.run.labels import labels_of

if TYPE_CHECKING:
    from ray_judge.escalation.escalate import Answers

AT_ONCE = 8
"""Shards that are read together (decoding leaves Python's lock)."""
AUDIT_GROUP = "audit_group"
"""The column `route.audit_by` under a name that no output has."""
COUNTED = (
    "route", "outcome", "judge_verdict", "judge_confidence",
    "strong_verdict", "final_verdict", "final_source", "error",
)  # fmt: skip


def summarise(
    cascade: Cascade, answers: Answers, threshold: float | None, seconds: Mapping[str, float]
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Give the summary's document and the frame of counted columns that it was made from."""
    config, plan, run = cascade.config, cascade.plan, cascade.run
    label, by = plan.columns.label, config.route.audit_by
    abstains = config.strong.abstain_below is not None
    outcomes = [str(o) for o in Outcome if abstains or o is not Outcome.ABSTAINED]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        names = [shard.name for shard in plan.shards]
        rows = pl.concat(pool.map(lambda name: read_scored(run, name, config, label, by), names))
    document: dict[str, Any] = {
        "layout": 1,
        "digest": config.digest(),
        "rows": rows.height,
        "not_taken": plan.not_taken,
        "routes": _counts(rows, "route", [str(route) for route in Route]),
        "outcomes": _counts(rows, "outcome", outcomes),
        "sources": _counts(rows, "final_source", [str(source) for source in Source]),
        "errors": rows["error"].count(),
        "commonest_failure": commonest_failure(rows),
        "api_requests": answers.requests,
        "spent_usd": answers.settled_usd + answers.unproven_usd,
        "unproven_usd": answers.unproven_usd,
        "cap_usd": config.strong.max_cost_usd,
        "cached_input_tokens": answers.cached_tokens,
        "cache_saved_usd": answers.cache_saved_usd,
        "excess_usd": answers.excess.usd,
        "excess_said": answers.excess.said,
        "asked_again": answers.unanswered,
        "max_output_tokens": cascade.config.strong.max_output_tokens,
        "threshold": threshold,
        "judge_model": config.judges[0].model,
        "strong_model": config.strong.model,
        "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
    }
    document |= describe_audit(cascade, rows)
    if abstains:
        document["review"] = {"rows": rows.filter(outcome=Outcome.ABSTAINED.value).height}
    document["drift"] = measure_drift(cascade, rows)
    if label:
        document["label_accuracy"] = {
            "judge": accuracy(rows, "judge_verdict"),
            "final": accuracy(rows, "final_verdict"),
        }
    return document, rows


def commonest_failure(rows: pl.DataFrame) -> str | None:
    """Why the strong judge gave no verdict, most often, in the words of the first such row.

    What stands in quotes, and numbers, make no difference.
    """
    failed = rows.filter(pl.col("outcome").is_in(["failed", "unparseable"]))
    asked = failed.filter(pl.col("error").str.contains("strong: ", literal=True))
    said = asked.select(pl.col("error").str.replace(r"^.*?strong: ", ""))
    alike = pl.col("error").str.replace_all(r"'[^']*'|\"[^\"]*\"|\d+", "…").alias("alike")
    kinds = said.group_by(alike, maintain_order=True).agg(pl.len(), pl.col("error").first())
    return kinds.sort("len", descending=True, maintain_order=True)["error"].first()  # type: ignore[return-value]


def describe_audit(cascade: Cascade, rows: pl.DataFrame) -> dict[str, Any]:
    """Give the summary's `audit`, and its `promise`: what the audit makes of the guarantee."""
    policy, calibration = cascade.config.route, cascade.calibration
    found: dict[str, Any] = {"audit": None, "promise": None}
    seen = audit(rows, AUDIT_GROUP if policy.audit_by else None)
    if policy.audit:
        found["audit"] = seen.document()
    if calibration is None or policy.policy != "guarantee":
        return found
    kept: bool | None = None
    if not calibration.attainable:
        said = "the guarantee is not attainable with these labels: every row is escalated"
    elif not policy.audit:
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
    labelled = rows.drop_nulls("label")
    right = int((labelled[column] == labelled["label"]).sum())
    return right / labelled.height if labelled.height else None


def _counts(rows: pl.DataFrame, column: str, names: Sequence[str]) -> dict[str, int]:
    counted = dict(rows.group_by(column).len().rows())
    return {name: counted.get(name, 0) for name in names}


def read_scored(
    run: RunDirectory,
    name: str,
    config: RunConfig,
    label: str | None,
    by: str | None = None,
    more: Sequence[str] = (),
) -> pl.DataFrame:
    """Read the counted columns of one scored shard, its labels as `label`, `by` as text.

    Labels come in the type of a verdict. Raises InputError for a column that is not there or
    cannot be a label, CorruptedError for a damaged shard.
    """
    rule = config.label_rule(label) if label else None
    given = [*(rule.names() if rule else [label]), by]
    wanted = list(dict.fromkeys([*COUNTED, *more, *filter(None, given)]))
    file = f"scored/{name}"
    try:
        with run.storage.open_input(file) as source, pq.ParquetFile(source) as shard:
            for column in filter(None, given):
                if column not in (there := shard.schema_arrow.names):
                    said = f"there is no such column{nearest(column, there)}"
                    raise InputError(said, file=file, column=column)
            table = shard.read(columns=wanted)
    except pa.ArrowException as error:
        raise CorruptedError(f"a scored shard is damaged: {error}", file=file) from None
    counted = pl.DataFrame(pl.from_arrow(table.select([*COUNTED, *more])))
    if label:
        where = {"file": file, "column": label}
        meant = labels_of(table, label, config, **where)
        counted = counted.with_columns(label=meant)
    if by:
        groups = as_series(table[by], file=file, column=by).cast(pl.String)
        counted = counted.with_columns(groups.alias(AUDIT_GROUP))
    return counted
