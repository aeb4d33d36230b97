"""A random sample of the input, as a shard of its own: what `plan` and `calibrate` judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_judge.errors import InputError
from ray_judge.records import CHOSEN_IS, Shard
from ray_judge.run.columns import plain
from ray_judge.run.plan import open_shard, row_groups
from ray_judge.storage.local import open_storage

Rows = npt.NDArray[np.int64]
"""Positions in the whole input: shard after shard, from 0."""


def labelled_rows(shards: Sequence[Shard], column: str) -> Rows:
    """Positions of the rows whose label is not null. Raises InputError for no such column."""
    if column == CHOSEN_IS:
        return np.arange(sum(shard.rows for shard in shards), dtype=np.int64)
    found, first = [], 0
    for shard in shards:
        with open_shard(shard.path) as file:
            if column not in file.schema_arrow.names:
                raise InputError("there is no such column", file=shard.path, column=column)
            labels = file.read(columns=[column]).column(0)
        known = np.asarray(pc.is_valid(labels).to_numpy(), dtype=bool)
        found.append(first + np.flatnonzero(known))
        first += shard.rows
    return np.concatenate(found).astype(np.int64)


def draw(rows: Rows, count: int | None, seed: int = 0) -> Rows:
    """Draw `count` of these positions at random, in rising order; all of them where fewer."""
    if count is None or count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def take(shards: Sequence[Shard], rows: Rows, columns: Sequence[str]) -> pa.Table:
    """Read rows at rising positions, decoding only the row groups that they lie in."""
    parts, first = [], 0
    for shard in shards:
        inside = rows[(rows >= first) & (rows < first + shard.rows)] - first
        first += shard.rows
        if not len(inside):
            continue
        with open_shard(shard.path) as file:
            for number, begin, end in row_groups(file):
                here = inside[(inside >= begin) & (inside < end)] - begin
                if len(here):
                    group = file.read_row_group(number, columns=list(columns))
                    parts.append(plain(group).take(pa.array(here)))
    # shards may keep text in different types, and a column without values in none
    return pa.concat_tables(parts, promote_options="permissive")


def write_sample(folder: str, table: pa.Table) -> str:
    """Write the sample as `sample/rows.parquet` in a folder or URI; give its path."""
    storage = open_storage(folder)
    with storage.write_stream("sample/rows.parquet") as sink:
        pq.write_table(table, sink, compression="zstd")
    return f"{storage.uri}/sample/rows.parquet"
