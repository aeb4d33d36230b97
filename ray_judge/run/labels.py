"""The verdicts that the input's labels mean."""

from __future__ import annotations

import json
import math
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.config import RunConfig, label_text
from ray_judge.errors import InputError
from ray_judge.records import CHOSEN_IS, PAIRWISE_ALTERNATIVES
from ray_judge.run.columns import as_series


def label_columns(config: RunConfig, label: str) -> list[str]:
    """The input's columns that a label is read from: of preferences, none."""
    rule = config.label_rule(label)
    return [] if label == CHOSEN_IS else list(rule.names()) if rule else [label]


def labels_of(table: pa.Table, label: str, config: RunConfig, **where: str) -> pl.Series:
    """The verdicts that the label's columns mean, null where they mean none. Raises InputError.

    A column is read by `columns.label` where that names it: above and below a number, or one
    column a verdict, of which one at most is set.
    """
    rule = config.label_rule(label)
    if rule is None:
        return read_labels(as_series(table[label], **where), config, **where)
    parts = [pl.Series(pl.from_arrow(table[name])).cast(pl.Float64) for name in rule.names()]
    if rule.column is not None:
        high, bound = ("A", rule.above) if rule.above is not None else ("B", rule.below)
        over = (parts[0].fill_nan(None) - float(bound or 0)).sign()
        meant = {1.0: high, -1.0: "B" if high == "A" else "A", 0.0: "tie"}
        return over.replace_strict(meant, return_dtype=pl.String)
    parts = [part.fill_nan(None) for part in parts]
    for name, part in zip(rule.names(), parts, strict=True):
        if (strange := ~part.is_in([0.0, 1.0]).fill_null(True)).any():
            at = strange.to_list().index(True)
            said = f"this is neither 0 nor 1: {part[at]:g}"
            raise InputError(said, **{**where, "column": name}, row=at)
    flags = pl.DataFrame(dict(zip(rule.verdicts(), parts, strict=True))).fill_null(0) != 0
    if (several := flags.sum_horizontal() > 1).any():
        row = several.arg_max()
        raise InputError(f"several of {', '.join(rule.names())} are set", **where, row=row)
    first = pl.coalesce(pl.when(pl.col(v)).then(pl.lit(v)) for v in flags.columns)
    return flags.select(first).to_series()


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
