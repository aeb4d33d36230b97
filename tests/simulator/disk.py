"""The simulated disk or object store: what it promises is kept, everything else is broken.

Kept, as `ray_judge/storage/local.py` states it: a file appears whole or not at all, a `create` is
exclusive, what a returned `sync` wrote stays. Broken at the seed's will: how long anything takes,
whether it fails, whether a failed operation took effect all the same, and what a crash leaves of
bytes that were being synced (a prefix, with or without zeros in it).
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from ray_judge.errors import AlreadyExists, StorageError
from ray_judge.storage.local import AppendLog, Missing
from ray_judge.storage.object_store import _ObjectLog

from .loop import Process, SimLoop

TICK_S = 0.002
"""About what one operation takes."""


@dataclass
class Disk:
    """The bytes, and the faults to come. Survives every process."""

    loop: SimLoop
    rng: random.Random
    segments: bool
    """An object store: every sync of a log is an object of its own."""
    p_slow: float = 0.0
    p_fail: float = 0.0
    failures_left: int = 0
    slow_s: float = 0.0
    """Sum of all injected slowness so far."""
    files: dict[str, bytes] = field(default_factory=dict)
    on_durable: Callable[[str, bytes], None] = lambda path, data: None
    on_failure: Callable[[Process, str], None] = lambda process, path: None

    def delay_s(self) -> float:
        """How long the next operation takes."""
        if self.p_slow and self.rng.random() < self.p_slow:
            slow_s = self.rng.choice((0.05, 0.5, 3.0)) * self.rng.random()
            self.slow_s += slow_s
            return slow_s
        return self.rng.random() * TICK_S

    def fails(self) -> bool:
        """Whether the next operation is refused."""
        if self.failures_left and self.rng.random() < self.p_fail:
            self.failures_left -= 1
            return True
        return False

    def torn(self, data: bytes) -> bytes:
        """What may be left of bytes whose sync never returned."""
        kept = data[: self.rng.randint(0, len(data))]
        if kept and self.rng.random() < 0.3:  # a page that was allocated and never written
            start = self.rng.randint(0, len(kept) - 1)
            end = self.rng.choice((len(kept), self.rng.randint(start, len(kept))))
            kept = kept[:start] + b"\0" * (end - start) + kept[end:]
        return kept


class SimStorage:
    """One process's way to the disk; a real `Storage`."""

    uri = "sim"

    def __init__(self, disk: Disk, process: Process) -> None:
        """Every operation belongs to `process`, and dies with it."""
        self.disk = disk
        self.process = process

    @contextmanager
    def _operation(self, path: str) -> Iterator[None]:
        """Time passes before the effect and after it; either side may fail."""
        disk = self.disk
        disk.loop.pass_time(disk.delay_s())
        fails = disk.fails()
        if fails and disk.rng.random() < 0.5:
            disk.on_failure(self.process, path)
            raise StorageError("simulated: refused", path=path)
        yield
        disk.loop.pass_time(disk.delay_s())
        if fails:
            disk.on_failure(self.process, path)
            raise StorageError("simulated: done, but the confirmation was lost", path=path)

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with self._operation(path):
            if path not in self.disk.files:
                raise Missing("no such file", path=path)
            return self.disk.files[path]

    def write(self, path: str, data: bytes) -> None:
        """See `Storage.write`."""
        with self._operation(path):
            self.disk.files[path] = data

    def create(self, path: str, data: bytes) -> None:
        """See `Storage.create`; like `obstore`, it may refuse its own object (see there)."""
        with self._operation(path):
            if path in self.disk.files:
                raise AlreadyExists("the name is taken", path=path)
            self.disk.files[path] = data
            self.disk.on_durable(path, data)
            if self.disk.segments and self.disk.fails():
                raise AlreadyExists("simulated: sent twice", path=path)

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        with self._operation(path):
            return path in self.disk.files

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        with self._operation(prefix):
            return sorted(p for p in self.disk.files if p.startswith(f"{prefix}/"))

    def delete(self, path: str) -> None:
        """See `Storage.delete`."""
        with self._operation(path):
            self.disk.files.pop(path, None)

    def log(self, path: str) -> AppendLog:
        """See `Storage.log`."""
        if self.disk.segments:
            if self.exists(f"{path}.{1:08d}"):
                raise AlreadyExists("the name is taken", path=path)
            return _unlocked(_ObjectLog(self, path))  # type: ignore[arg-type]
        self.create(path, b"")
        return _unlocked(_DiskLog(self, path))

    @contextmanager
    def write_stream(self, path: str) -> Iterator[BinaryIO]:
        """See `Storage.write_stream`."""
        sink = io.BytesIO()
        yield sink
        self.write(path, sink.getvalue())

    def open_input(self, path: str) -> Any:
        """See `Storage.open_input`."""
        return pa.BufferReader(self.read(path))


class _DiskLog(AppendLog):
    """The real buffering and the real "broken after a failure", over simulated bytes."""

    def __init__(self, storage: SimStorage, path: str) -> None:
        super().__init__(path)
        self._storage = storage

    def _put(self, data: bytes) -> None:
        disk, process = self._storage.disk, self._storage.process

        def tear() -> None:
            self._add(disk.torn(data))

        process.at_death.append(tear)
        try:
            disk.loop.pass_time(disk.delay_s())
        finally:
            if process.alive:
                process.at_death.remove(tear)
        if disk.fails():
            self._add(disk.torn(data))
            disk.on_failure(process, self.path)
            raise StorageError("simulated: fsync failed", path=self.path)
        self._add(data)
        disk.on_durable(self.path, data)
        disk.loop.pass_time(disk.delay_s())

    def _add(self, data: bytes) -> None:
        files = self._storage.disk.files
        if self.path in files:  # else it was deleted while open: written into nowhere
            files[self.path] += data

    def close(self) -> None:
        """Sync what is left; as a local log, refuses when an earlier sync failed."""
        try:
            self.sync()
        finally:
            self._broken = True


class _NoLock:
    """There are no threads here; two syncs of one log at once would be a mistake of the caller."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise AssertionError("two syncs of one log at the same time")
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


def _unlocked(log: AppendLog) -> AppendLog:
    log._sync_lock, log._pending_lock = _NoLock(), _NoLock()  # type: ignore[assignment]
    return log
