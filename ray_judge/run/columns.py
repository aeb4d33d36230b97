"""Which input column plays which role; what does not fit is refused, naming file and column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.config import LabelRule, RunConfig, nearest
from ray_judge.errors import ConfigError, InputError
from ray_judge.records import (
    CHOSEN_IS,
    OPTIONAL,
    PREFERENCE,
    REQUIRED,
    verdict_schema,
)
from ray_judge.run.conversations import WHOLE, kind_of

TEXTS = (
    pa.string(), pa.large_string(), pa.string_view(),
    pa.binary(), pa.large_binary(), pa.binary_view(),
)  # fmt: skip
RESPONSES = ("response_a", "response_b", *PREFERENCE, "response")
SAID = ("instruction", *RESPONSES)
"""Roles that may be messages."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which input column plays which role. `text` holds the example's own roles.

    `kinds`: of roles that are no plain text, how they are kept (`conversations.py`).
    """

    text: Mapping[str, str]
    id: str | None = None
    label: str | None = None
    extra: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def chosen(self) -> bool:
        """Whether the rows are preferences: pairs of a chosen and a rejected response."""
        return PREFERENCE[0] in self.text

    def needed(self) -> list[str]:
        """Name the columns that phase A reads, each once."""
        wanted = [*self.text.values(), *([self.id] if self.id else []), *self.extra]
        return list(dict.fromkeys(wanted))


def resolve_columns(
    config: RunConfig, schema: pa.Schema, extra: Sequence[str], path: str
) -> Columns:
    """Match roles to this shard's columns and check their types. Raises InputError."""
    roles = _roles(config, schema)
    chosen = PREFERENCE[0] in roles
    taken = verdict_schema(config.task, (), strong_prob=config.strong.samples > 1).names
    taken += [CHOSEN_IS] if chosen else []
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InputError("two columns have the same name", file=path, column=name)
        if name in taken:
            said = "this column's name is taken by the output: rename it"
            raise InputError(said, file=path, column=name)
    _check_preset(config, schema, path)
    text = {role: column for role in roles if (column := _column(config, schema, role, path))}
    key, rule = text.pop("id", None), config.columns.get("label", "label")
    label = _label(config, schema, chosen, path)
    responses = [text[role] for role in roles[1:] if role in RESPONSES]
    if len({*responses, text.get("instruction")}) < 1 + len(responses):
        raise ConfigError(f"columns: two roles have the same column: {text}")

    by = config.route.audit_by
    named = [*(("a judge's columns", c) for c in extra), *([("route.audit_by", by)] if by else [])]
    for name, column in named:
        if column not in schema.names:
            raise _missing(schema, name, column, path)
    ids = "id must be text or whole numbers"
    labels = "label must be text or numbers (name another in columns.label, or say null)"
    groups = "route.audit_by must be text, numbers, truth values or dates"
    ruled = list(rule.names()) if isinstance(rule, LabelRule) else []
    checks: list[tuple[str | None, Callable[[pa.DataType], bool], str]] = [
        *((text[r], is_text, f"{r} must be text") for r in OPTIONAL if r in text),
        *((text[r], _is_said, f"{r} must be text or messages") for r in SAID if r in text),
        (text.get("turns"), pa.types.is_integer, "turns must be whole numbers"),
        (key, lambda kind: is_text(kind) or pa.types.is_integer(kind), ids),
        (None if ruled or label == CHOSEN_IS else label, _is_label, labels),
        *((column, _is_flag, "label must be numbers or truth values") for column in ruled),
        *((column, _is_number, "probabilities must be numbers") for column in extra),
        (by, lambda kind: _is_label(kind) or _is_date(kind), groups),
    ]
    unsaid = {*ruled, *text.values()}  # in a shard without values
    for column, fits, wanted in checks:
        kind = schema.field(column).type if column else None
        if kind is not None and not fits(kind) and not (kind == pa.null() and column in unsaid):
            raise InputError(f"{wanted}, this column is {kind}", file=path, column=column)
    return Columns(text, key, label, tuple(extra))


def _roles(config: RunConfig, schema: pa.Schema) -> tuple[str, ...]:
    """The roles that a shard may have columns for; `chosen` and `rejected` where they are named,
    or are there and no `response_a` is.
    """
    required, there = REQUIRED[config.task], {*schema.names}
    implied = {*PREFERENCE} <= there and "response_a" not in {*there, *config.columns}
    if config.task == "pairwise" and (config.columns.get("chosen") or implied):
        required = (required[0], *PREFERENCE)
    return (*required, *OPTIONAL, "turns", "id")


