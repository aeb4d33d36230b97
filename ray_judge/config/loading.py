"""From a YAML file, or plain values, to the frozen tree; every problem is told by its key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ray_judge.config.judge import JudgeConfig
from ray_judge.config.run import RunConfig
from ray_judge.config.tree import Tree, nearest
from ray_judge.errors import ConfigError


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` overrides. Raises ConfigError naming the key."""
    file = Path(path)
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", file=file) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a YAML file: {error}", file=file) from None
    if not isinstance(document, dict):
        raise ConfigError("the configuration is not a mapping of keys to values", file=file)
    for override in overrides:
        _apply(document, override)
    return parse(document, file=str(file))


def parse(document: Mapping[str, Any], *, file: str | None = None) -> RunConfig:
    """Check plain values and freeze them; `judge: {...}` stands for `judges: [{...}]`."""
    values = dict(document)
    single = "judge" in values
    if single and "judges" in values:
        raise ConfigError("judge and judges exclude each other: name one judge or a list of them")
    if single:
        values["judges"] = [values.pop("judge")]
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(problem, single=single) for problem in error.errors())
        raise ConfigError(problems, file=file) from None


def _apply(document: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found:
        raise ConfigError(f"--set takes key=value, not {override!r}")
    *parents, last = key.strip().split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a group of keys")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None


def _explain(problem: Mapping[str, Any], *, single: bool) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
    if single:
        where = where.replace("judges.0", "judge", 1)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(RunConfig) + _known_keys(JudgeConfig, "judge.")
        return f"unknown key {where}{nearest(where, known)}"
    if problem["type"] == "missing":
        hint = ": there is no run without a cap" if where == "strong.max_cost_usd" else ""
        return f"missing key {'judge' if where == 'judges' else where}{hint}"
    given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _known_keys(tree: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in tree.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, Tree):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys
