"""Phase C: one Ray task per shard puts the verdict columns behind the untouched input columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ray_judge.config import RunConfig, StrongConfig
from ray_judge.errors import InputChangedError, RayJudgeError
from ray_judge.escalation.answers import answer_row
from ray_judge.records import Answer, Outcome, Route, Shard, Source, Verdict, verdict_schema
from ray_judge.routing.tiers import read_judged
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.run.plan import check_unchanged, open_shard, read_slices
from ray_judge.workers import results

Paid = Mapping[str, tuple[Answer | None, Decimal]]
"""Question key → its final answer, if it has one, and what all attempts at it cost, US dollars."""


def merge(
    config: RunConfig, plan: Plan, run: RunDirectory, routed: pl.DataFrame, paid: Paid
) -> None:
    """Write every scored shard that is not there yet."""
    done = run.scored()
    todo = [shard for shard in plan.shards if shard.name not in done]
    asked = payers(routed)
    tasks = []
    for shard in todo:
        chunks = [chunk.name for chunk in plan.shard_chunks(shard)]
        rows = routed.filter(pl.col("chunk").is_in(chunks)).select("chunk", "row", "route")
        bills = asked.filter(pl.col("chunk").is_in(chunks))
        keys = set(bills["key"])
        answers = {key: paid[key] for key in keys if key in paid}
        tasks.append((config, plan, run, shard, rows.to_arrow(), bills.to_arrow(), answers))
    for _ in results(merge_shard, tasks):
        pass


def payers(routed: pl.DataFrame) -> pl.DataFrame:
    """One row per question that a routed row asks: (chunk, row, key, pays).

    Identical rows share one question; the first row, in the order of the input, pays for it.
    """
    return (
        routed.filter(pl.col("route") != Route.ACCEPT.value)
        .sort("chunk", "row")
        .select("chunk", "row", pl.col("question_keys").alias("key"))
        .explode("key")
        .with_columns(pays=pl.col("key").is_first_distinct())
    )


@ray.remote(num_cpus=0.5, max_retries=3)
def merge_shard(
    config: RunConfig,
    plan: Plan,
    run: RunDirectory,
    shard: Shard,
    routes: pa.Table,
    bills: pa.Table,
    answers: Paid,
) -> str | RayJudgeError:
    """Write one scored shard, chunk by chunk, under its final name only when it is whole."""
    try:
        _merge_shard(config, plan, run, shard, pl.from_arrow(routes), pl.from_arrow(bills), answers)
    except RayJudgeError as error:
        return error
    return shard.name


def _merge_shard(
    config: RunConfig,
    plan: Plan,
    run: RunDirectory,
    shard: Shard,
    routes: Any,
    bills: Any,
    answers: Paid,
) -> None:
    check_unchanged(shard)
    with open_shard(shard.path) as file:
        source = file.schema_arrow
    strong = config.strong
    added = verdict_schema(config.task, config.alternatives(), strong_prob=strong.samples > 1)
    schema = pa.schema([*source, *added], metadata=source.metadata)
    with (
        run.storage.write_stream(f"scored/{shard.name}") as sink,
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        chunks = plan.shard_chunks(shard)
        slices = read_slices(shard.path, [chunk.rows for chunk in chunks])
        for chunk, rows in zip(chunks, slices, strict=True):
            if len(rows) != chunk.rows:
                raise InputChangedError("this shard has fewer rows than before", file=shard.path)
            routed = dict(
                routes.filter(pl.col("chunk") == chunk.name).select("row", "route").rows()
            )
            asked: dict[int, list[tuple[str, bool]]] = {}
            for row, key, pays in (
                bills.filter(chunk=chunk.name).select("row", "key", "pays").rows()
            ):
                asked.setdefault(row, []).append((key, pays))
            judged, _ = read_judged(run, len(config.tiers()), chunk.name)
            columns = verdict_columns(judged, routed, asked, answers, added, strong)
            table = pa.Table.from_arrays([*rows.columns, *columns.columns], schema=schema)
            writer.write_table(table, row_group_size=max(1, len(table)))


def verdict_columns(
    judged: pa.Table,
    routes: Mapping[int, str],
    asked: Mapping[int, Sequence[tuple[str, bool]]],
    answers: Paid,
    schema: pa.Schema,
    strong: StrongConfig,
) -> pa.Table:
    """Lay the verdict columns of one chunk, one row per judged row, in order."""
    kept = ("judge_verdict", "judge_probs", "judge_confidence", "judge_model")
    columns: dict[str, Any] = {name: judged.column(name) for name in kept}
    decided = [
        _decide(local, error, routes[row], asked.get(row, ()), answers, strong)
        for row, local, error in zip(
            judged.column("row").to_pylist(),
            judged.column("judge_verdict").to_pylist(),
            judged.column("error").to_pylist(),
            strict=True,
        )
    ]
    names = [field.name for field in schema if field.name not in kept]
    for name in names:
        columns[name] = pa.array([row[name] for row in decided], schema.field(name).type)
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _decide(
    local: Verdict | None,
    error: str | None,
    route: str,
    asked: Sequence[tuple[str, bool]],
    answers: Paid,
    strong: StrongConfig,
) -> dict[str, Any]:
    """Settle one row. The local verdict stands unless the strong judge gave one.

    Where the strong judge abstains the row is left to a person: the local verdict was doubted, or
    drawn to be checked, and this one is no better.
    """
    decided: dict[str, Any] = {
        "route": route,
        "outcome": Outcome.NOT_NEEDED.value if local is not None else Outcome.FAILED.value,
        "strong_verdict": None,
        "strong_prob": None,
        "strong_model": None,
        "strong_cost_usd": None,
        "final_verdict": local,
        "final_source": Source.JUDGE.value if local is not None else Source.NONE.value,
        "error": error,
    }
    if route == Route.ACCEPT.value:
        return decided
    paid = [(*answers.get(key, (None, Decimal(0))), pays) for key, pays in asked]
    found = [answer for answer, _, _ in paid]
    decided["strong_model"] = next((a.model for a in found if a and a.model), None)
    if any(key in answers for key, _ in asked):
        decided["strong_cost_usd"] = sum((cost for _, cost, pays in paid if pays), Decimal(0))
    answer = answer_row(found, strong)
    decided["outcome"] = answer.outcome.value
    if answer.error is not None:
        decided["error"] = "; ".join(filter(None, [error, f"strong: {answer.error}"]))
    if answer.verdict is not None:
        unsure = answer.outcome is Outcome.ABSTAINED
        decided |= {
            "strong_verdict": answer.verdict,
            "strong_prob": answer.prob,
            "final_verdict": None if unsure else answer.verdict,
            "final_source": (Source.NONE if unsure else Source.STRONG).value,
        }
    return decided
