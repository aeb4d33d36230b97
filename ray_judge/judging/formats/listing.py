"""What `ray-judge judges` says: each family, its models, and where its templates are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ray_judge.config import FORMAT_SCORES
from ray_judge.judging.formats import FAMILIES
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.registry import PINS, Pin, pins_of
from ray_judge.judging.formats.templates import cache_path, fetch, find, keep, state
from ray_judge.records import Task


def overview() -> list[str]:
    """Describe every family: modes, score range, models with their bases, pins, cached or not."""
    lines: list[str] = []
    for family in FAMILIES:
        lines += [family.name, *(f"  {line}" for line in _about(family))]
    return lines


def pull(names: Sequence[str], source: Path | None) -> list[str]:
    """Put templates into the cache: of the named judges, or all. Raises ConfigError.

    From a file or folder without names: whatever is there, and a line for what is not.
    """
    pins = pins_of(names)
    found = fetch(pins) if source is None else find(pins, source, all_of_them=bool(names))
    lines = [f"{pin.name}: kept as {keep(pin, text)}" for pin, text in found.items()]
    return lines + [f"{pin.name}: not in {source}" for pin in pins if pin not in found]


def check(names: Sequence[str]) -> tuple[list[str], bool]:
    """Verify the cache: a line per template, and whether all of them are there and right."""
    states = {pin: state(pin) for pin in pins_of(names)}
    lines = [
        f"{pin.name}: {found}" + ("" if found == "cached" else f" ({cache_path(pin)})")
        for pin, found in states.items()
    ]
    return lines, all(found == "cached" for found in states.values())


def _about(family: Family) -> list[str]:
    models = [f"model      {model}, tuned from {base}" for model, base in family.bases.items()]
    return models + [_mode(family, mode) for mode in family.modes]


def _mode(family: Family, mode: Task) -> str:
    if mode == "pairwise":
        what = "a pair"
    else:
        low, high = FORMAT_SCORES.get(family.name, (None, None))
        what = f"scores from {low} to {high}" if low is not None else "scores as configured"
    pin = next((pin for pin in PINS if (pin.judge, pin.mode) == (family.name, mode)), None)
    return f"{mode:10} {what}" + (f"; {_pin(pin)}" if pin else "")


def _pin(pin: Pin) -> str:
    return (
        f"template {pin.literal_sha256[:12]} of {pin.repository}@{pin.commit[:12]} "
        f"{pin.path}: {state(pin)}"
    )