def _check_preset(config: RunConfig, schema: pa.Schema, path: str) -> None:
    named = [column for column in config.columns.values() if column not in (None, CHOSEN_IS)]
    names = [n for c in named for n in (c.names() if isinstance(c, LabelRule) else [str(c)])]
    absent = ", ".join(name for name in names if name not in schema.names)
    if config.preset and absent:
        said = f"preset {config.preset} names columns that are not there: {absent}; this shard has "
        raise InputError(said + ", ".join(schema.names), file=path)


def _label(config: RunConfig, schema: pa.Schema, chosen: bool, path: str) -> str | None:
    """The column in which a scored shard has the labels, or the first of several."""
    found = config.columns.get("label", CHOSEN_IS if chosen else "label")
    if chosen and found not in (CHOSEN_IS, None):
        said = f"the label is {CHOSEN_IS} in the output, or null for none"
        raise ConfigError(f"columns.label goes without columns.chosen: {said}")
    if not isinstance(found, LabelRule):
        return found if chosen else _column(config, schema, "label", path)
    for name in found.names():
        if name not in schema.names:
            raise _missing(schema, "label", name, path)
    return found.names()[0]


def _column(config: RunConfig, schema: pa.Schema, role: str, path: str) -> str | None:
    column = config.columns.get(role, role if role != "turns" else None)
    assert not isinstance(column, LabelRule)
    required = role in RESPONSES
    if column is None and required:
        raise ConfigError(f"columns.{role} is null, but every example needs it")
    if column is None or column in schema.names:
        return column
    if required or role in config.columns:
        raise _missing(schema, role, column, path)
    return None


def with_kinds(
    config: RunConfig, columns: Columns, rows: pa.Table, schema: pa.Schema, path: str
) -> Columns:
    """The same columns; their types tell how they are kept, and of text the first rows do. Raises
    InputError where nothing says what the responses answer.
    """
    said = {role: name for role, name in columns.text.items() if role in SAID}
    found: dict[str, str | None] = {}
    for role, name in said.items():
        named = name_kind(schema.field(name).type)
        if named == "null":
            why = f"{role} must be text or messages, this column is null in every shard"
            raise InputError(why, file=path, column=name)
        if named.startswith(("list of ", "struct of ")):
            found[role] = "list of texts" if named == "list of text" else "messages"
        else:
            found[role] = kind_of(values_of(rows.column(name)))
    if found.get("instruction") != "list of texts":  # an answer in JSON is a text like any other
        texts = [role for role, name in said.items() if is_text(schema.field(name).type)]
        found |= {role: None for role in texts if found[role] == "list of texts"}
    kinds = {role: kind for role, kind in found.items() if kind}
    asked, responses = kinds.get("instruction"), {found[r] for r in said if r in RESPONSES}
    if "instruction" not in said and not responses <= {*WHOLE}:
        if config.columns.get("instruction", "") is None:
            raise ConfigError("columns.instruction is null, but every example needs it")
        raise _missing(schema, "instruction", "instruction", path)
    listed = "list of texts" in {asked, *responses} and {asked} != responses
    if len(responses) > 1 or (listed and not (columns.chosen and asked is None)):
        told = ", ".join(f"{role} is {kind or 'text'}" for role, kind in found.items())
        raise InputError(f"these do not go together: {told}", file=path)
    return replace(columns, kinds=kinds)


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
    return table.cast(pa.schema([field.with_type(_plain(field.type)) for field in table.schema]))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind in (pa.binary_view(), pa.string_view()):
        return pa.large_binary() if kind == pa.binary_view() else pa.large_string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_field.with_type(_plain(kind.value_type))
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column of any type, row by row; bytes for what is not UTF-8."""
    if is_text(column.type):
        return decode(column)
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # of one of them
        values = [_value(value) for value in column]
    return values


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return b""


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


def _is_said(kind: pa.DataType) -> bool:
    """Whether a type can hold what somebody said: text, a list of texts, or messages, or one."""
    named = name_kind(kind)
    return named in ("text", "list of text") or is_messages(named)


def is_messages(kind: str) -> bool:
    """Whether the type of this name holds messages, or one."""
    return bool(re.match(r"(list of )?struct of (.*, )?(role|from): text(, |\Z)", kind))


def _is_flag(kind: pa.DataType) -> bool:
    return name_kind(kind) in ("number", "bool")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_date(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_duration(kind))


def _is_label(kind: pa.DataType) -> bool:
    return name_kind(kind) in ("text", "number", "bool", "null")
