"""/v1/files: uploaded and produced files, in memory."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.provider import wire
from tests.provider.config import CallFault
from tests.provider.faults import HTTP_ERRORS, HttpError
from tests.provider.state import Provider
from tests.provider.wire import ApiFailure, bad_request, json_answer, not_found


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    content: bytes
    filename: str
    purpose: str
    created_at: int

    def body(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("id", "created_at", "filename", "purpose")}
        return {**told, "object": "file", "bytes": len(self.content), "status": "processed"}


class FileStore:
    """All files; identifiers are never used twice in one process."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.files: dict[str, StoredFile] = {}
        self.uploads = 0

    def reset(self) -> None:
        self.files.clear()
        self.uploads = 0

    def add(self, content: bytes, filename: str, purpose: str) -> StoredFile:
        file_id = f"file-sim{next(self._numbers):08d}"
        self.files[file_id] = StoredFile(file_id, content, filename, purpose, int(time.time()))
        return self.files[file_id]

    def get(self, file_id: str) -> StoredFile:
        if file_id not in self.files:
            raise not_found(f"File object: {file_id}")
        return self.files[file_id]


def scripted(faults: tuple[CallFault, ...], call: int) -> str | None:
    """The fault of this 1-based call, if one is scripted."""
    return next((fault.kind for fault in faults if call in fault.calls), None)


def fail_if(request: web.Request, fault: str | None, when: str) -> web.Response | None:
    """Carry out the fault if it belongs to this moment ("before" or "after" the record)."""
    if fault == "rate_limit" and when == "before":
        raise ApiFailure(HTTP_ERRORS["rate_limit"], wire.wait_headers(1.0))
    if fault == f"error_{when}":
        raise ApiFailure(HTTP_ERRORS["server_error"])
    if fault == f"reset_{when}":
        wire.reset_connection(request)
        return web.Response(status=499)
    return None


class FileRoutes:
    def __init__(self, provider: Provider, store: FileStore) -> None:
        self._provider, self._store = provider, store

    async def upload(self, request: web.Request) -> web.Response:
        """POST /v1/files (multipart: purpose, file)."""
        self._store.uploads += 1
        settings = self._provider.config.batches
        fault = scripted(settings.upload_faults, self._store.uploads)
        if not request.content_type.startswith("multipart/"):
            raise bad_request("Expected a multipart form.")
        form = await request.post()
        if (dropped := fail_if(request, fault, "before")) is not None:
            return dropped
        file, purpose = form.get("file"), str(form.get("purpose", ""))
        if not isinstance(file, web.FileField) or not purpose:
            raise bad_request("Missing required parameter: 'file' or 'purpose'.", param="file")
        content = file.file.read()
        if len(content) > settings.max_bytes:
            message = f"File exceeds the maximum size of {settings.max_bytes} bytes."
            error = HttpError(413, "file_too_large", "invalid_request_error", message, "file")
            raise ApiFailure(error)
        stored = self._store.add(content, file.filename, purpose)
        return fail_if(request, fault, "after") or json_answer(stored.body())

    async def content(self, request: web.Request) -> web.Response:
        stored = self._store.get(request.match_info["id"])
        return web.Response(body=stored.content, content_type="application/octet-stream")

    async def delete(self, request: web.Request) -> web.Response:
        stored = self._store.get(request.match_info["id"])
        del self._store.files[stored.id]
        return json_answer({"id": stored.id, "object": "file", "deleted": True})
