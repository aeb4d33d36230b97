"""Data sets on the Hugging Face Hub (`hf://datasets/<org>/<name>[@<revision>]/<path>`), to read.

Two of the Hub's addresses are used: the listing of a repository's tree (`/api/datasets/.../tree`,
in pages) and a file's own (`/datasets/.../resolve/...`), which takes ranges. `HF_ENDPOINT` names
another server, `HF_TOKEN` opens what is not public.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import pyarrow as pa

from ray_judge.errors import ConfigError, StorageError
from ray_judge.storage.local import Missing, open_storage

ATTEMPTS, FIRST_WAIT_S = 4, 0.5
SILENCE_S = 60.0
"""How long the server may say nothing."""


class Readable(Protocol):
    """What an input is read from: the part of `Storage` that reads."""

    @property
    def uri(self) -> str: ...
    def list(self, prefix: str) -> list[str]: ...
    def open_input(self, path: str) -> Any: ...


def open_source(uri: str) -> Readable:
    """Open a place to read from: any storage, or a data set on the Hub. Raises ConfigError."""
    return HubSource(uri) if uri.startswith("hf://") else open_storage(uri)


class HubSource:
    """Files below one folder of a data set's repository."""

    def __init__(self, uri: str) -> None:
        parts = uri.removeprefix("hf://").rstrip("/").split("/")
        if parts[0] != "datasets" or len(parts) < 3:
            said = "on the Hub an input is like hf://datasets/org/name/folder/*.parquet"
            raise ConfigError(said, uri=uri)
        self.uri = "/".join(["hf:/", *parts])
        name, _, revision = parts[2].partition("@")
        self._repository = f"datasets/{parts[1]}/{name}"
        self._revision, self._folder = quote(revision or "main", safe=""), "/".join(parts[3:])

    def list(self, prefix: str) -> list[str]:
        """Paths below the folder, sorted. Raises Missing, StorageError."""
        folder = f"{self._folder}/{prefix}".strip("/")
        place = f"api/{self._repository}/tree/{self._revision}/{quote(folder)}".rstrip("/")
        url, found = f"{_endpoint()}/{place}?recursive=true", []
        while url:
            page = _get(url, f"{self.uri}/{prefix}")
            found += [item["path"] for item in page.json() if item.get("type") == "file"]
            url = page.links.get("next", {}).get("url", "")
        return sorted(path.removeprefix(f"{self._folder}/") for path in found)

    def open_input(self, path: str) -> Any:
        place = quote(f"{self._folder}/{path}".strip("/"))
        url = f"{_endpoint()}/{self._repository}/resolve/{self._revision}/{place}"
        return pa.PythonFile(_HubFile(url, f"{self.uri}/{path}"), mode="r")


class _HubFile(io.RawIOBase):
    """A file by ranges of bytes."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name, self._at, self._size = url, name, 0, 1
        told = self._range(1).headers.get("content-range", "").rpartition("/")[2]
        if not told.isdecimal():
            raise StorageError("the server gives no part of a file", path=name)
        self._size = int(told)

    def _range(self, end: int) -> httpx.Response:
        return _get(self._url, self._name, {"range": f"bytes={self._at}-{end - 1}"})

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        data = self._range(end).content if end > self._at else b""
        if len(data) != max(0, end - self._at):
            raise StorageError("the server sent another part of this file", path=self._name)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _get(url: str, name: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """Ask, again where it may help. Raises Missing, ConfigError, StorageError."""
    sent = {"accept-encoding": "identity", **(headers or {})}
    if token := os.environ.get("HF_TOKEN"):
        sent["authorization"] = f"Bearer {token}"
    for attempt in range(ATTEMPTS):
        time.sleep(FIRST_WAIT_S * (2**attempt - 1))
        try:
            answer = httpx.get(url, headers=sent, timeout=SILENCE_S, follow_redirects=True)
        except httpx.HTTPError as error:
            said = f"the Hub does not answer: {error}"
            continue
        code = answer.status_code
        if answer.is_success:
            return answer
        if code in (401, 403):
            said = "the Hub lets nobody in without a token that may read this (HF_TOKEN)"
            raise ConfigError(said, path=name)
        if code == 404:
            raise Missing("there is nothing of this name on the Hub", path=name)
        said = f"the Hub answers with status {code}"
        if code < 500 and code != 429:
            break
    raise StorageError(said, path=name)
