"""The file-system edge: local disks and object stores behind one narrow seam.

A run directory lives in a `Storage`. What the rest of the package relies on:

* `write` and `write_stream` replace atomically: a reader sees the old file, the new one, never
  a part; what they return from is durable.
* `create` is exclusive: of any number of racing callers exactly one returns, all others get
  `AlreadyExists`. Fencing of the ledger stands on this.
* `exists` and `list` see every `create` that returned before they were called (a network file
  system with cached look-ups does not, and must not hold a ledger).
* An `AppendLog` keeps what was appended before a `sync` that returned. What came after it may
  be there in part: readers of logs check every line (`escalation/books/lines.py`).

Exceptions of the operating system and of the object store's client are translated here, by type.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote

import pyarrow as pa

from ray_judge.errors import AlreadyExists, ConfigError, StorageError

_TEMPORARY = ".tmp-"
"""Prefix of names that are being written; never listed, worthless after a crash."""


class Missing(StorageError): ...


class AppendLog:
    """A log that only grows; `append` from one thread, `sync` possibly from another."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._pending = bytearray()
        self._pending_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._broken = False

    def append(self, data: bytes) -> None:
        """Buffer `data`; nothing is durable yet."""
        with self._pending_lock:
            self._pending += data

    def sync(self) -> None:
        """Make everything appended before this call durable, or raise `StorageError`.

        After a failure the log refuses all further work: a later success would prove nothing.
        """
        with self._sync_lock:
            if self._broken:
                raise StorageError("an earlier write to this log failed", path=self.path)
            with self._pending_lock:
                data, self._pending = bytes(self._pending), bytearray()
            if data:
                self._broken = True  # until the write is known to have succeeded
                self._put(data)
                self._broken = False

    def close(self) -> None:
        """Sync what is buffered, unless an earlier write failed, and refuse all further work."""
        if not self._broken:
            self.sync()
        self._broken = True

    def _put(self, data: bytes) -> None:
        raise NotImplementedError


class Storage(Protocol):
    """A root under which relative paths with forward slashes name files.

    `create` and `log` raise AlreadyExists where the name is taken, `read` and `open_input` (for
    `pyarrow.parquet`) Missing where nothing is; `delete` does not mind. `list` gives sorted paths
    of the complete files under a folder. `write_stream` leaves nothing when its block fails.
    """

    @property
    def uri(self) -> str: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...
    def exists(self, path: str) -> bool: ...
    def list(self, prefix: str) -> list[str]: ...
    def delete(self, path: str) -> None: ...
    def log(self, path: str) -> AppendLog: ...
    def write_stream(self, path: str) -> AbstractContextManager[BinaryIO]: ...
    def open_input(self, path: str) -> Any: ...


def open_storage(uri: str) -> Storage:
    """Open a local path, `file://`, `s3://` or `gs://` root; nothing is created or contacted yet.

    Credentials come from the environment (`AWS_*`, `GOOGLE_*`). Raises ConfigError.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        if not (path := unquote(rest) if separator else uri):
            raise ConfigError("an empty path is no place", uri=uri)
        return LocalStorage(os.path.abspath(path))
    if scheme in ("s3", "gs"):
        if not rest.partition("/")[0]:
            raise ConfigError("the URI names no bucket", uri=uri)
        from ray_judge.storage.object_store import ObjectStorage

        return ObjectStorage(uri.rstrip("/"))
    said = f"no storage is known as {scheme}://: it is a local path, file://, s3:// or gs://"
    raise ConfigError(said, uri=uri)


def checked(path: str) -> str:
    """Refuse paths that leave the root: every name in a run directory is our own making."""
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise StorageError("not a relative path inside the storage", path=path)
    return path


@contextmanager
def local_errors(path: str) -> Iterator[None]:
    """Translate the operating system's exceptions."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing("no such file", path=path) from error
    except FileExistsError as error:
        raise AlreadyExists("the name is taken", path=path) from error
    except OSError as error:
        raise StorageError(f"the file system refused: {error.strerror}", path=path) from error


def _sync_folder(folder: str) -> None:
    # Makes the names in `folder` durable: without it a crash may forget a rename.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: str) -> str:
    """Make a folder that a crash does not forget. Raises ConfigError where a file is in its way."""
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        make_folder(parent)
        try:
            os.makedirs(folder, exist_ok=True)
        except FileExistsError:
            raise ConfigError("a file is in the way of a folder", file=folder) from None
        _sync_folder(parent)
    return folder


class LocalStorage:
    """Files under one folder of a local disk."""

    def __init__(self, root: str) -> None:
        self.uri = root

    def _errors(self, path: str) -> AbstractContextManager[None]:
        return local_errors(f"{self.uri}/{path}")

    def _at(self, path: str) -> str:
        return os.path.join(self.uri, checked(path))

    def read(self, path: str) -> bytes:
        with self._errors(path):
            return Path(self._at(path)).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        with self._errors(path), self._new_file(path, os.replace) as file:
            file.write(data)

    def create(self, path: str, data: bytes) -> None:
        # a hard link either takes the name or fails, atomically
        with self._errors(path), self._new_file(path, os.link) as file:
            file.write(data)

    def write_stream(self, path: str) -> AbstractContextManager[BinaryIO]:
        return self._new_file(path, os.replace)

    @contextmanager
    def _new_file(self, path: str, put_in_place: Callable[[str, str], None]) -> Iterator[BinaryIO]:
        """A file that readers skip until the block ends well; the block's errors pass unchanged."""
        with self._errors(path):
            folder = make_folder(os.path.dirname(self._at(path)))
            temporary = os.path.join(folder, f"{_TEMPORARY}{secrets.token_hex(8)}")
            file = open(temporary, "xb")  # noqa: SIM115  it is closed below
        try:
            with file:
                yield file
                with self._errors(path):
                    file.flush()
                    os.fsync(file.fileno())
                    put_in_place(temporary, self._at(path))
                    _sync_folder(folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def exists(self, path: str) -> bool:
        return os.path.isfile(self._at(path))

    def list(self, prefix: str) -> list[str]:
        start = Path(self._at(prefix) if prefix else self.uri)
        return sorted(
            path.relative_to(self.uri).as_posix()
            for path in start.rglob("*")
            if not path.name.startswith(_TEMPORARY) and path.is_file()
        )

    def delete(self, path: str) -> None:
        with self._errors(path), contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(path))

    def log(self, path: str) -> AppendLog:
        with self._errors(path):
            folder = make_folder(os.path.dirname(self._at(path)))
            file = open(self._at(path), "xb", buffering=0)  # noqa: SIM115  the log closes it
            _sync_folder(folder)
        return _LocalLog(path, file)

    def open_input(self, path: str) -> Any:
        with self._errors(path):
            return pa.OSFile(self._at(path), "rb")


class _LocalLog(AppendLog):
    def __init__(self, path: str, file: FileIO) -> None:
        super().__init__(path)
        self._file = file

    def _put(self, data: bytes) -> None:
        with local_errors(self.path):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._file.close()
