"""Run directories on S3 and GCS, through obstore (the extra `s3`)."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from ray_judge.errors import AlreadyExists, ConfigError, StorageError
from ray_judge.storage.local import AppendLog, Missing, checked

_SPOOL_BYTES = 32 << 20
"""A stream is kept in memory up to this size, then in a temporary file, then put at once."""
CREDENTIALS = (
    "neither the environment has any (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://; "
    "GOOGLE_APPLICATION_CREDENTIALS for gs://) nor the machine's role; ~/.aws is not read"
)
"""Asked last of all is the address at which a cloud's machine learns its role."""
Version = dict[str, str]
"""What tells one state of an object from another (`e_tag`, and `version` where there is one)."""


def _version(found: Any) -> Version:
    return {key: found[key] for key in ("e_tag", "version") if found.get(key)}


@contextmanager
def _object_errors(path: str) -> Iterator[None]:
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except FileNotFoundError as error:
        raise Missing("no such object, or no such bucket", path=path) from error
    except (AlreadyExistsError, PreconditionError) as error:
        raise AlreadyExists("the name is taken", path=path) from error
    except (BaseError, OSError) as error:
        # The store's own text is kept short: it may quote whole responses.
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        if "169.254.169.254" in text or "metadata.google.internal" in text:
            raise ConfigError(f"no credentials: {CREDENTIALS}", path=path) from None
        raise StorageError(f"the object store refused: {text}", path=path) from error


class ObjectStorage:
    """Objects under one prefix of a bucket. It pickles as its URI, without credentials."""

    def __init__(self, uri: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            raise ConfigError(
                "object stores need the extra `s3`: pip install 'ray-judge[s3]'", uri=uri
            ) from error
        self.uri = uri
        self._obstore = obstore
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        connect: Any = from_url  # its overloads cannot be chosen by a URI known at run time
        with _object_errors(uri):
            self._store = connect(uri, client_options={"allow_http": plain})

    def _errors(self, path: str) -> AbstractContextManager[None]:
        return _object_errors(f"{self.uri}/{path}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStorage, (self.uri,))

    def read(self, path: str) -> bytes:
        return self.read_version(path)[0]

    def write(self, path: str, data: bytes) -> None:
        with self._errors(path):
            self._obstore.put(self._store, checked(path), data, use_multipart=False)

    def create(self, path: str, data: bytes) -> None:
        """Put where nothing is (`If-None-Match: *`).

        A put whose answer was lost is sent again by the client and then refused: the caller sees
        AlreadyExists for its own object, and may read it back to know.
        """
        self.replace(path, data, None)

    def replace(self, path: str, data: bytes, version: Version | None) -> Version:
        """Put where the object has this version, None: where there is none; else AlreadyExists.
        Gives the new version.
        """
        mode = "create" if version is None else version
        with self._errors(path):
            put: Any = self._obstore.put
            return _version(put(self._store, checked(path), data, mode=mode, use_multipart=False))

    def read_version(self, path: str) -> tuple[bytes, Version]:
        with self._errors(path):
            found = self._obstore.get(self._store, checked(path))
            return bytes(found.bytes()), _version(found.meta)

    def exists(self, path: str) -> bool:
        try:
            with self._errors(path):
                self._obstore.head(self._store, checked(path))
        except Missing:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        with self._errors(prefix):
            batches = self._obstore.list(self._store, prefix=prefix.rstrip("/") or None)
            return sorted(str(item["path"]) for batch in batches for item in batch)

    def delete(self, path: str) -> None:
        with contextlib.suppress(Missing), self._errors(path):
            self._obstore.delete(self._store, checked(path))

    def log(self, path: str) -> AppendLog:
        # Every sync creates the next object: path.00000001, path.00000002, ...
        if self.exists(f"{path}.{1:08d}"):
            raise AlreadyExists("the name is taken", path=path)
        return _ObjectLog(self, checked(path))

    @contextmanager
    def write_stream(self, path: str) -> Iterator[BinaryIO]:
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as file:
            yield cast(BinaryIO, file)
            file.seek(0)
            with self._errors(path):
                self._obstore.put(self._store, checked(path), cast(Any, file))

    def open_input(self, path: str) -> Any:
        with self._errors(path):
            reader = self._obstore.open_reader(self._store, checked(path))
        return pa.PythonFile(_ObjectFile(f"{self.uri}/{path}", reader), mode="r")


class _ObjectFile(io.RawIOBase):
    """obstore's reader with our errors, as pyarrow wants a Python file to be."""

    def __init__(self, path: str, reader: Any) -> None:
        self._path = path
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        with _object_errors(self._path):
            return bytes(self._reader.read(None if size is None or size < 0 else size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


class _ObjectLog(AppendLog):
    def __init__(self, storage: ObjectStorage, path: str) -> None:
        super().__init__(path)
        self._storage = storage
        self._segment = 0

    def _put(self, data: bytes) -> None:
        self._segment += 1
        name = f"{self.path}.{self._segment:08d}"
        try:
            self._storage.create(name, data)
        except AlreadyExists:
            # Our own put whose answer was lost, or another writer under our name: the bytes tell.
            if self._storage.read(name) != data:
                raise
