"""Which files an input stands for; what is not taken is named, with the reason."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_judge.errors import ConfigError, InputError
from ray_judge.storage.hub import open_source

PACKED = ("", ".gz", ".zst")
FORMATS = {
    "Parquet": (".parquet", ".parq", ".pq"),
    "JSON lines": tuple(f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in PACKED),
    "CSV": tuple(f".csv{packed}" for packed in PACKED),
}
"""What a name says of a file. Of an input in several formats the first one here is taken."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata": "Iceberg"}
"""Folders of formats whose log says which of the Parquet files beside it count."""
OURS = ("staged", "judged", "scored", "plan", "calibration", "ledger", "journal", "batches")
"""Folders that a run makes in its output."""
WILD = frozenset("*?[")
NAMED = 20
"""So many files that are not taken are named."""


def format_of(name: str) -> str:
    """The format by a file's name; Parquet where that says nothing."""
    low = name.lower()
    return next((kind for kind, ends in FORMATS.items() if low.endswith(ends)), "Parquet")


def find_shards(
    uri: str, places: Mapping[str, str | None] | None = None
) -> tuple[list[tuple[str, str]], list[str]]:
    """List (root, name) of every data file that a file, folder, glob or URI stands for, and what
    is not taken, and why. The files are of one format: the same rows may lie there in another.

    In a glob `*` stays within a folder and `**` crosses folders. Names that begin with a dot or
    an underscore are left out, unless the file itself is named, or the glob has such a name.
    Folders are followed through links. `places`: where the run writes, which is not to be among it.
    """
    local, path = "://" not in uri, Path(uri).expanduser().absolute()
    if local and path.is_file():
        return [(str(path.parent), path.name)], []
    if local and not path.exists() and not WILD & set(uri):
        raise InputError("there is no such file or folder", input=uri)
    if local and path.exists() and not path.is_dir():
        raise InputError("this is neither a file nor a folder", input=uri)
    parts = (str(path) if local else uri).split("/")
    wild = [n for n, part in enumerate(parts) if WILD & set(part)]
    cut = len(parts) - (not local and uri.lower().endswith(SUFFIXES))
    if wild and not (local and path.is_dir()):
        cut = wild[0]
    root, pattern = "/".join(parts[:cut]) or "/", parts[cut:]
    for key, place in (places or {}).items():
        if place is not None:
            _check_apart(root, pattern, key, place)
    listed, left = _below(root, pattern) if local else (open_source(root).list(""), [])
    _check_plain(listed, uri)
    names = []
    for name in listed:
        if pattern and not _matches(name.split("/"), pattern):
            continue
        if (why := _objection(name, pattern)) is None:
            names.append(name)
        elif why:
            left.append(f"{name.encode(errors='backslashreplace').decode()} ({why})")
    there = {*map(format_of, names)}
    taken = next((kind for kind in FORMATS if kind in there), "")
    why = f"there is {taken}, too, and an input has one format"
    left += [f"{name} ({why})" for name in names if format_of(name) != taken]
    names = [name for name in names if format_of(name) == taken]
    if len(left) > NAMED:
        left[NAMED:] = [f"and {len(left) - NAMED:,} more"]
    if not names:
        said = f"; not taken: {', '.join(left)}" if left else ""
        kinds = "Parquet, JSON lines or CSV"
        raise InputError(f"no shards here: {kinds} ({', '.join(SUFFIXES)}){said}", input=uri)
    return [(open_source(root).uri, name) for name in names], left


def _objection(name: str, pattern: Sequence[str]) -> str | None:
    """Why a file is not taken; nothing is said of what is hidden and no data."""
    data = name.lower().endswith(SUFFIXES)
    for part in name.split("/"):
        if part[0] in "._" and not any(wanted.startswith(part[0]) for wanted in pattern):
            return f"names with a leading {part[0]} are no data by custom" if data else ""
    if data and any("\ud800" <= letter <= "\udfff" for letter in name):
        return "its name is not UTF-8"
    chosen = pattern and pattern[-1].strip("*")
    return None if data or chosen else "no data by its name"


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or bool(parts and _matches(parts[1:], pattern))
    here = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return here and _matches(parts[1:], pattern[1:])


def _below(root: str, pattern: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files below a folder that a glob can match (all without one), also behind links, but
    each one once; and what was left out.
    """
    found: dict[str, str] = {}
    linked: dict[str, str] = {}
    left: list[str] = []
    seen, starts = set(), [root]

    def name(path: str) -> str:
        return os.path.relpath(path, root)

    def refuse(error: OSError) -> None:
        left.append(f"{name(error.filename)} ({error.strerror})")

    for start in starts:
        for place, folders, files in os.walk(start, onerror=refuse):
            real = os.path.realpath(place)
            if real in seen:
                left.append(f"{name(place)} (it links to a folder that is looked into)")
                folders.clear()
                continue
            seen.add(real)
            inside = _inner(place, root) or []
            folders[:] = [f for f in folders if f in TABLES or _may_match([*inside, f], pattern)]
            starts += sorted(p for f in folders if os.path.islink(p := os.path.join(place, f)))
            for path in (os.path.join(place, file) for file in files):
                if os.path.islink(path):
                    linked[path] = os.path.realpath(path)
                else:
                    found[os.path.join(real, os.path.basename(path))] = name(path)
    for path, real in sorted(linked.items()):
        if real in found:
            left.append(f"{name(path)} (it links to {found[real]})")
        found.setdefault(real, name(path))
    pipes = {n for p, n in found.items() if os.path.exists(p) and not os.path.isfile(p)}
    left += [f"{name} (no regular file)" for name in sorted(pipes)]
    return sorted({*found.values()} - pipes), left


def _check_plain(listed: Sequence[str], uri: str) -> None:
    """Refuse a table whose log says which files count."""
    for name in listed:
        folder, _, file = name.rpartition("/")
        for kind in (TABLES[part] for part in folder.split("/") if part in TABLES):
            if kind != "Iceberg" or file.endswith(".metadata.json"):
                said = f"this is a table of {kind}, whose log says which files count"
                raise InputError(f"{said}: write it as plain Parquet first", input=uri)


def _check_apart(root: str, pattern: Sequence[str], key: str, place: str) -> None:
    """Refuse a run that would write among its input, or take for input what it writes."""
    here, there = (path if "://" in path else os.path.realpath(path) for path in (root, place))
    inside = _inner(there, here)
    if inside is not None and _may_match(inside, pattern):
        said = f"{key} lies in the input, and would be taken for input: choose another place"
        raise ConfigError(said, input=root, place=place)
    inside = _inner(here, there)
    if inside and inside[0] in OURS:
        said = f"the input lies where the run writes: choose another {key}"
        raise ConfigError(said, input=root, place=place)


def _inner(place: str, folder: str) -> list[str] | None:
    """The names that lead from a folder to a place in it; None for a place elsewhere."""
    folder = folder.rstrip("/")
    if place != folder and not place.startswith(f"{folder}/"):
        return None
    return place[len(folder) + 1 :].split("/") if place != folder else []


def _may_match(inside: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a glob can match something below a folder."""
    for part, wanted in zip(inside, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return not pattern or len(pattern) > len(inside)
