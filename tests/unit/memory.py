"""A disk in memory, fast, on which a test lets happen whatever it wants."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from ray_judge.errors import AlreadyExists
from ray_judge.storage.local import AppendLog, Missing


class MemoryStorage:
    """What was not synced is in no file. `before(operation, path)` may raise, wait, or intervene.

    A listing comes in two pages: compacted files, then, behind the operation `page`, all others.
    """

    uri = "/memory"

    def __init__(
        self,
        files: dict[str, bytes] | None = None,
        before: Callable[[str, str], object] = lambda operation, path: None,
    ) -> None:
        self.files, self.before = files or {}, before

    def read(self, path: str) -> bytes:
        self.before("read", path)
        if path not in self.files:
            raise Missing("none", path=path)
        return self.files[path]

    def write(self, path: str, data: bytes) -> None:
        self.before("write", path)
        self.files[path] = data

    def create(self, path: str, data: bytes) -> None:
        if path in self.files:
            raise AlreadyExists("taken", path=path)
        self.write(path, data)

    def exists(self, path: str) -> bool:
        return path in self.files

    def list(self, prefix: str) -> list[str]:
        first = [path for path in self.files if path.endswith(".parquet")]
        self.before("page", prefix)
        rest = [path for path in self.files if not path.endswith(".parquet")]
        return sorted(path for path in first + rest if path.startswith(prefix + "/"))

    def delete(self, path: str) -> None:
        self.before("delete", path)
        self.files.pop(path, None)

    def log(self, path: str) -> AppendLog:
        self.create(path, b"")
        return _Log(self, path)

    @contextmanager
    def write_stream(self, path: str) -> Iterator[io.BytesIO]:
        yield (file := io.BytesIO())
        self.write(path, file.getvalue())

    def open_input(self, path: str) -> Any:
        return pa.BufferReader(self.read(path))


class _Log(AppendLog):
    def __init__(self, storage: MemoryStorage, path: str) -> None:
        super().__init__(path)
        self._storage = storage

    def _put(self, data: bytes) -> None:
        self._storage.before("sync", self.path)
        if self.path in self._storage.files:  # else it was removed: nobody will ever read it
            self._storage.files[self.path] += data
