"""Routed rows as units of questions, read by a thread while others are being asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from ray_judge.errors import RayJudgeError
from ray_judge.escalation.online.actors import Ask
from ray_judge.records import Chunk
from ray_judge.routing.policies import in_asking_order

PER_UNIT = 256
"""Questions in one call to an asker."""


@dataclass(frozen=True)
class Unit:
    """Questions of one chunk that are asked together."""

    chunk: Chunk
    asks: tuple[Ask, ...]


class Feed:
    """Routed frames turned into units, by a thread, so that asking never waits for judging.

    Every question key is in one unit only: identical rows are asked once.
    """

    def __init__(self, routed: Iterable[pl.DataFrame], chunks: Mapping[str, Chunk]) -> None:
        """Begin to read. `chunks`: the run's chunks by name."""
        self.units: list[Unit] = []
        self._queue: queue.SimpleQueue[Unit | RayJudgeError | None] = queue.SimpleQueue()
        self._routed = routed
        self._chunks = chunks
        self._over = False
        self._stopping = False
        self._thread = threading.Thread(target=self._read, name="routed-rows", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more frames, and return when their maker has come to rest."""
        self._stopping = True
        self._thread.join()

    def _read(self) -> None:
        seen: set[str] = set()
        try:
            frames = iter(self._routed)
            for frame in frames:
                if self._stopping:
                    if isinstance(frames, Generator):
                        frames.close()
                    break
                for unit in units(frame, self._chunks, seen):
                    self._queue.put(unit)
        except RayJudgeError as error:
            self._queue.put(error)
        except Exception as error:  # a thread has nobody to raise to
            self._queue.put(RayJudgeError(f"routing failed: {type(error).__name__}: {error}"))
        else:
            self._queue.put(None)

    def poll(self) -> bool:
        """Take what has arrived; True when nothing more will come."""
        while not self._over:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._over = True
            elif isinstance(item, RayJudgeError):
                raise item
            else:
                self.units.append(item)
        return self._over


def units(frame: pl.DataFrame, chunks: Mapping[str, Chunk], seen: set[str]) -> Iterator[Unit]:
    """Cut routed rows into units, chunk by chunk, the least sure rows of a chunk first."""
    asked = in_asking_order(frame)
    for (name,), rows in sorted(asked.group_by("chunk", maintain_order=True)):
        asks: list[Ask] = []
        for row, keys in rows.select("row", "question_keys").rows():
            for order, key in enumerate(keys):
                if key not in seen:
                    seen.add(key)
                    asks.append((row, key, order))
        for start in range(0, len(asks), PER_UNIT):
            yield Unit(chunks[str(name)], tuple(asks[start : start + PER_UNIT]))
