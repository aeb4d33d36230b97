"""/v1/batches, and the batch switches under /control."""

from __future__ import annotations

import json

from aiohttp import web

from ray_judge.demo.server.batch_record import ENDPOINT, checked_metadata, read_lines
from ray_judge.demo.server.batches import BatchStore
from ray_judge.demo.server.fault_kinds import INSUFFICIENT_QUOTA
from ray_judge.demo.server.files import FileStore, fail_if, list_body, page, scripted
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import ApiFailure, bad_request, error_answer, json_answer


class BatchRoutes:
    """The batch endpoints."""

    def __init__(self, sim: Simulator, files: FileStore, store: BatchStore) -> None:
        self._sim = sim
        self._files = files
        self._store = store

    async def create(self, request: web.Request) -> web.Response:
        """POST /v1/batches."""
        self._store.creations += 1
        fault = scripted(self._sim.config.batches.create_faults, self._store.creations)
        dropped = fail_if(request, fault, "before")
        if dropped is not None:
            return dropped
        try:
            body = json.loads(await request.read())
        except ValueError:
            raise bad_request("The body is not valid JSON.") from None
        if not isinstance(body, dict):
            raise bad_request("The body is not a JSON object.")
        if body.get("endpoint") != ENDPOINT:
            raise bad_request(f"endpoint must be {ENDPOINT}.", param="endpoint")
        if body.get("completion_window") != "24h":
            raise bad_request("completion_window must be 24h.", param="completion_window")
        metadata = checked_metadata(body.get("metadata"))
        stored = self._files.get(str(body.get("input_file_id")))
        if stored.purpose != "batch":
            raise bad_request("The input file must have purpose batch.", param="input_file_id")
        if self._sim.quota_used_up():
            raise ApiFailure(INSUFFICIENT_QUOTA)
        lines, problems = await read_lines(stored.content)
        batch = self._store.record(stored.id, metadata, lines, problems)
        return fail_if(request, fault, "after") or json_answer(batch.body())

    async def retrieve(self, request: web.Request) -> web.Response:
        """GET /v1/batches/{id}."""
        return json_answer(self._store.get(request.match_info["id"]).body())

    async def list(self, request: web.Request) -> web.Response:
        """GET /v1/batches, newest first; `after`, `limit`."""
        items = [(batch.id, batch) for batch in reversed(self._store.batches.values())]
        batches, has_more = page(request, items)
        return json_answer(list_body([batch.body() for batch in batches], has_more))

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /v1/batches/{id}/cancel."""
        batch = self._store.get(request.match_info["id"])
        self._store.cancel(batch)
        return json_answer(batch.body())

    async def advance(self, request: web.Request) -> web.Response:
        """POST /control/batches/{id}/advance: one status on, whatever the durations."""
        try:
            batch = self._store.get(request.match_info["id"])
        except ApiFailure as failure:
            return error_answer(failure.error)
        await self._store.step(batch)
        return json_answer(batch.body())

    async def all(self, _request: web.Request) -> web.Response:
        """GET /control/batches: every batch, oldest first."""
        return json_answer({"data": [batch.body() for batch in self._store.batches.values()]})
