"""The calibration that a run stands on: which judge it has to be for, and where it lies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray_judge.calibration.document import Calibration, dumps, loads
from ray_judge.config import OPERATIONAL, RunConfig
from ray_judge.errors import ConfigError, RunChangedError, StorageError
from ray_judge.judging.formats import format_for
from ray_judge.records import Example
from ray_judge.run.directory import RunDirectory
from ray_judge.storage.local import Missing, Storage, open_storage


def identity(config: RunConfig) -> dict[str, Any]:
    """Name a run's local judge by everything that could change its verdicts or confidences.

    Keys that are at their default are left out, but for those that every calibration names.
    """
    judge = config.judge
    hidden: dict[str, Any] = {"route": True}
    for group, name, *inside in (key.split(".") for key in OPERATIONAL if "." in key):
        if group == "judge":
            hidden[name] = {**hidden.get(name, {}), inside[0]: True} if inside else True
    return {
        **judge.model_dump(mode="json", exclude_defaults=True, exclude=hidden),
        "format": judge.format,
        "model": judge.model,
        "revision": judge.revision,
        "template": template_hash(config),
        "confidence": judge.confidence,
        "task": config.task,
    }


def template_hash(config: RunConfig) -> str | None:
    """SHA-256 (hex) of the prompt around fixed texts; None for a judge without one."""
    if config.judge.engine == "columns" or config.judge.format == "reward":
        return None
    responses = ("response 1", "response 2")[: 2 if config.task == "pairwise" else 1]
    judge = format_for(config.judge, config.task)
    # a row's own rubric replaces the configured one: the prompt is looked at with and without
    plain = Example("instruction", responses)
    full = replace(plain, input="input", reference="reference", rubric="rubric")
    text = json.dumps([asdict(judge.render(example)) for example in (plain, full)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_calibration(uri: str) -> Calibration:
    """Read a calibration.json. Raises ConfigError where there is none, or a damaged one."""
    storage, name = _place(uri)
    try:
        return loads(storage.read(name), uri)
    except Missing:
        said = "there is no calibration here: ray-judge calibrate makes one"
    except StorageError as error:
        said = f"cannot read this calibration: {error.message}"
    raise ConfigError(said, file=uri)


def write_calibration(uri: str, calibration: Calibration) -> None:
    """Write a calibration.json, whole or not at all."""
    storage, name = _place(uri)
    storage.write(name, dumps(calibration))


def check_place(uri: str) -> None:
    """Refuse a place where no calibration can be written, before one is made. ConfigError."""
    storage, name = _place(uri)
    if not name or Path(f"{storage.uri}/{name}").is_dir():
        raise ConfigError("a calibration is a file, and this is a folder", file=uri)


def _place(uri: str) -> tuple[Storage, str]:
    path = uri if "://" in uri else str(Path(uri).expanduser().absolute())
    root, _, name = path.rpartition("/")
    return open_storage(root or "/"), name


def calibration_of(config: RunConfig) -> Calibration | None:
    """Read the run's calibration, None where it names none. Raises ConfigError for one that is of
    another judge (every key that differs is named) or strong judge, or of other levels.
    """
    route = config.route
    if route.calibration is None:
        return None
    found = read_calibration(route.calibration)
    judges, file = [identity(tier) for tier in config.tiers()], route.calibration
    if len(found.tiers) != len(judges):
        whom = f"{len(found.tiers)} local judge(s), the run has {len(judges)}"
        raise ConfigError(f"this calibration is for {whom}: calibrate again", file=file)
    differ = [
        f"judge {number}, {key}: {tier.judge.get(key)!r} in the calibration, "
        f"{judge.get(key)!r} in the run"
        for number, (tier, judge) in enumerate(zip(found.tiers, judges, strict=True), 1)
        for key in sorted(tier.judge.keys() | judge.keys())
        if tier.judge.get(key) != judge.get(key)
    ]
    if differ:
        said = f"this calibration is for another judge: {'; '.join(differ)}. Calibrate again"
        raise ConfigError(said, file=file)
    strong = config.strong.model if found.label_kind == "strong" else None
    for name, given, known in (
        ("route.alpha", route.alpha, found.alpha),
        ("route.delta", route.delta, found.delta),
        ("strong.model", strong, found.strong_model),
    ):
        if given not in (None, known):
            said = f"{name} is {given}, and this calibration was made for {known}"
            raise ConfigError(f"{said}: calibrate again", file=file)
    return found


def pin_calibration(run: RunDirectory, calibration: Calibration | None) -> None:
    """Keep the calibration with the run, and refuse another one when the run is continued."""
    if calibration is None:
        return
    name = "calibration.json"
    if not run.storage.exists(name):
        run.storage.write(name, dumps(calibration))
    elif loads(run.storage.read(name), f"{run.uri}/{name}") != calibration:
        raise RunChangedError(
            "the calibration is not the one that this run began with (it is kept beside run.json): "
            "choose another output, or go back to it",
            run=run.uri,
        )
