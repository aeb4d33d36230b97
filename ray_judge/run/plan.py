"""The input as found: which shards, whether they can be judged, and how to read a slice.

What can be known before money is spent is refused here, naming file, column and row. A text that
is null, empty or undecodable is only its own row's error: see `read_examples`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_judge.config import RunConfig
from ray_judge.errors import InputChangedError, InputError, StorageError
from ray_judge.records import OPTIONAL, Example, Shard
from ray_judge.run.columns import Columns, is_text, read_labels, resolve_columns
from ray_judge.storage.local import open_storage

BATCH = 4096
"""Rows that are decoded at a time."""
SUFFIXES = (".parquet", ".parq", ".pq")
WILD = frozenset("*?[")
log = logging.getLogger(__name__)
AT_ONCE = 8
"""Shards that are looked at together while planning (hashing and I/O leave Python's lock)."""


def plan_input(config: RunConfig, extra: Sequence[str]) -> tuple[list[Shard], Columns]:
    """Find, check and fingerprint every shard. Raises InputError."""
    shards: list[Shard] = []
    columns: Columns | None = None
    first: tuple[str, pa.Schema] | None = None
    found = [(f"{root.rstrip('/')}/{name}", name) for root, name in find_shards(config.input)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (path, name), (schema, rows, print_) in zip(
            found, pool.map(_inspect, [path for path, _ in found]), strict=True
        ):
            columns = resolve_columns(config, schema, extra, path)
            first = first or (path, schema)
            _same_schema(first, (path, schema))
            if rows == 0 and not config.allow_empty_shards:
                raise InputError(
                    "this shard has no rows: remove it, or say allow_empty_shards: true", file=path
                )
            shards.append(Shard(path, name, rows, print_))
    if columns is None or not sum(shard.rows for shard in shards):
        raise InputError("there is nothing to judge: the input has no rows", input=config.input)
    if columns.id:
        _unique_ids(shards, columns.id)
    if columns.label:
        parts = [_read_column(shard.path, columns.label) for shard in shards]
        where = {"file": shards[0].path} if len(shards) == 1 else {"input": config.input}
        read_labels(pl.concat(parts), config, **where, column=columns.label)
    return shards, columns


def _read_column(path: str, column: str) -> pl.Series:
    with open_shard(path) as file:
        return pl.Series(pl.from_arrow(file.read(columns=[column]).column(0)))


def _inspect(path: str) -> tuple[pa.Schema, int, str]:
    with open_shard(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    return schema, rows, fingerprint(path)


def find_shards(uri: str) -> list[tuple[str, str]]:
    """List (root, name) of every Parquet file that a file, folder, glob or URI stands for.

    In a glob `*` stays within a folder and `**` crosses folders. Names that begin with a dot or
    an underscore are left out, unless the file itself is named.
    """
    local, path = "://" not in uri, Path(uri).expanduser().absolute()
    if local and path.is_file():
        return [(str(path.parent), path.name)]
    if local and not path.exists() and not WILD & set(uri):
        raise InputError("there is no such file or folder", input=uri)
    parts = (str(path) if local else uri).split("/")
    wild = [n for n, part in enumerate(parts) if WILD & set(part)]
    cut = len(parts) - (not local and uri.endswith(SUFFIXES))
    if wild and not (local and path.is_dir()):
        cut = wild[0]
    storage, pattern = open_storage("/".join(parts[:cut]) or "/"), parts[cut:]
    listed = storage.list("")
    if any("_delta_log" in name.split("/") for name in listed):
        said = "this is a Delta table, whose log says which files count: write plain Parquet first"
        raise InputError(said, input=uri)
    found = [
        name
        for name in listed
        if (_matches(name.split("/"), pattern) if pattern else name.lower().endswith(SUFFIXES))
    ]
    hidden = [n for n in found if any(part.startswith((".", "_")) for part in n.split("/"))]
    if hidden:
        said = "not taken, since names with a leading _ or . are no data by custom: %s"
        log.warning(said, ", ".join(hidden[:10]))
    if not (names := [name for name in found if name not in hidden]):
        raise InputError("no Parquet shards here (*.parquet)", input=uri)
    return [(storage.uri, name) for name in names]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or bool(parts and _matches(parts[1:], pattern))
    here = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return here and _matches(parts[1:], pattern[1:])


@contextmanager
def open_shard(path: str) -> Iterator[pq.ParquetFile]:
    """Open a shard for reading. Raises InputError."""
    root, _, name = path.rpartition("/")
    try:
        with pq.ParquetFile(open_storage(root).open_input(name), pre_buffer=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"not a readable Parquet file: {reason}", file=path) from None
    except StorageError as error:
        raise InputError(f"cannot read this shard: {error.message}", file=path) from None


def _same_schema(first: tuple[str, pa.Schema], other: tuple[str, pa.Schema]) -> None:
    (first_path, wanted), (path, schema) = first, other
    for name in sorted(set(wanted.names) | set(schema.names)):
        pair = here, there = _kind(schema, name), _kind(wanted, name)
        if here != there and ("missing" in pair or "null" not in pair):
            raise InputError(
                f"shards differ: {here} here, {there} in {first_path}", file=path, column=name
            )


def _kind(schema: pa.Schema, name: str) -> str:
    """The type of a column; how its writer keeps text makes no difference."""
    if name not in schema.names:
        return "missing"
    kind = schema.field(name).type
    return "text" if is_text(kind) else str(kind)


def _unique_ids(shards: Sequence[Shard], column: str) -> None:
    """Refuse a null id and an id that two rows have, naming both."""
    parts = []
    for shard in shards:
        with open_shard(shard.path) as file:
            ids = file.read(columns=[column]).column(0)
        if ids.null_count:
            row = pc.index(ids.is_null(), True).as_py()
            raise InputError("id is null", file=shard.path, column=column, row=row)
        found = pl.DataFrame({"id": pl.from_arrow(_bytes(ids) if is_text(ids.type) else ids)})
        parts.append(found.with_row_index("row").with_columns(path=pl.lit(shard.path)))
    table = pl.concat(parts)
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

    On an object store the footer stands for the bytes: it has every page's size, offset and
    statistics, and to read a terabyte in order to plan a night would be dear.
    """
    if "://" not in path:
        with open(path, "rb") as local:
            return hashlib.file_digest(local, "sha256").hexdigest()
    root, _, name = path.rpartition("/")
    with open_storage(root).open_input(name) as file:
        size = file.size()
        file.seek(max(0, size - 8))
        tail = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, size - tail))
        return f"{size}-{hashlib.sha256(file.read()).hexdigest()}"


def check_unchanged(shard: Shard) -> None:
    """Raise InputChangedError when a shard is not what it was when the run was planned."""
    try:
        now = fingerprint(shard.path)
    except (OSError, StorageError):
        now = None
    if now != shard.fingerprint:
        raise InputChangedError(
            "this shard is gone" if now is None else "this shard changed since the run began",
            file=shard.path,
        )


def row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Give each row group's number, its first row, and the first row behind it."""
    end = 0
    for number in range(file.num_row_groups):
        begin, end = end, end + file.metadata.row_group(number).num_rows
        yield number, begin, end


def read_rows(path: str, start: int, rows: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a slice of a shard, decoding only the row groups that it touches."""
    with open_shard(path) as file:
        touched = [g for g in row_groups(file) if g[1] < start + rows and g[2] > start]
        skip = start - touched[0][1] if touched else 0
        before = [BATCH] * (skip // BATCH) + [skip % BATCH]
        for table in _cut(file, [*before, rows], [g[0] for g in touched], columns):
            found = table
        return found


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
    texts = [decode(table.column(name)) for name in columns.text.values()]
    return [_example(dict(zip(columns.text, row, strict=True))) for row in zip(*texts, strict=True)]


def _example(values: Mapping[str, str | bytes | None]) -> Example | str:
    clean: dict[str, str] = {}
    for role, value in values.items():
        if isinstance(value, bytes):
            return f"input: {role} is not UTF-8 text"
        if role not in OPTIONAL and not (value and value.strip()):
            return f"input: {role} is {'null' if value is None else 'empty'}"
        if value:
            clean[role] = value
    named = ("response_a", "response_b", "response")
    responses = tuple(clean.pop(role) for role in named if role in clean)
    return Example(responses=responses, **clean)


def decode(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """Give text per row; bytes where they are not UTF-8."""
    values: list[str | bytes | None] = []
    for value in _bytes(column).to_pylist():
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            values.append(value)
    return values


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text of any type as bytes, whether or not they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_binary())


def row_keys(table: pa.Table, columns: Columns, shard: str, positions: Sequence[int]) -> list[str]:
    """Name each row: its id, else its shard and position (both sort as they should)."""
    if not columns.id:
        return [f"{shard}#{position:012d}" for position in positions]
    ids = table.column(columns.id)
    if is_text(ids.type):
        return [key.hex() if isinstance(key, bytes) else str(key) for key in decode(ids)]
    return [f"{n:020d}" if n >= 0 else f"-{n + (1 << 63):020d}" for n in ids.to_pylist()]
