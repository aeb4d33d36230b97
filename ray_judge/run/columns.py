"""Which input column plays which role, and whether it can.

What does not fit is refused, naming file and column, before anything is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_judge.config import RunConfig, nearest
from ray_judge.errors import ConfigError, InputError
from ray_judge.records import Task, verdict_schema

REQUIRED: Mapping[Task, tuple[str, ...]] = {
    "pairwise": ("instruction", "response_a", "response_b"),
    "pointwise": ("instruction", "response"),
}
OPTIONAL = ("input", "reference", "rubric")


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
    _check_names(config, schema, path)
    text: dict[str, str] = {}
    for role in REQUIRED[config.task]:
        text[role] = _column(config, schema, role, path, required=True) or ""
    for role in OPTIONAL:
        if column := _column(config, schema, role, path, required=False):
            text[role] = column
    for role, column in text.items():
        if not is_text(schema.field(column).type):
            raise InputError(
                f"{role} must be text, this column is {schema.field(column).type}",
                file=path,
                column=column,
            )
    key = _column(config, schema, "id", path, required=False)
    if key and not (is_text(schema.field(key).type) or pa.types.is_integer(schema.field(key).type)):
        raise InputError("id must be text or whole numbers", file=path, column=key)
    for column in extra:
        if column not in schema.names:
            raise _missing(schema, "judge.prob_columns", column, path)
        kind = schema.field(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise InputError(f"probabilities must be numbers, not {kind}", file=path, column=column)
    label = _column(config, schema, "label", path, required=False)
    if label and not _is_label(schema.field(label).type, config.task):
        raise InputError(
            f"label must be {'A, B or tie' if config.task == 'pairwise' else 'a number'}, this "
            f"column is {schema.field(label).type}: name another in columns.label, or say null",
            file=path,
            column=label,
        )
    by = config.route.audit_by
    if by is not None and by not in schema.names:
        raise _missing(schema, "route.audit_by", by, path)
    return Columns(text, key, label, tuple(extra))


def _check_names(config: RunConfig, schema: pa.Schema, path: str) -> None:
    """Refuse a name that two columns have, and one that the output needs."""
    strong_prob = config.strong.samples > 1
    taken = verdict_schema(config.task, (), strong_prob=strong_prob).names
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InputError("two columns have the same name", file=path, column=name)
        if name in taken:
            raise InputError(
                "this column's name is taken by the output: rename it", file=path, column=name
            )


def _column(
    config: RunConfig, schema: pa.Schema, role: str, path: str, *, required: bool
) -> str | None:
    mapped = role in config.columns
    column = config.columns.get(role, role)
    if column is None and required:
        raise ConfigError(f"columns.{role} is null, but every example needs it")
    if column is None or (column not in schema.names and not mapped and not required):
        return None
    if column not in schema.names:
        raise _missing(schema, role, column, path)
    return column


def _missing(schema: pa.Schema, role: str, column: str, path: str) -> InputError:
    """Say that a shard lacks a column, which ones it has, and which of them may be meant."""
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
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _is_label(kind: pa.DataType, task: Task) -> bool:
    """Whether a verdict of this task can equal a value of this type."""
    if pa.types.is_null(kind):
        return True
    if task == "pairwise":
        return is_text(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
