"""What stands for what in the input: labels of several columns, and presets for known data sets."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import Field, model_validator

from ray_judge.config.tree import Tree, nearest
from ray_judge.errors import ConfigError


class LabelRule(Tree):
    """`columns.label`, where a column's name and `labels` do not say it.

    A scale: response A is better where `column` is above (or below) the number, B on the other
    side, and equal is a tie. Or one column for each verdict, which is 1 or true where it holds.
    """

    column: str | None = None
    above: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)
    A: str | None = None
    B: str | None = None
    tie: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> LabelRule:
        scale = self.column is not None and (self.above is None) != (self.below is None)
        flags = self.A is not None and self.B is not None
        given = len(self.model_dump(exclude_none=True))
        if not (scale and given == 2) and not (flags and given == len(self.verdicts())):
            raise ValueError(
                "label is a column, or {column: ..., above: 0} (A is better above it; or below: 0),"
                " or one column a verdict: {A: ..., B: ..., tie: ...}"
            )
        return self

    def verdicts(self) -> tuple[str, ...]:
        """The verdicts that have a column each."""
        return tuple(verdict for verdict in ("A", "B", "tie") if getattr(self, verdict))

    def names(self) -> tuple[str, ...]:
        """The columns that it reads, in the order of `verdicts` where it has them."""
        return (self.column,) if self.column else tuple(getattr(self, v) for v in self.verdicts())


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Name → `columns` and `labels` of a data set as it was published (docs/data.md)."""
    text = resources.files("ray_judge.config").joinpath("presets.yaml").read_text("utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration's values with what its `preset` says; the user's own keys win."""
    name = values.get("preset")
    if name is None:
        return values
    if not isinstance(name, str) or name not in presets():
        known = ", ".join(presets())
        raise ConfigError(
            f"preset: there is none {name!r}{nearest(str(name), [*presets()])}: {known}"
        )
    merged = dict(values)
    for key, given in presets()[name].items():
        own = values.get(key) or {}
        merged[key] = {**given, **own} if isinstance(own, dict) else own
    return merged
