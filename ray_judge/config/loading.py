"""From a YAML file, or plain values, to the frozen tree; every problem is told by its key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ray_judge.config.data import with_preset
from ray_judge.config.judge import JudgeConfig
from ray_judge.config.run import RunConfig
from ray_judge.config.tree import Tree, hide_secrets, nearest
from ray_judge.errors import ConfigError


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` overrides. Raises ConfigError naming the key."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", file=file) from None
    try:
        document = read_yaml(data.decode(), file=file)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("not YAML: this is not UTF-8", file=file, line=line) from None
    if not isinstance(document, dict):
        found = "empty" if document is None else "not a mapping of keys to values"
        raise ConfigError(f"the configuration is {found}", file=file)
    for override in overrides:
        _apply(document, override)
    return parse(document, file=str(file))


class _Loader(yaml.SafeLoader):
    """YAML in which no key is given twice: the last one would be taken in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                merges = key.tag.endswith(":merge")
                name = key.value if merges else self.construct_object(key)
                before, now = lines.get(name), key.start_mark.line + 1
                if before is not None:
                    said = f"the key {key.value} is given twice, in line {before} and in line {now}"
                    raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
                lines[name] = now
        return node


def read_yaml(text: str, **where: Any) -> Any:
    """Read one YAML document. Raises ConfigError, with the line where there is one."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  it is a safe one
    except yaml.MarkedYAMLError as error:
        said, line = error.problem, error.problem_mark and error.problem_mark.line + 1
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said, line = " ".join(str(error).split()), None
    raise ConfigError(f"not YAML: {said}", **where, line=line)


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same configuration with `key.sub=value` overrides. Raises ConfigError naming the key."""
    document = config.document()
    for one in overrides:
        _apply(document, one)
    return parse(document)


def parse(document: Mapping[str, Any], *, file: str | None = None) -> RunConfig:
    """Check plain values and freeze them; `judge: {...}` stands for `judges: [{...}]`."""
    values = dict(document)
    single = "judge" in values
    if single and "judges" in values:
        raise ConfigError("judge and judges exclude each other: name one judge or a list of them")
    if single:
        values["judges"] = [values.pop("judge")]
    try:
        return RunConfig.model_validate(with_preset(values))
    except ValidationError as error:
        problems = "; ".join(_explain(problem, single=single) for problem in error.errors())
        raise ConfigError(problems, file=file) from None


def _apply(document: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found:
        raise ConfigError(f"--set takes key=value, not {override!r}")
    *parents, last = key.strip().split(".")
    if not all([*parents, last]):
        raise ConfigError(f"--set takes key=value, not {override!r}")
    node: Any = document
    for parent in parents:
        of_list = isinstance(node, list) and parent.isdecimal() and int(parent) < len(node)
        node = node[int(parent)] if of_list else node.setdefault(parent, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {key}: {parent} is a value, not a group of keys")
    try:
        node[last] = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"--set {key}: {text!r}: {error.message}") from None


def _explain(problem: Mapping[str, Any], *, single: bool) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
    if single:
        where = where.replace("judges.0", "judge", 1)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(RunConfig) + _known_keys(JudgeConfig, "judge.")
        dotted = ": keys with a dot are for --set, in YAML they are nested"
        return f"unknown key {where}{dotted if where in known else nearest(where, known)}"
    if problem["type"] == "missing":
        hint = ": there is no run without a cap" if where == "strong.max_cost_usd" else ""
        return f"missing key {'judge' if where == 'judges' else where}{hint}"
    value, said = problem["input"], problem["msg"].removeprefix("Value error, ")
    said = re.sub("dictionary( or instance of .*)?$", "mapping of keys to values", said)
    shown = not isinstance(value, dict) and not re.search("api_key_env|headers|query", where)
    return f"{where}: {said}" + (f" (given: {hide_secrets(repr(value)):.100})" if shown else "")


def _known_keys(tree: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in tree.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, Tree):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys
