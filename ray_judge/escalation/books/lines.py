r"""The line format of the ledger's and the journal's logs: what a crash left is never mis-read.

One record a line:

    <version> <number> <synced> <checksum> <JSON object>\\n

`number` counts the lines of a log from 1. `synced` is the number of lines that were known to be
durable when this one was written. `checksum` (16 hex digits) covers everything else.

What can be wrong, and what it means:

* The end of the log is cut off, or pages of it are zeros: a crash in the middle of a sync that
  never returned. Nobody was told that those lines exist, so they are dropped.
* The same, but a later, sound line says that the broken one had been synced: a sync that
  returned has lost data. The disk or a hand did that: `CorruptedError`.
* A complete line without zeros whose checksum is wrong: a crash cannot do that to a log that
  only grows: `CorruptedError`.
* A complete line of a higher version: `CorruptedError`, saying so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ray_judge.errors import CorruptedError
from ray_judge.storage.local import AppendLog, Missing, Storage

VERSION = 1
LISTINGS = 5  # so often in a row a folder may change under its reader
T = TypeVar("T")


def encode(number: int, synced: int, payload: Mapping[str, Any]) -> bytes:
    """One line; `payload` must hold plain JSON values (money never as a float)."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    head = f"{VERSION} {number} {synced} "
    return f"{head}{_checksum(head, text)} {text}\n".encode()


def _checksum(head: str, text: str) -> str:
    return hashlib.blake2b((head + text).encode(), digest_size=8).hexdigest()


def _decode(line: bytes) -> tuple[int, int, dict[str, Any]] | None:
    try:
        version, number, synced, checksum, text = line.decode().split(" ", 4)
    except ValueError:  # of the encoding, too
        return None
    if checksum != _checksum(f"{version} {number} {synced} ", text) or version != str(VERSION):
        return None
    return int(number), int(synced), json.loads(text)


def decode_log(data: bytes, name: str) -> list[dict[str, Any]]:
    """The records of one log, torn tail dropped; `CorruptedError` names `name` and the line."""
    pieces = data.split(b"\n")[:-1]  # behind the last newline: empty, or a torn line
    records: list[dict[str, Any]] = []
    hole = False
    for at, piece in enumerate(pieces, start=1):
        zeros, line = piece.rpartition(b"\0")[1:]  # zeros of a lost page may precede a line
        hole = hole or bool(zeros)
        decoded = _decode(line)
        if decoded is None and zeros:
            continue
        if decoded is None:
            version = line.split(b" ", 1)[0]
            newer = version.isdigit() and len(version) < 6 and int(version) > VERSION
            problem = "written by a newer version of ray_judge" if newer else "a damaged line"
            raise CorruptedError(problem, file=name, line=at)
        number, synced, payload = decoded
        expected = len(records) + 1
        if number < expected or (number == expected and hole) or synced >= number:
            raise CorruptedError("a line is out of its place", file=name, line=at)
        hole = hole or number > expected
        if hole and synced >= expected:
            problem = f"line {expected} had been stored safely and is damaged or gone"
            raise CorruptedError(problem, file=name, line=at)
        if not hole:
            records.append(payload)
    return records


def log_names(paths: Iterable[str]) -> dict[str, list[str]]:
    """Group files into logs: `x.log` on a disk, segments `x.log.00000001`, ... in a store.

    A log has all segments up to the highest that is listed: a listing that comes in pages, beside
    a writer, may show a later one and not an earlier.
    """
    logs: dict[str, list[str]] = {}
    for path in sorted(paths):  # of several segments of a log the last one comes last
        stem, _, last = path.rpartition(".")
        if path.endswith(".log"):
            logs[path] = [path]
        elif last.isdigit() and stem.endswith(".log"):
            logs[stem] = [f"{stem}.{number:08d}" for number in range(1, int(last) + 1)]
    return dict(sorted(logs.items()))


def read_log(storage: Storage, name: str, parts: Iterable[str]) -> list[dict[str, Any]]:
    return decode_log(b"".join(storage.read(part) for part in parts), f"{storage.uri}/{name}")


def read_listed(storage: Storage, folder: str, read: Callable[[Sequence[str]], T]) -> T:
    """Let `read` read the files of a folder, listed again where another process removed one."""
    for _ in range(LISTINGS):
        paths = storage.list(folder)
        try:
            return read(paths)
        except Missing as error:
            missing = error
    place = f"{storage.uri}/{missing.where.get('path', folder)}"
    raise CorruptedError("a file is gone that others build upon", file=place) from missing


class LineLog:
    """Appends records to a new log; keeps the count that `synced` needs."""

    def __init__(self, log: AppendLog) -> None:
        self._log, self._written, self._synced = log, 0, 0

    @property
    def unsynced(self) -> bool:
        return self._written > self._synced

    def append(self, payload: Mapping[str, Any]) -> int:
        number = self._written + 1
        self._log.append(encode(number, self._synced, payload))
        # Counted only once it is in the buffer: a sync in another thread must not claim it before.
        self._written = number
        return number

    def sync(self) -> int:
        """Make durable what was appended before, in a thread maybe; give the last one's number."""
        upto = self._written
        self._log.sync()
        self._synced = upto
        return upto

    def close(self) -> None:
        self._log.close()
