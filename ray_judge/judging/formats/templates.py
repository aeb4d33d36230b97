"""The prompts that fine-tuned judges were tuned on: which, where they come from, where they lie.

Such a prompt belongs to its judge like its weights, and is not ours to ship. Each pin names one
string literal in one file of one commit by the SHA-256 of its text in UTF-8. The hash is checked
on every reading: a text that differs in one byte is not what the judge was tuned on.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ray_judge.errors import ConfigError, StorageError
from ray_judge.records import Task

MIRROR_ENV = "RAY_JUDGE_TEMPLATES_URL"
"""Names another server with the same paths: `<URL>/<owner>/<name>/<commit>/<path>`."""
GITHUB = "https://raw.githubusercontent.com"
SILENCE_S = 15.0
"""How long the server may say nothing."""
MAX_BYTES = 8 << 20
"""A larger file is no source that holds a prompt."""
SUFFIXES = (".py", ".json", ".txt")


@dataclass(frozen=True, slots=True)
class Pin:
    """One judge's template for one task, without its text. `repository`: `owner/name` on GitHub.

    `characters`: how long the text is; by it a changed copy is told from a text that is none.
    """

    judge: str
    mode: Task
    repository: str
    commit: str
    path: str
    placeholders: tuple[str, ...]
    characters: int
    literal_sha256: str

    @property
    def name(self) -> str:
        return f"{self.judge}-{self.mode}"

    @property
    def location(self) -> str:
        return f"{self.repository}/{self.commit}/{self.path}"


def _load_pins() -> tuple[Pin, ...]:
    text = resources.files("ray_judge.judging.formats").joinpath("pins.json").read_text("utf-8")
    pins = json.loads(text)["pins"]
    return tuple(Pin(**pin | {"placeholders": tuple(pin["placeholders"])}) for pin in pins)


PINS = _load_pins()


def pin_for(judge: str, mode: Task) -> Pin:
    return next(pin for pin in PINS if (pin.judge, pin.mode) == (judge, mode))


def pins_of(names: Sequence[str]) -> tuple[Pin, ...]:
    """Choose pins by judge (`judgelm`) or by judge and mode (`judgelm-pairwise`); none: all."""
    known = dict.fromkeys(pin.judge for pin in PINS)
    for name in names:
        if name not in known and name not in [pin.name for pin in PINS]:
            raise ConfigError(f"no judge {name} has a template of its own: {', '.join(known)} do")
    return tuple(pin for pin in PINS if not names or pin.judge in names or pin.name in names)


def template(pin: Pin, source: str | None = None) -> str:
    """Give a judge's template: from `source`, else the cache, else its repository (ConfigError)."""
    if source is not None:
        return find((pin,), Path(source).expanduser())[pin]
    if (cached := read_cache(pin)) is not None:
        return cached
    text = fetch((pin,))[pin]
    with contextlib.suppress(StorageError):  # a home that may not be written: fetched again then
        keep(pin, text)
    return text


def pull(names: Sequence[str], source: Path | None) -> list[str]:
    """Put templates into the cache, of the named judges or all; a line for each.

    From a file or folder without names: whatever is there. Raises ConfigError.
    """
    pins = pins_of(names)
    found = fetch(pins) if source is None else find(pins, source, all_of_them=bool(names))
    lines = [f"{pin.name}: kept as {keep(pin, text)}" for pin, text in found.items()]
    return lines + [f"{pin.name}: not in {source}" for pin in pins if pin not in found]


def check(names: Sequence[str]) -> tuple[list[str], bool]:
    """Verify the cache: a line per template, and whether all of them are there and right."""
    states = {pin: state(pin) for pin in pins_of(names)}
    lines = [f"{pin.name}: {found} ({cache_path(pin)})" for pin, found in states.items()]
    return lines, all(found == "cached" for found in states.values())


