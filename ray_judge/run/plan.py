"""The input as found: which shards, whether they can be judged, and how to read a slice.

What can be known before money is spent is refused here, naming file, column and row. A text that
is null, empty or undecodable is only its own row's error: see `read_examples`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_judge.config import LabelRule, RunConfig
from ray_judge.errors import InputChangedError, InputError, StorageError
from ray_judge.records import CHOSEN_IS, Example, Shard
from ray_judge.run.columns import (
    RESPONSES,
    Columns,
    as_bytes,
    as_series,
    decode,
    is_messages,
    is_text,
    name_kind,
    plain,
    resolve_columns,
    values_of,
    with_kinds,
)
from ray_judge.run.conversations import WHOLE, Unfit, as_text, draw, part_ways, read_value
from ray_judge.run.directory import Plan
from ray_judge.run.files import find_shards, format_of
from ray_judge.run.labels import label_columns, labels_of
from ray_judge.run.staging import Numbers, stage
from ray_judge.storage.hub import open_source

BATCH = 4096
"""Rows that are decoded at a time."""
log = logging.getLogger(__name__)
AT_ONCE = 8
"""Shards that are looked at together while planning (hashing and I/O leave Python's lock)."""


def plan_input(config: RunConfig, extra: Sequence[str]) -> Plan:
    """Find, check and fingerprint every shard. Raises InputError."""
    shards: list[Shard] = []
    columns: Columns | None = None
    first: tuple[str, pa.Schema] | None = None
    used = {config.route.audit_by} if config.route.audit_by else set()
    places = {"output": config.output, "strong.books": config.strong.books}
    names, left = find_shards(config.input, places)
    if left:
        log.warning("not taken: %s", ", ".join(left))
    found = [(f"{root.rstrip('/')}/{name}", name) for root, name in names]
    inspect = partial(_inspect, numbers=_numbers(config, extra), output=config.output)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for schema, shard in pool.map(inspect, found):
            path = shard.named
            columns = resolve_columns(config, schema, extra, path)
            labels = label_columns(config, columns.label) if columns.label else []
            used |= {*columns.needed(), *labels}
            first = first or (path, schema)
            _same_schema(first, (path, schema), used)
            first = (first[0], _filled(first[1], schema))
            if shard.rows == 0 and not config.allow_empty_shards:
                raise InputError(
                    "this shard has no rows: remove it, or say allow_empty_shards: true", file=path
                )
            shards.append(shard)
    if columns is None or first is None or not sum(shard.rows for shard in shards):
        raise InputError("there is nothing to judge: the input has no rows", input=config.input)
    filled = next(shard for shard in shards if shard.rows)
    head = read_rows(filled.path, 0, BATCH, list(columns.text.values()))
    columns = with_kinds(config, columns, head, first[1], filled.named)
    known = {c for judge in config.judges for c in (judge.prob_columns or {}).values()}
    for column in filter(known.__contains__, columns.extra):
        _check_probabilities(filled, column)
    if columns.id:
        _unique_ids(shards, columns.id)
    if columns.label and columns.label != CHOSEN_IS:
        where = {"file": shards[0].named} if len(shards) == 1 else {"input": config.input}
        named = label_columns(config, columns.label)
        table = pa.table({name: _read_column(shards, name).to_arrow() for name in named})
        labels_of(table, columns.label, config, **where, column=columns.label)
    if config.route.audit_by:
        _read_column(shards, config.route.audit_by)
    return Plan(tuple(shards), columns, config.chunk_rows, tuple(left))


def _check_probabilities(shard: Shard, column: str) -> None:
    """Refuse a column of other numbers, such as logits, by its first rows."""
    values = as_series(read_rows(shard.path, 0, BATCH, [column]).column(0))
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    if len(known) and not known.is_between(0, 1.001).any():
        said = f"none of the first {len(known):,} values is a probability, such as {known[0]:g}"
        raise InputError(said, file=shard.named, column=column)


def _read_column(shards: Sequence[Shard], column: str) -> pl.Series:
    """The values of a column in all shards. Raises InputError for text that is not UTF-8."""
    parts = []
    for shard in shards:
        with open_shard(shard.path) as file:
            values = file.read(columns=[column]).column(0)
        parts.append(as_series(values, file=shard.named, column=column).alias(column).to_frame())
    return pl.concat(parts, how="vertical_relaxed").to_series()


def _inspect(found: tuple[str, str], numbers: Numbers, output: str) -> tuple[pa.Schema, Shard]:
    """One shard and its schema; what is no Parquet is staged as such."""
    (path, name), source, print_ = found, None, ""
    if format_of(name) != "Parquet":
        source, name = path, f"{name}.parquet"
        try:
            print_ = fingerprint(source)
        except (OSError, StorageError) as error:
            raise InputError(f"cannot read this shard: {error}", file=path) from None
        path = stage(source, name, print_, numbers, output)
    with open_shard(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    return schema, Shard(path, name, rows, print_ or fingerprint(path), source)


def _numbers(config: RunConfig, extra: Sequence[str]) -> Numbers:
    """The columns that are numbers even in a CSV file, all of which is text."""
    label, turns = config.columns.get("label", "label"), config.columns.get("turns")
    named = [*extra, *(label.names() if isinstance(label, LabelRule) else ())]
    if config.task == "pointwise" and isinstance(label, str):
        named.append(label)
    return {**dict.fromkeys(named, float), **({turns: int} if isinstance(turns, str) else {})}


@contextmanager
def open_shard(path: str) -> Iterator[pq.ParquetFile]:
    """Open a shard for reading. Raises InputError."""
    root, _, name = path.rpartition("/")
    try:
        with pq.ParquetFile(open_source(root).open_input(name), pre_buffer=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"not a readable Parquet file: {reason}", file=path) from None
    except StorageError as error:
        raise InputError(f"cannot read this shard: {error.message}", file=path) from None


def _same_schema(
    first: tuple[str, pa.Schema], other: tuple[str, pa.Schema], used: Collection[str]
) -> None:
    """Refuse shards that differ in a column that the run reads; others are only written back."""
    (first_path, wanted), (path, schema) = first, other
    for name in sorted(used):
        pair = here, there = _kind(schema, name), _kind(wanted, name)
        if here != there and ("missing" in pair or "null" not in pair):
            raise InputError(
                f"shards differ: {here} here, {there} in {first_path}", file=path, column=name
            )


def _filled(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The schema, with the other's types for columns that have no value in it."""
    empty = [f.name for f in schema if f.type == pa.null() and f.name in other.names]
    return pa.schema([other.field(f.name) if f.name in empty else f for f in schema])


def _kind(schema: pa.Schema, name: str) -> str:
    kind = name_kind(schema.field(name).type) if name in schema.names else "missing"
    return "messages" if is_messages(kind) else kind  # whatever else their writer keeps in them


def _unique_ids(shards: Sequence[Shard], column: str) -> None:
    """Refuse a null id and an id that two rows have, naming both."""
    parts = []
    for shard in shards:
        with open_shard(shard.path) as file:
            ids = file.read(columns=[column]).column(0)
        if ids.null_count:
            row = pc.index(ids.is_null(), True).as_py()
            raise InputError("id is null", file=shard.named, column=column, row=row)
        found = pl.DataFrame({"id": pl.from_arrow(as_bytes(ids) if is_text(ids.type) else ids)})
        parts.append(found.with_row_index("row").with_columns(path=pl.lit(shard.named)))
    table = pl.concat(parts, how="vertical_relaxed")
    twice = table.filter(pl.col("id").is_duplicated())
    if len(twice):
        first = twice["id"][0]
        rows = twice.filter(pl.col("id") == first).head(2).to_dicts()
        places = " and ".join("{path} row {row}".format(**row) for row in rows)
        shown = first.decode(errors="backslashreplace") if isinstance(first, bytes) else first
        said = f"{twice['id'].n_unique()} ids occur more than once, the first, {shown!r}, in "
        raise InputError(said + places, file=rows[1]["path"], column=column, row=rows[1]["row"])


def fingerprint(path: str) -> str:
    """Give what changes whenever the bytes do: SHA-256 of the file.

    Of Parquet on an object store the footer stands for the bytes: it has every page's size,
    offset and statistics, and to read a terabyte in order to plan a night would be dear.
    """
    if "://" not in path:
        with open(path, "rb") as local:
            return hashlib.file_digest(local, "sha256").hexdigest()
    root, _, name = path.rpartition("/")
    with open_source(root).open_input(name) as file:
        if format_of(name) != "Parquet":
            return hashlib.file_digest(file, "sha256").hexdigest()
        size = file.size()
        file.seek(max(0, size - 8))
        tail = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, size - tail))
        return f"{size}-{hashlib.sha256(file.read()).hexdigest()}"


def check_unchanged(shard: Shard) -> None:
    """Raise InputChangedError when a shard is not what it was when the run was planned."""
    try:
        now = fingerprint(shard.named)
    except (OSError, StorageError):
        now = None
    if now != shard.fingerprint:
        raise InputChangedError(
            "this shard is gone" if now is None else "this shard changed since the run began",
            file=shard.named,
        )


def row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Give each row group's number, its first row, and the first row behind it."""
    end = 0
    for number in range(file.num_row_groups):
        begin, end = end, end + file.metadata.row_group(number).num_rows
        yield number, begin, end


def read_rows(path: str, start: int, rows: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a slice of a shard, its text plain, decoding only the row groups that it touches."""
    with open_shard(path) as file:
        touched = [g for g in row_groups(file) if g[1] < start + rows and g[2] > start]
        skip = start - touched[0][1] if touched else 0
        before = [BATCH] * (skip // BATCH) + [skip % BATCH]
        for table in _cut(file, [*before, rows], [g[0] for g in touched], columns):
            found = table
        return plain(found)


def read_slices(path: str, sizes: Sequence[int]) -> Iterator[pa.Table]:
    """Read a shard once, in slices of these sizes; where it has fewer rows the last are shorter."""
    with open_shard(path) as file:
        yield from _cut(file, sizes)


def _cut(
    file: pq.ParquetFile,
    sizes: Sequence[int],
    groups: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    batches = file.iter_batches(BATCH, row_groups=groups, columns=columns)
    rest = file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)
    for size in sizes:
        parts, held = [rest], len(rest)
        while held < size and (batch := next(batches, None)) is not None:
            parts.append(pa.Table.from_batches([batch]))
            held += batch.num_rows
        whole = pa.concat_tables(parts)
        yield whole.slice(0, size)
        rest = whole.slice(size)


def read_examples(table: pa.Table, columns: Columns) -> list[Example | str]:
    """Turn rows into examples; text instead of an example says why the row has none."""
    return [example for example, _ in _read(table, columns)]


def chosen_sides(table: pa.Table, columns: Columns) -> list[str | None]:
    """Under which letter, A or B, each row's chosen response is judged; null: it has no text."""
    return [side for _, side in _read(table, columns)]


def _read(table: pa.Table, columns: Columns) -> list[tuple[Example | str, str | None]]:
    texts = [values_of(table.column(name)) for name in columns.text.values()]
    made = []
    for row in zip(*texts, strict=True):
        try:
            made.append(_example(dict(zip(columns.text, row, strict=True)), columns))
        except Unfit as error:
            made.append((f"input: {error}", None))
    return made


def _example(values: dict[str, Any], columns: Columns) -> tuple[Example | str, str | None]:
    count, clean = values.pop("turns", None), {}
    for role, value in values.items():
        if isinstance(value, bytes):
            raise Unfit(f"{role} is not UTF-8 text")
        clean[role] = read_value(value, columns.kinds.get(role), role) if value else value
    named = [role for role in RESPONSES if role in clean]
    turns: tuple[tuple[str, str], ...] = ()
    if columns.kinds:
        turns = _converse(clean, named, columns.kinds, count)
    _check_texts({role: clean[role] for role in ("instruction", *named)})
    pair, side = [clean.pop(role) for role in named], None
    if columns.chosen:
        chosen, rejected = (draw(clean["instruction"], text) for text in pair)
        side = "A" if chosen <= rejected else "B"
        pair = pair if side == "A" else pair[::-1]
    texts = {role: value for role, value in clean.items() if value}
    return Example(responses=tuple(pair), turns=turns, **texts), side


def _converse(
    clean: dict[str, Any], named: Sequence[str], kinds: Mapping[str, str], count: int | None
) -> tuple[tuple[str, str], ...]:
    """Put texts in place of conversations; give the turns before the responses, if several."""
    whole = all(kinds.get(role) in WHOLE for role in named)
    _check_texts({role: clean.get(role) for role in (*([] if whole else ["instruction"]), *named)})
    asked, said = clean.get("instruction"), {role: clean[role] for role in named}
    if isinstance(asked, str):  # a list has several responses to it, of which one is judged
        for role, texts in said.items():
            if isinstance(texts, list):
                if None in texts:
                    raise Unfit(f"{role} has one that is null")
                said[role] = texts[draw(asked, role) % len(texts)]
    turns, responses = part_ways(asked, said, count)
    clean |= {"instruction": as_text(turns), **dict(zip(named, responses, strict=True))}
    for role in ("instruction", *named):
        try:
            clean[role].encode()
        except UnicodeEncodeError:
            raise Unfit(f"{role} is not UTF-8 text: it has half of a surrogate pair") from None
    return turns if len(turns) > 1 else ()


def _check_texts(values: Mapping[str, Any]) -> None:
    for role, value in values.items():
        if not value or (isinstance(value, str) and not value.strip()):
            raise Unfit(f"{role} is {'null' if value is None else 'empty'}")


def row_keys(table: pa.Table, columns: Columns, shard: str, positions: Sequence[int]) -> list[str]:
    """Name each row: its id, else its shard and position (both sort as they should)."""
    if not columns.id:
        return [f"{shard}#{position:012d}" for position in positions]
    ids = table.column(columns.id)
    if is_text(ids.type):
        return [key.hex() if isinstance(key, bytes) else str(key) for key in decode(ids)]
    return [f"{n:020d}" if n >= 0 else f"-{n + (1 << 63):020d}" for n in ids.to_pylist()]
