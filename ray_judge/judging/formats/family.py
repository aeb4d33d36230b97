"""What is known of a family of judges besides how it is asked: its modes and its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_judge.records import Task


@dataclass(frozen=True, slots=True)
class Family:
    """One `judge.format`."""

    name: str
    modes: tuple[Task, ...]
    bases: Mapping[str, str] = field(default_factory=dict)
    """Model → what its authors tuned it from (`calibrated_entropy` compares the two)."""


DEFAULT_RUBRIC = (
    "Does the response do what the instruction asks, correctly, completely and clearly?"
)
"""For the judges whose prompt has a place for criteria, where neither the row nor the
configuration gives any."""
