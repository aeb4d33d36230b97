"""Where the upstream templates come from, and where they are kept.

A template is found by the SHA-256 of its text: in a file that the user names, in the cache, or in
its repository at the pinned commit. Whatever the way, the hash is checked on every reading; a text
that differs in one byte is not the text that the judge was tuned on, and is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ray_judge.errors import ConfigError, StorageError
from ray_judge.judging.formats.download import download
from ray_judge.judging.formats.literals import NotReadable, files_in, texts_of
from ray_judge.judging.formats.registry import PINS, Pin

State = Literal["cached", "missing", "changed"]
OFFLINE = (
    "on a machine without a network: ray-judge judges pull --from PATH (or judge.templates in the "
    "configuration), where PATH is a copy of"
)


def template(pin: Pin, source: str | None = None) -> str:
    """Give a judge's template: from `source`, else the cache, else its repository.

    Raises ConfigError that says what to do.
    """
    if source is not None:
        return find((pin,), Path(source).expanduser())[pin]
    cached = read_cache(pin)
    if cached is not None:
        return cached
    text = fetch((pin,))[pin]
    with contextlib.suppress(StorageError):  # a home that may not be written: fetched again then
        keep(pin, text)
    return text


def find(pins: Sequence[Pin], source: Path, *, all_of_them: bool = True) -> dict[Pin, str]:
    """Look for templates in a file, or in every `*.py`, `*.json` and `*.txt` below a folder.

    Raises ConfigError when one is not there, or (`all_of_them` false) none or only a changed one.
    """
    if not source.exists():
        raise ConfigError("there is no such file or folder to take templates from", path=source)
    texts: list[str] = []
    unreadable: list[str] = []
    for path in files_in(source):
        try:
            texts += texts_of(path.name, path.read_bytes())
        except (NotReadable, OSError) as error:
            unreadable.append(f"{path.name}: {error}")
    found = _match(pins, texts)
    missing = [pin for pin in pins if pin not in found]
    changed = [pin for pin in missing if _changed_copy(pin, texts)]
    if changed or (missing and (all_of_them or not found)):
        raise ConfigError(_refusal(changed or missing, bool(changed), unreadable), path=source)
    return found


def fetch(pins: Sequence[Pin]) -> dict[Pin, str]:
    """Download the files that hold the templates. Raises ConfigError."""
    found: dict[Pin, str] = {}
    for place in dict.fromkeys((pin.repository, pin.commit, pin.path) for pin in pins):
        wanted = [pin for pin in pins if (pin.repository, pin.commit, pin.path) == place]
        repository, commit, path = place
        names = ", ".join(pin.name for pin in wanted)
        copy = f"{path} of github.com/{repository} at {commit}"
        try:
            texts = texts_of(path, download(f"{repository}/{commit}/{path}"))
        except (ConfigError, NotReadable) as error:
            raise ConfigError(
                f"the template of {names} cannot be downloaded: {error}; {OFFLINE} {copy}"
            ) from None
        here = _match(wanted, texts)
        for pin in wanted:
            if pin not in here:
                raise ConfigError(
                    f"the template of {pin.name} is not in {copy}: no text there has the SHA-256 "
                    f"{pin.literal_sha256}"
                )
        found |= here
    return found


def keep(pin: Pin, text: str) -> Path:
    """Put a template into the cache, whole or not at all. Raises StorageError."""
    path = cache_path(pin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise StorageError(f"a template cannot be kept: {error.strerror}", path=path) from None
    return path


def read_cache(pin: Pin) -> str | None:
    """Read a template from the cache; null when it is not there.

    Raises ConfigError when what is there is not the template.
    """
    try:
        content = cache_path(pin).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"a cached template cannot be read: {error.strerror}", path=cache_path(pin)
        ) from None
    if hashlib.sha256(content).hexdigest() != pin.literal_sha256:
        raise ConfigError(
            f"the cached template of {pin.name} was changed: its SHA-256 is not "
            f"{pin.literal_sha256}; ray-judge judges pull {pin.name} gets it anew",
            path=cache_path(pin),
        )
    return content.decode()


def state(pin: Pin) -> State:
    """Say whether the cache has a template, and the right one."""
    try:
        return "missing" if read_cache(pin) is None else "cached"
    except ConfigError:
        return "changed"


def cache_path(pin: Pin) -> Path:
    """Where the cache keeps a template."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is no path.
    root = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return root / "ray_judge" / "templates" / f"{pin.name}-{pin.literal_sha256[:12]}.txt"


def _match(pins: Sequence[Pin], texts: Iterable[str]) -> dict[Pin, str]:
    by_hash = {_sha256(text): text for text in texts}
    return {pin: by_hash[pin.literal_sha256] for pin in pins if pin.literal_sha256 in by_hash}


def _changed_copy(pin: Pin, texts: Iterable[str]) -> bool:
    """Whether one of the texts looks like this template, altered.

    That is: nearly its length, at least half of its placeholders, and itself no template.
    """
    known = {other.literal_sha256 for other in PINS}
    for text in texts:
        if abs(len(text) - pin.characters) > pin.characters // 20:
            continue
        there = sum(f"{{{name}}}" in text for name in pin.placeholders)
        if 2 * there >= len(pin.placeholders) and _sha256(text) not in known:
            return True
    return False


def _refusal(pins: Sequence[Pin], changed: bool, unreadable: Sequence[str]) -> str:
    names = ", ".join(f"{pin.name} (SHA-256 {pin.literal_sha256})" for pin in pins)
    if changed:
        said = (
            f"the template of {names} is not there as its judge was tuned on it, only a changed "
            "copy, which is refused"
        )
    else:
        said = f"the template of {names} is not there: no text has this SHA-256"
    return said + (f" (not readable: {'; '.join(unreadable[:3])})" if unreadable else "")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
