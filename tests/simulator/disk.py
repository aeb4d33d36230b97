"""The simulated disk or object store: what it promises is kept, everything else is broken.

Kept, as `ray_judge/storage/local.py` states it: a file appears whole or not at all, a `create` is
exclusive, what a returned `sync` wrote stays. Broken at the seed's will: how long anything takes,
whether it fails, whether a failed operation took effect all the same, and what a crash leaves of
bytes that were being synced (a prefix, with or without zeros in it).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray_judge.errors import AlreadyExists, StorageError
from ray_judge.storage.local import AppendLog
from ray_judge.storage.object_store import _ObjectLog
from tests.unit.memory import MemoryStorage

from .loop import PROCESS, SimLoop
from .plan import Plan

TICK_S = 0.002
"""About what one operation takes."""


@dataclass
class Disk:
    """The bytes, and the faults to come. Survives every process."""

    loop: SimLoop
    rng: random.Random
    plan: Plan
    failures: int = 0
    slow_s: float = 0.0
    """Sum of all injected slowness so far."""
    files: dict[str, bytes] = field(default_factory=dict)
    on_durable: Callable[[str, bytes], None] = lambda path, data: None
    on_failure: Callable[[str], None] = lambda path: None

    def delay_s(self) -> float:
        if self.plan.p_slow and self.rng.random() < self.plan.p_slow:
            slow_s = self.rng.choice((0.05, 0.5, 3.0)) * self.rng.random()
            self.slow_s += slow_s
            return slow_s
        return self.rng.random() * TICK_S

    def fails(self) -> bool:
        fails = self.failures < self.plan.failures and self.rng.random() < self.plan.p_fail
        self.failures += fails
        return fails

    def torn(self, data: bytes) -> bytes:
        """What may be left of bytes whose sync never returned."""
        kept = data[: self.rng.randint(0, len(data))]
        if kept and self.rng.random() < 0.3:  # a page that was allocated and never written
            start = self.rng.randint(0, len(kept) - 1)
            end = self.rng.choice((len(kept), self.rng.randint(start, len(kept))))
            kept = kept[:start] + b"\0" * (end - start) + kept[end:]
        return kept


class SimStorage(MemoryStorage):
    """A process's way to the disk: every operation belongs to who calls it, and dies with it."""

    uri = "sim"

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk, self.files = disk, disk.files

    @contextmanager
    def _operation(self, path: str) -> Iterator[None]:
        """Time passes before the effect and after it; either side may fail."""
        disk = self.disk
        disk.loop.pass_time(disk.delay_s())
        fails = disk.fails()
        if fails and disk.rng.random() < 0.5:
            disk.on_failure(path)
            raise StorageError("simulated: refused", path=path)
        yield
        disk.loop.pass_time(disk.delay_s())
        if fails:
            disk.on_failure(path)
            raise StorageError("simulated: done, but the confirmation was lost", path=path)

    def read(self, path: str) -> bytes:
        with self._operation(path):
            return super().read(path)

    def write(self, path: str, data: bytes) -> None:
        with self._operation(path):
            super().write(path, data)

    def create(self, path: str, data: bytes) -> None:
        """Like `obstore`, it may refuse its own object (see there)."""
        with self._operation(path):
            if path in self.files:
                raise AlreadyExists("the name is taken", path=path)
            self.files[path] = data
            self.disk.on_durable(path, data)
            if self.disk.plan.segments and self.disk.fails():
                raise AlreadyExists("simulated: sent twice", path=path)

    def exists(self, path: str) -> bool:
        with self._operation(path):
            return super().exists(path)

    def list(self, prefix: str) -> list[str]:
        with self._operation(prefix):
            return super().list(prefix)

    def delete(self, path: str) -> None:
        with self._operation(path):
            super().delete(path)

    def log(self, path: str) -> AppendLog:
        log: AppendLog
        if self.disk.plan.segments:
            if self.exists(f"{path}.{1:08d}"):
                raise AlreadyExists("the name is taken", path=path)
            log = _ObjectLog(self, path)  # type: ignore[arg-type]
        else:
            self.create(path, b"")
            log = DiskLog(self, path)
        log._sync_lock = _OneSync()  # type: ignore[assignment]
        return log


class DiskLog(AppendLog):
    """The real buffering and the real "broken after a failure", over simulated bytes."""

    def __init__(self, storage: SimStorage, path: str) -> None:
        super().__init__(path)
        self._disk = storage.disk

    def _put(self, data: bytes) -> None:
        disk, process = self._disk, PROCESS.get()

        def tear() -> None:
            self._add(disk.torn(data))

        process.at_death.append(tear)
        try:
            disk.loop.pass_time(disk.delay_s())
        finally:
            if process.alive:
                process.at_death.remove(tear)
        if disk.fails():
            tear()
            disk.on_failure(self.path)
            raise StorageError("simulated: fsync failed", path=self.path)
        self._add(data)
        disk.on_durable(self.path, data)
        disk.loop.pass_time(disk.delay_s())

    def _add(self, data: bytes) -> None:
        if self.path in self._disk.files:  # else it was deleted while open: written into nowhere
            self._disk.files[self.path] += data


class _OneSync:
    """There are no threads here; two syncs of one log at once would be a mistake of the caller."""

    _held = False

    def __enter__(self) -> None:
        assert not self._held, "two syncs of one log at the same time"
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
