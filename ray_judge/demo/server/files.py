"""/v1/files: uploaded and produced files, in memory."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from ray_judge.demo.server.config import CallFault
from ray_judge.demo.server.fault_kinds import HTTP_ERRORS, HttpError
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import (
    ApiFailure,
    bad_request,
    json_answer,
    not_found,
    reset_connection,
    wait_headers,
)

_Listed = TypeVar("_Listed")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file and its bytes."""

    id: str
    content: bytes
    filename: str
    purpose: str
    created_at: int

    def body(self) -> dict[str, Any]:
        """The file object of the API."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """All files; identifiers are never used twice in one process."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.files: dict[str, StoredFile] = {}
        self.uploads = 0

    def clear(self) -> None:
        """Forget all files and the count of uploads."""
        self.files.clear()
        self.uploads = 0

    def add(self, content: bytes, filename: str, purpose: str) -> StoredFile:
        """Keep a new file."""
        file_id = f"file-sim{next(self._numbers):08d}"
        stored = StoredFile(file_id, content, filename, purpose, int(time.time()))
        self.files[file_id] = stored
        return stored

    def get(self, file_id: str) -> StoredFile:
        """The file, or the 404 of the API."""
        stored = self.files.get(file_id)
        if stored is None:
            raise not_found(f"File object: {file_id}")
        return stored


def scripted(faults: tuple[CallFault, ...], call: int) -> str | None:
    """The fault of this 1-based call, if one is scripted."""
    return next((fault.kind for fault in faults if call in fault.calls), None)


def fail_if(request: web.Request, fault: str | None, when: str) -> web.Response | None:
    """Carry out the fault if it belongs to this moment ("before" or "after" the record).

    Returns the response of a reset connection, raises an API error, or returns None.
    """
    if fault == "rate_limit" and when == "before":
        raise ApiFailure(HTTP_ERRORS["rate_limit"], wait_headers(1.0))
    if fault == f"error_{when}":
        raise ApiFailure(HTTP_ERRORS["server_error"])
    if fault == f"reset_{when}":
        reset_connection(request)
        return web.Response(status=499)
    return None


def page(request: web.Request, items: list[tuple[str, _Listed]]) -> tuple[list[_Listed], bool]:
    """The page that `after` and `limit` ask for, of items newest first; and if more follow."""
    try:
        limit = min(100, max(1, int(request.query.get("limit", "20"))))
    except ValueError:
        raise bad_request("limit must be an integer.", param="limit") from None
    after = request.query.get("after")
    start = 0
    if after is not None:
        ids = [item_id for item_id, _ in items]
        if after not in ids:
            raise bad_request(f"No object with id '{after}'.", param="after")
        start = ids.index(after) + 1
    return [item for _, item in items[start : start + limit]], len(items) > start + limit


def list_body(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A cursor page of the API."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


class FileRoutes:
    """The files endpoints."""

    def __init__(self, sim: Simulator, store: FileStore) -> None:
        self._sim = sim
        self._store = store

    async def upload(self, request: web.Request) -> web.Response:
        """POST /v1/files (multipart: purpose, file)."""
        self._store.uploads += 1
        settings = self._sim.config.batches
        fault = scripted(settings.upload_faults, self._store.uploads)
        content, filename, purpose = await _read_form(request)
        dropped = fail_if(request, fault, "before")
        if dropped is not None:
            return dropped
        if purpose == "batch" and len(content) > settings.max_bytes:
            message = f"File exceeds the maximum size of {settings.max_bytes} bytes."
            raise ApiFailure(
                HttpError(413, "file_too_large", "invalid_request_error", message, "file")
            )
        stored = self._store.add(content, filename, purpose)
        return fail_if(request, fault, "after") or json_answer(stored.body())

    async def list(self, request: web.Request) -> web.Response:
        """GET /v1/files, newest first; `purpose`, `after`, `limit`."""
        purpose = request.query.get("purpose")
        items = [
            (stored.id, stored.body())
            for stored in reversed(self._store.files.values())
            if purpose in (None, stored.purpose)
        ]
        return json_answer(list_body(*page(request, items)))

    async def retrieve(self, request: web.Request) -> web.Response:
        """GET /v1/files/{id}."""
        return json_answer(self._store.get(request.match_info["id"]).body())

    async def content(self, request: web.Request) -> web.Response:
        """GET /v1/files/{id}/content."""
        stored = self._store.get(request.match_info["id"])
        return web.Response(body=stored.content, content_type="application/octet-stream")

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /v1/files/{id}."""
        stored = self._store.get(request.match_info["id"])
        del self._store.files[stored.id]
        return json_answer({"id": stored.id, "object": "file", "deleted": True})


async def _read_form(request: web.Request) -> tuple[bytes, str, str]:
    """Content, file name and purpose of a multipart upload."""
    if not request.content_type.startswith("multipart/"):
        raise bad_request("Expected a multipart form.")
    content: bytes | None = None
    filename, purpose = "upload", ""
    async for part in await request.multipart():
        name = getattr(part, "name", None)
        if name == "file":
            content = bytes(await part.read())  # type: ignore[union-attr]
            filename = getattr(part, "filename", None) or filename
        elif name == "purpose":
            purpose = bytes(await part.read()).decode("utf-8", "replace")  # type: ignore[union-attr]
    if content is None:
        raise bad_request("Missing required parameter: 'file'.", param="file")
    if not purpose:
        raise bad_request("Missing required parameter: 'purpose'.", param="purpose")
    return content, filename, purpose
