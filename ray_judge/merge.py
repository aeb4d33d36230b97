"""Phase C: one task per shard puts the verdict columns behind the untouched input columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.cluster import call_each
from ray_judge.config import StrongConfig
from ray_judge.errors import InputChangedError
from ray_judge.escalation.answers import answer_row
from ray_judge.records import (
    CHOSEN_IS,
    LOCAL,
    Answer,
    Outcome,
    Route,
    Source,
    Verdict,
    verdict_schema,
)
from ray_judge.routing.tiers import Cascade, read_judged
from ray_judge.run.columns import plain
from ray_judge.run.plan import check_unchanged, chosen_sides, open_shard, read_slices

STRONG = ("strong_verdict", "strong_prob", "strong_model", "strong_cost_usd")
Paid = Mapping[str, tuple[Answer | None, Decimal]]
"""Question key → its final answer, if it has one, and what all attempts at it cost, US dollars."""
Asked = Sequence[tuple[str, bool]]
"""The questions of one row: their keys, and whether this row pays for them."""


def merge(cascade: Cascade, routed: pl.DataFrame, asked: pl.DataFrame, paid: Paid) -> None:
    """Write every scored shard that is not there, or outdated. `asked`: rows, `question_keys`."""
    plan, done = cascade.plan, cascade.run.scored()
    whole = with_payers(routed.join(asked, on=["chunk", "row"], how="left"))
    chunks = whole.partition_by("chunk", as_dict=True)

    def calls() -> Iterator[tuple[Any, ...]]:
        for number, shard in enumerate(plan.shards):
            if shard.name in done:
                continue
            here = [chunks[chunk.name,] for chunk in plan.chunks_of(number)]
            rows = pl.concat(here) if here else whole.clear()
            keys = rows["question_keys"].explode().unique()
            answers = {key: paid[key] for key in keys if key in paid}
            yield cascade, number, rows, answers

    for _ in call_each(merge_shard, calls()):
        pass


def with_payers(routed: pl.DataFrame) -> pl.DataFrame:
    """The rows in order, with `pays` per question: of identical rows the first one pays for it."""
    rows = routed.sort("chunk", "row").select("chunk", "row", "route", "question_keys")
    paying = (
        rows.filter(pl.col("route") != Route.ACCEPT.value)
        .explode("question_keys")
        .with_columns(pays=pl.col("question_keys").is_first_distinct())
        .group_by("chunk", "row")
        .agg("pays")
    )
    return rows.join(paying, on=["chunk", "row"], how="left", maintain_order="left")


def merge_shard(cascade: Cascade, number: int, routed: pl.DataFrame, answers: Paid) -> None:
    """Write one scored shard, chunk by chunk, under its final name only when it is whole."""
    config, plan, run = cascade.config, cascade.plan, cascade.run
    shard = plan.shards[number]
    check_unchanged(shard)
    with open_shard(shard.path) as file:
        source = file.schema_arrow
    strong = config.strong
    added = verdict_schema(config.task, config.alternatives(), strong_prob=strong.samples > 1)
    preferences = [pa.field(CHOSEN_IS, pa.string())] if plan.columns.chosen else []
    schema = pa.schema([*source, *preferences, *added], metadata=source.metadata)
    decided = routed.partition_by("chunk", as_dict=True)
    with (
        run.storage.write_stream(f"scored/{shard.name}") as sink,
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        chunks = plan.chunks_of(number)
        slices = read_slices(shard.path, [chunk.rows for chunk in chunks])
        for chunk, rows in zip(chunks, slices, strict=True):
            if len(rows) != chunk.rows:
                raise InputChangedError("this shard has fewer rows than before", file=shard.path)
            routes: dict[int, tuple[str, Asked]] = {
                row: (route, list(zip(keys or (), pays or (), strict=True)) if pays else ())
                for _, row, route, keys, pays in decided[chunk.name,].rows()
            }
            judged, _ = read_judged(run, len(config.judges), chunk.name)
            columns = verdict_columns(judged, routes, answers, added, strong)
            sides = (
                [pa.array(chosen_sides(plain(rows), plan.columns), pa.string())]
                if preferences
                else []
            )
            table = pa.Table.from_arrays([*rows.columns, *sides, *columns.columns], schema=schema)
            writer.write_table(table, row_group_size=max(1, len(table)))


def verdict_columns(
    judged: pa.Table,
    routed: Mapping[int, tuple[str, Asked]],
    answers: Paid,
    schema: pa.Schema,
    strong: StrongConfig,
) -> pa.Table:
    """Lay the verdict columns of one chunk, in its order. `routed`: row → route and questions."""
    decided = [
        _decide(row["judge_verdict"], row["error"], *routed[row["row"]], answers, strong)
        for row in judged.select(["row", "judge_verdict", "error"]).to_pylist()
    ]
    columns = [
        judged.column(field.name)
        if field.name in LOCAL
        else pa.array([row[field.name] for row in decided], field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _decide(
    local: Verdict | None,
    error: str | None,
    route: str,
    asked: Asked,
    answers: Paid,
    strong: StrongConfig,
) -> dict[str, Any]:
    """The local verdict stands unless the strong judge gave one; where that abstains, a person."""
    decided: dict[str, Any] = {
        "route": route,
        "outcome": Outcome.NOT_NEEDED.value if local is not None else Outcome.FAILED.value,
        **dict.fromkeys(STRONG),
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
