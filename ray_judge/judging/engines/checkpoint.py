"""A model's folder: what can be known of it before an engine is started. No engine is imported.

A download that was cut, a clone without its large files and a model of another kind are found
here in milliseconds, in place of after a minute's start with an engine's words for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_judge.errors import ConfigError

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
TOKENIZERS = ("*token*", "*tekken*", "vocab*", "*.model")
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "RewardModel")
"""How the architectures end that give scores or classes, and no next token."""
REWARDS = "ForSequenceClassification"
HEAD = r"(\A|\.)(score|classifier|classification_head)\."
HEADER_MOST = 100_000_000
"""Bytes of a safetensors file's header (the format's own limit)."""


def check_model(key: str, model: str, options: Mapping[str, Any], *, reward: bool = False) -> None:
    """Refuse a path that leads to no whole language model, or reward model (ConfigError).

    A name such as `org/model` is left to the hub. `options`: the engine's.
    """
    try:
        path = find_folder(key, model, "config.json")
        if path is not None:
            _check_kind(key, path, reward=reward)
            _check_folder(key, path, options)
            if reward and "load_format" not in options:
                check_head(key, path)
    except OSError as error:
        raise ConfigError(f"{key} cannot be read: {error.strerror}", path=model) from None


def _check_kind(key: str, path: Path, *, reward: bool) -> None:
    config = _read_json(key, path / "config.json")
    kinds = [str(kind) for kind in config.get("architectures") or []]
    if reward:
        check_rewards(key, kinds, len(config.get("id2label") or "01"), path=path)
    elif kinds and all(kind.endswith(CLASSIFIERS) for kind in kinds):
        raise ConfigError(
            f"{key} is no language model but {kinds[0]} (a reward model, or a classifier), which "
            "cannot say A or B: take a checkpoint that writes text, or format: reward",
            path=path,
        )


def check_rewards(key: str, kinds: Sequence[str], labels: int, **where: Any) -> None:
    """Refuse what gives no single number for a conversation (ConfigError).

    `kinds`: its architectures. `labels`: transformers takes a configuration that names none as two.
    """
    if not any(kind.endswith(REWARDS) for kind in kinds):
        found = kinds[0] if kinds else "of no kind that its config.json names"
        said = f"{key} is no reward model but {found}: format: reward needs ...{REWARDS}"
        raise ConfigError(f"{said} with one label", **where)
    if labels != 1:
        said = f"{key} has {labels} labels, and a reward model has one"
        raise ConfigError(
            f"{said}: format: reward cannot tell which of them is the reward", **where
        )


def check_head(key: str, path: Path) -> None:
    """Refuse a reward model's folder whose weights have no head (ConfigError).

    vLLM leaves a linear layer that its checkpoint lacks as it was allocated, without a word.
    """
    headers = [_header(file) for file in path.glob("*.safetensors")]
    names = [name for header in headers for name in header]
    if names and not any(re.search(HEAD, name) for name in names):
        said = f"{key} has no head among its {len(names)} weights (score.weight)"
        raise ConfigError(f"{said}: it would be drawn at random, and would judge", path=path)


def find_snapshot(model: str, revision: str | None) -> Path:
    """The folder of a model that has been loaded. OSError where the hub's cache has none."""
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def read_template(model: str) -> str | None:
    """The chat template in a model's folder, "" where it has none; None for a model on a hub."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return None
    if (file := path / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    file = path / "tokenizer_config.json"
    found = _read_json("judge.model", file).get("chat_template") if file.exists() else None
    return default_template(found) or ""


def default_template(found: Any) -> str | None:
    """Of a tokenizer's chat template, or of several by name (`default` is taken)."""
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    return found.get("default") if isinstance(found, dict) else found


def _check_folder(key: str, path: Path, options: Mapping[str, Any]) -> None:
    if "tokenizer" not in options and not any(any(path.glob(name)) for name in TOKENIZERS):
        raise ConfigError(f"{key} has no tokenizer: copy the tokenizer's files into it", path=path)
    if "load_format" not in options:
        _check_weights(key, path)


def find_folder(key: str, model: str, file: str) -> Path | None:
    """The local folder that a model's name stands for, which must have `file`; None: on a hub."""
    path = Path(model).expanduser()
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    if path.exists():
        if not (path / file).exists():
            raise ConfigError(f"{key} is not a model directory: no {file}", path=path)
        return path
    if looks_local:
        raise ConfigError(f"{key}: there is no such path", path=path)
    return None


def _check_weights(key: str, path: Path) -> None:
    if not any(any(path.glob(name)) for name in WEIGHTS):
        raise ConfigError(f"{key} has no weights (*.safetensors, *.bin)", path=path)
    for index in path.glob("*.index.json"):
        parts = sorted(set(_read_json(key, index).get("weight_map", {}).values()))
        if lost := [name for name in parts if not (path / name).exists()]:
            said = f"{key} is not whole: {len(lost)} of {len(parts)} files are missing"
            raise ConfigError(f"{said}, the first of them {lost[0]}", path=path)
    for file in path.glob("*.safetensors"):
        if reason := _damage(file):
            said = f"{key}: this file of its weights {reason}: download it again"
            raise ConfigError(said, file=file)


def _header(file: Path) -> dict[str, Any]:
    """The names of a safetensors file's tensors, with what is said of them."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        return dict(json.loads(data.read(length)))


def _damage(file: Path) -> str | None:
    """What is wrong with a safetensors file: its header says how long it is to be."""
    size = file.stat().st_size
    with file.open("rb") as data:
        begin = data.read(8)
        if begin == b"version ":
            return "is a Git LFS pointer, not the weights themselves (git lfs pull)"
        length = int.from_bytes(begin, "little")
        if not 2 <= length <= min(size - 8, HEADER_MOST):
            return "is cut or damaged"
        try:
            header = json.loads(data.read(length))
            ends = [part["data_offsets"][1] for name, part in header.items() if name[:2] != "__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return "is damaged"
    wanted = 8 + length + max(ends, default=0)
    return None if size == wanted else f"has {size:,} bytes, and is to have {wanted:,}"


def _read_json(key: str, file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{key}: this file is not JSON: {error}", file=file) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{key}: this file is no JSON object", file=file)
    return document


def locate(model: str | None) -> str:
    return str(Path(str(model)).expanduser())


def weight_bytes(model: str) -> int | None:
    """Bytes of a local checkpoint's weights; None for a model on a hub."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return None
    files = [*path.glob("*.safetensors")] or [*path.glob("*.bin")]
    return sum(file.stat().st_size for file in files) or None
