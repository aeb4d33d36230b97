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

    for column in extra:
        if column not in schema.names:
            raise _missing(schema, "judge.prob_columns", column, path)
    ids = "id must be text or whole numbers"
    labels = "label must be text or numbers (name another in columns.label, or say null)"
    checks: list[tuple[str | None, Callable[[pa.DataType], bool], str]] = [
        *((column, is_text, f"{role} must be text") for role, column in text.items()),
        (key, lambda kind: is_text(kind) or pa.types.is_integer(kind), ids),
        (label, _is_label, labels),
        *((column, _is_number, "probabilities must be numbers") for column in extra),
    ]
    for column, fits, wanted in checks:
        kind = schema.field(column).type if column else None
        if kind is not None and not fits(kind):
            raise InputError(f"{wanted}, this column is {kind}", file=path, column=column)
    if (by := config.route.audit_by) and by not in schema.names:
        raise _missing(schema, "route.audit_by", by, path)
    if by and pa.types.is_nested(kind := schema.field(by).type):
        said = f"route.audit_by must be a column of plain values, this one is {kind}"
        raise InputError(said, file=path, column=by)
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
    return InputError(
        f"there is no such column for {role}{nearest(column, schema.names)}; "
        f"this shard has {', '.join(schema.names)}",
        file=path,
        column=column,
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, decoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
    return kind in texts


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or pa.types.is_boolean(kind) or is_text(kind) or _is_number(kind)


def read_labels(values: pl.Series, config: RunConfig, **where: str) -> pl.Series:
    """Turn the values of a label column into verdicts, null where they are null.

    Raises InputError for values that are no verdicts and that `labels` does not name.
    """
    pairwise, plain = config.task == "pairwise", values.dtype.is_numeric()
    if not plain and values.dtype != pl.Boolean:
        values = values.cast(pl.String, strict=False)
    found: dict[Any, str | float | None] = {}
    for value in values.unique().drop_nulls().to_list():
        found[value] = config.labels.get(label_text(value))
        if found[value] is None and pairwise and value in PAIRWISE_ALTERNATIVES:
            found[value] = value
        elif found[value] is None and not pairwise and plain and math.isfinite(value):
            found[value] = float(value)
    strange = [value for value, verdict in found.items() if verdict is None]
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
