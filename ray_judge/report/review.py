"""review.parquet: the rows that even the strong judge is unsure of, for a person to judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.errors import CorruptedError
from ray_judge.records import (
    PREFERENCE,
    REQUIRED,
    Example,
    Outcome,
    Shard,
    Task,
    verdict_schema,
)
from ray_judge.run.columns import Columns, plain
from ray_judge.run.directory import REVIEW, Plan, RunDirectory
from ray_judge.run.plan import read_examples, row_groups, row_keys

VERDICTS = ("judge_verdict", "judge_confidence", "strong_verdict", "strong_prob", "error")


def write_review(run: RunDirectory, plan: Plan, task: Task) -> None:
    """Write review.parquet from the scored shards, in the order of the input.

    A chunk is a row group of its scored shard, and the most that is held at once. Written anew,
    the file has the same bytes. Raises CorruptedError for a scored shard that is damaged.
    """
    schema = review_schema(task, plan.columns)
    with (
        run.storage.write_stream(REVIEW) as sink,
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        for shard in plan.shards:
            try:
                for table in _abstained(run, shard, plan.columns, schema):
                    writer.write_table(table)
            except pa.ArrowException as error:
                said, file = f"a scored shard is damaged: {error}", f"scored/{shard.name}"
                raise CorruptedError(said, file=file) from None


def review_schema(task: Task, columns: Columns) -> pa.Schema:
    """`shard` and `row` (from 0) name the input row, `row_key` is its id where it has one.

    The texts are under the names of their roles (`instruction`, `response_a`, ...), whatever the
    input calls them: those that the input has.
    """
    verdicts = verdict_schema(task, (), strong_prob=True)
    return pa.schema(
        [
            pa.field("shard", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("row_key", pa.string(), nullable=False),
            *(pa.field(role, pa.string()) for role in _shown(columns)),
            *(verdicts.field(name) for name in VERDICTS),
        ]
    )


def _abstained(
    run: RunDirectory, shard: Shard, columns: Columns, schema: pa.Schema
) -> Iterator[pa.Table]:
    """The abstained rows of one shard, row group by row group; the texts of no other are read."""
    identity = [columns.id] if columns.id else []
    wanted = list(dict.fromkeys([*columns.text.values(), *identity, *VERDICTS]))
    path = f"scored/{shard.name}"
    with run.storage.open_input(path) as source, pq.ParquetFile(source) as file:
        for group, begin, end in row_groups(file):
            outcomes = file.read_row_group(group, columns=["outcome"]).column(0).to_pylist()
            chosen = [n for n, outcome in enumerate(outcomes) if outcome == Outcome.ABSTAINED]
            if chosen:
                rows = file.read_row_group(group, columns=wanted)
                texts = _texts(rows, columns)
                keys = row_keys(rows, columns, shard.name, range(begin, end))
                made: dict[str, Any] = {
                    "shard": [shard.name] * len(chosen),
                    "row": [begin + n for n in chosen],
                    "row_key": [keys[n] for n in chosen],
                    **{role: [found[n] or None for n in chosen] for role, found in texts.items()},
                    **{name: rows[name].take(chosen) for name in VERDICTS},
                }
                yield pa.table(made, schema=schema)


def _shown(columns: Columns) -> list[str]:
    """The roles whose texts a person gets; of a preference under the letters that were judged."""
    letters = dict(zip(PREFERENCE, REQUIRED["pairwise"][1:], strict=True))
    there = [letters.get(role, role) for role in columns.text if role != "turns"]
    return list(dict.fromkeys(["instruction", *there]))


def _texts(rows: pa.Table, columns: Columns) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {role: [] for role in _shown(columns)}
    for example in read_examples(plain(rows), columns):
        texts: dict[str, str | None] = {}
        if isinstance(example, Example):
            named = [role for role in found if role.startswith("response")]
            texts = {**asdict(example), **dict(zip(named, example.responses, strict=True))}
        for role, values in found.items():
            values.append(texts.get(role))
    return found