def texts_of(name: str, content: bytes) -> list[str]:
    """Give all texts of a file: literals of Python (nothing runs), strings of JSON, else itself.

    Raises ConfigError.
    """
    if len(content) > MAX_BYTES:
        raise ConfigError(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8")
        if name.endswith(".json"):
            return list(_strings(json.loads(text)))
        if name.endswith(".py"):
            values = (getattr(node, "value", None) for node in ast.walk(ast.parse(text)))
            return [value for value in values if isinstance(value, str)]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{type(error).__name__}: {error}") from None
    return [text]


def _strings(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, list | dict):
        for value in item if isinstance(item, list) else item.values():
            yield from _strings(value)


def find(pins: Sequence[Pin], source: Path, *, all_of_them: bool = True) -> dict[Pin, str]:
    """Look for templates in a file, or in all files of `SUFFIXES` below a folder.

    Raises ConfigError when one is not there, or (`all_of_them` false) none or only a changed one.
    """
    if not source.exists():
        raise ConfigError("there is no such file or folder to take templates from", path=source)
    below = (path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    texts: dict[str, str] = {}
    unreadable: list[str] = []
    for path in sorted(below) if source.is_dir() else [source]:
        try:
            texts |= _by_hash(path.name, path.read_bytes())
        except (ConfigError, OSError) as error:
            unreadable.append(f"{path.name}: {error}")
    found = {pin: texts[pin.literal_sha256] for pin in pins if pin.literal_sha256 in texts}
    missing = [pin for pin in pins if pin not in found]
    changed = [pin for pin in missing if any(_is_changed(pin, *item) for item in texts.items())]
    if changed or (missing and (all_of_them or not found)):
        wanted = [f"{pin.name} (SHA-256 {pin.literal_sha256})" for pin in changed or missing]
        why = ": no text has this SHA-256"
        if changed:
            why = " as its judge was tuned on it, only a changed copy, which is refused"
        skipped = f" (not readable: {'; '.join(unreadable[:3])})" if unreadable else ""
        said = f"the template of {', '.join(wanted)} is not there{why}{skipped}"
        raise ConfigError(said, path=source)
    return found


def _by_hash(name: str, content: bytes) -> dict[str, str]:
    texts = texts_of(name, content)
    hashed = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts)
    return dict(zip(hashed, texts, strict=True))


def _is_changed(pin: Pin, sha256: str, text: str) -> bool:
    """Tell a text of nearly this length with half of the placeholders that is no template."""
    there = sum(f"{{{name}}}" in text for name in pin.placeholders)
    near = abs(len(text) - pin.characters) <= pin.characters // 20
    known = any(sha256 == other.literal_sha256 for other in PINS)
    return near and 2 * there >= len(pin.placeholders) and not known


def fetch(pins: Sequence[Pin]) -> dict[Pin, str]:
    """Download the files that hold the templates. Raises ConfigError."""
    texts: dict[str, str] = {}
    for pin in pins:
        copy = f"{pin.path} of github.com/{pin.repository} at {pin.commit}"
        try:
            if pin.literal_sha256 not in texts:  # one file may hold several
                texts |= _by_hash(pin.path, download(pin.location))
        except ConfigError as error:
            raise ConfigError(
                f"the template of {pin.name} cannot be downloaded: {error}; on a machine without "
                "a network: ray-judge judges pull --from PATH (or judge.templates in the "
                f"configuration), where PATH is a copy of {copy}"
            ) from None
        if pin.literal_sha256 not in texts:
            said = f"no text there has the SHA-256 {pin.literal_sha256}"
            raise ConfigError(f"the template of {pin.name} is not in {copy}: {said}")
    return {pin: texts[pin.literal_sha256] for pin in pins}


def download(location: str) -> bytes:
    import httpx

    url = f"{os.environ.get(MIRROR_ENV) or GITHUB}/{location}"
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"{MIRROR_ENV} is not an http(s) address", url=url)
    content = bytearray()
    try:
        with httpx.stream("GET", url, timeout=SILENCE_S, follow_redirects=True) as answer:
            if answer.status_code != 200:
                said = f"the server answered {answer.status_code} {answer.reason_phrase}"
                raise ConfigError(said, url=url)
            for block in answer.iter_bytes():
                content += block
                if len(content) > MAX_BYTES:
                    raise ConfigError("the file is far larger than a file of templates", url=url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{type(error).__name__}: {error}", url=url) from None
    return bytes(content)


def keep(pin: Pin, text: str) -> Path:
    """Put a template into the cache, whole or not at all. Raises StorageError."""
    path = cache_path(pin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(text.encode())
        Path(file.name).replace(path)
    except OSError as error:
        raise StorageError(f"a template cannot be kept: {error.strerror}", path=path) from None
    return path


def read_cache(pin: Pin) -> str | None:
    """Read a template from the cache; null when it is not there. Raises ConfigError."""
    path = cache_path(pin)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"a cached template is unreadable: {error.strerror}", path=path) from None
    if hashlib.sha256(content).hexdigest() != pin.literal_sha256:
        raise ConfigError(
            f"the cached template of {pin.name} was changed: its SHA-256 is not "
            f"{pin.literal_sha256}; ray-judge judges pull {pin.name} gets it anew",
            path=path,
        )
    return content.decode()


def state(pin: Pin) -> Literal["cached", "missing", "changed"]:
    try:
        return "missing" if read_cache(pin) is None else "cached"
    except ConfigError:
        return "changed"


def cache_path(pin: Pin) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = home if home.is_absolute() else Path.home() / ".cache"  # as the XDG specification says
    return root / "ray_judge" / "templates" / f"{pin.name}-{pin.literal_sha256[:12]}.txt"
