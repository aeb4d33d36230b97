"""Which input column plays which role; what does not fit is refused, naming file and column."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.config import RunConfig, label_text, nearest
from ray_judge.errors import ConfigError, InputError
from ray_judge.records import OPTIONAL, PAIRWISE_ALTERNATIVES, REQUIRED, verdict_schema

TEXTS = (
    pa.string(), pa.large_string(), pa.string_view(),
    pa.binary(), pa.large_binary(), pa.binary_view(),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """Which input column plays which role. `text` holds the example's own roles."""

    text: Mapping[str, str]
    id: str | None = None
    label: str | None = None
    extra: tuple[str, ...] = ()

    def needed(self) -> list[str]:
        """Name the columns that phase A reads, each once."""
        wanted = [*self.text.values(), *([self.id] if self.id else []), *self.extra]
        return list(dict.fromkeys(wanted))


def resolve_columns(
    config: RunConfig, schema: pa.Schema, extra: Sequence[str], path: str
) -> Columns:
    """Match roles to this shard's columns and check their types. Raises InputError."""
    taken = verdict_schema(config.task, (), strong_prob=config.strong.samples > 1).names
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InputError("two columns have the same name", file=path, column=name)
        if name in taken:
            said = "this column's name is taken by the output: rename it"
            raise InputError(said, file=path, column=name)
    roles = (*REQUIRED[config.task], *OPTIONAL, "label", "id")
    text = {role: column for role in roles if (column := _column(config, schema, role, path))}
    label, key = text.pop("label", None), text.pop("id", None)
    if len({text[role] for role in REQUIRED[config.task]}) < len(REQUIRED[config.task]):
        raise ConfigError(f"columns: two roles have the same column: {text}")

    by = config.route.audit_by
    named = [*(("a judge's columns", c) for c in extra), *([("route.audit_by", by)] if by else [])]
    for name, column in named:
        if column not in schema.names:
            raise _missing(schema, name, column, path)
    ids = "id must be text or whole numbers"
    labels = "label must be text or numbers (name another in columns.label, or say null)"
    groups = "route.audit_by must be text, numbers, truth values or dates"
    checks: list[tuple[str | None, Callable[[pa.DataType], bool], str]] = [
        *((column, is_text, f"{role} must be text") for role, column in text.items()),
        (key, lambda kind: is_text(kind) or pa.types.is_integer(kind), ids),
        (label, _is_label, labels),
        *((column, _is_number, "probabilities must be numbers") for column in extra),
        (by, lambda kind: _is_label(kind) or _is_date(kind), groups),
    ]
    for column, fits, wanted in checks:
        kind = schema.field(column).type if column else None
        if kind is not None and not fits(kind):
            raise InputError(f"{wanted}, this column is {kind}", file=path, column=column)
    return Columns(text, key, label, tuple(extra))


def _column(config: RunConfig, schema: pa.Schema, role: str, path: str) -> str | None:
    required = role in REQUIRED[config.task]
    column = config.columns.get(role, role)
    if column is None and required:
        raise ConfigError(f"columns.{role} is null, but every example needs it")
    if column is None or column in schema.names:
        return column
    if required or role in config.columns:
        raise _missing(schema, role, column, path)
    return None


def _missing(schema: pa.Schema, role: str, column: str, path: str) -> InputError:
    said = f"there is no such column for {role}{nearest(column, schema.names)}; this shard has "
    said += ", ".join(schema.names) or "no columns"
    if f"/{column}=" in path:
        said += f" ({column}= is in its folder's name, which is no column: write it into the file)"
    return InputError(said, file=path, column=column)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, decoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in TEXTS


def plain(table: pa.Table) -> pa.Table:
    """The same rows, their text neither a view nor decoded, which not all of Arrow works on."""
    fields = [
        field.with_type(pa.large_binary()) if field.type == pa.binary_view()
        else field.with_type(pa.large_string()) if field.type == pa.string_view()
        else field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type)
        else field
        for field in table.schema
    ]  # fmt: skip
    return table.cast(pa.schema(fields))


def decode(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """Give text per row; bytes where they are not UTF-8."""
    values: list[str | bytes | None] = []
    for value in as_bytes(column).to_pylist():
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            values.append(value)
    return values


def as_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text of any type as bytes, whether or not they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_binary())


def as_series(values: pa.ChunkedArray, **where: str) -> pl.Series:
    """A column of plain values. Raises InputError for text that is not UTF-8."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if is_text(values.type):
        try:
            values = as_bytes(values).cast(pa.large_string())
        except pa.ArrowInvalid:
            row = [isinstance(value, bytes) for value in decode(values)].index(True)
            raise InputError("this is not UTF-8 text", **where, row=row) from None
    return pl.Series(pl.from_arrow(values))


def name_kind(kind: pa.DataType) -> str:
    """The type of a column; how its writer keeps text, numbers and lists makes no difference."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_text(kind):
        return "text"
    if _is_number(kind) or pa.types.is_decimal128(kind):
        return "number"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return f"list of {name_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"struct of {', '.join(sorted(f'{f.name}: {name_kind(f.type)}' for f in kind))}"
    return "timestamp" if pa.types.is_timestamp(kind) else str(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_date(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_duration(kind))


def _is_label(kind: pa.DataType) -> bool:
    return name_kind(kind) in ("text", "number", "bool", "null")


def read_labels(values: pl.Series, config: RunConfig, **where: str) -> pl.Series:
    """Turn the values of a label column into verdicts, null where they are null.

    Raises InputError for values that are no verdicts and that `labels` does not name.
    """
    pairwise, numbers = config.task == "pairwise", values.dtype.is_numeric()
    if not numbers and values.dtype != pl.Boolean:
        values = values.cast(pl.String)
    found: dict[Any, str | float | None] = {}
    strange = []
    for value in values.unique().drop_nulls().to_list():
        if (text := label_text(value)) in config.labels:
            found[value] = config.labels[text]
        elif pairwise and value in PAIRWISE_ALTERNATIVES:
            found[value] = value
        elif not pairwise and numbers and math.isfinite(value):
            found[value] = float(value)
        else:
            strange.append(value)
    if strange:
        counts = values.filter(values.is_in(strange)).value_counts(sort=True, name="n")
        listed = [f"{label_text(value)!r} ({n:,} rows)" for value, n in counts.head(10).rows()]
        verdict = "A, B or tie" if pairwise else "a number"
        line = ", ".join(f"{json.dumps(label_text(value))}: ..." for value in counts[:10, 0])
        raise InputError(
            f"these labels are no verdicts: {', '.join(listed)}; a missing label is null. Say what "
            f"they mean ({verdict}): labels: {{{line}}}",
            **where,
        )
    kind = pl.String() if pairwise else pl.Float64()
    return (
        values.replace_strict(found, default=None, return_dtype=kind)
        if found
        else values.cast(kind)
    )
