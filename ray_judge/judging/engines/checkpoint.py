"""Where a model lies: what can be known of it without loading it."""

from __future__ import annotations

from pathlib import Path

from ray_judge.errors import ConfigError


def check_model(key: str, model: str) -> None:
    """Refuse a path that leads nowhere. A name such as `org/model` is left to the hub."""
    path = Path(model).expanduser()
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    if path.exists():
        if not (path / "config.json").exists():
            raise ConfigError(f"{key} is not a model directory: no config.json", path=path)
    elif looks_local:
        raise ConfigError(f"{key}: there is no such path", path=path)


def where(model: str) -> str:
    """A local path with its `~` resolved; a hub's name as it is."""
    return str(Path(model).expanduser())


def weight_bytes(model: str) -> int | None:
    """Bytes of a local checkpoint's weights; None for a model on a hub."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return None
    files = [*path.glob("*.safetensors")] or [*path.glob("*.bin")]
    return sum(file.stat().st_size for file in files) or None
