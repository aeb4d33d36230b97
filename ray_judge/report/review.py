"""review.parquet: the rows that even the strong judge is unsure of, for a person to judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.errors import CorruptedError
from ray_judge.records import OPTIONAL, REQUIRED, Example, Outcome, Shard, Task, verdict_schema
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
                for table in _abstained(run, shard, plan.columns, task):
                    writer.write_table(table)
            except pa.ArrowException as error:
                said, file = f"a scored shard is damaged: {error}", f"scored/{shard.name}"
                raise CorruptedError(said, file=file) from None


def review_schema(task: Task, columns: Columns) -> pa.Schema:
    """`shard` and `row` (from 0) name the input row, `row_key` is its id where it has one.

    The texts are under the names of their roles (`instruction`, `response_a`, ...), whatever the
    input calls them, as they were judged.
    """
    verdicts = verdict_schema(task, (), strong_prob=True)
    return pa.schema(
        [
            pa.field("shard", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("row_key", pa.string(), nullable=False),
            *(pa.field(role, pa.string()) for role in _roles(task, columns)),
            *(verdicts.field(name) for name in VERDICTS),
        ]
    )


def _abstained(run: RunDirectory, shard: Shard, columns: Columns, task: Task) -> Iterator[pa.Table]:
    """The abstained rows of one shard, row group by row group; the texts of no other are read."""
    identity = [columns.id] if columns.id else []
    wanted = list(dict.fromkeys([*columns.text.values(), *identity, *VERDICTS]))
    path, roles = f"scored/{shard.name}", _roles(task, columns)
    with run.storage.open_input(path) as source, pq.ParquetFile(source) as file:
        for group, begin, end in row_groups(file):
            outcomes = file.read_row_group(group, columns=["outcome"]).column(0).to_pylist()
            chosen = [n for n, outcome in enumerate(outcomes) if outcome == Outcome.ABSTAINED]
            if chosen:
                rows = file.read_row_group(group, columns=wanted)
                examples = read_examples(plain(rows).take(chosen), columns)
                keys = row_keys(rows, columns, shard.name, range(begin, end))
                made: dict[str, Any] = {
                    "shard": [shard.name] * len(chosen),
                    "row": [begin + n for n in chosen],
                    "row_key": [keys[n] for n in chosen],
                    **{role: [_text(one, role) for one in examples] for role in roles},
                    **{name: rows[name].take(chosen) for name in VERDICTS},
                }
                yield pa.table(made, schema=review_schema(task, columns))


def _roles(task: Task, columns: Columns) -> tuple[str, ...]:
    return (*REQUIRED[task], *(role for role in OPTIONAL if role in columns.text))


def _text(example: Example | str, role: str) -> str | None:
    if isinstance(example, str):
        return None
    if role.startswith("response"):
        return example.responses[-1 if role == "response_b" else 0]
    found: str | None = getattr(example, role)
    return found
