"""/v1/batches, and their life: validating, in_progress, finalizing and the four ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from tests.provider import batch_record
from tests.provider.batch_record import ENDPOINT, WAITING, Batch, problem
from tests.provider.faults import HTTP_ERRORS, INSUFFICIENT_QUOTA, HttpError
from tests.provider.files import FileStore, fail_if, scripted
from tests.provider.requests import ChatRequest
from tests.provider.state import Provider
from tests.provider.wire import ApiFailure, bad_request, encode, json_answer, not_found

_TICK_S = 0.01
_CHUNK = 100
"""Lines answered between two chances for other requests to be served."""
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


class BatchStore:
    """All batches and the tasks that move them on."""

    def __init__(self, provider: Provider, files: FileStore) -> None:
        self._provider, self._files = provider, files
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.batches: dict[str, Batch] = {}
        self.creations = 0

    def reset(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.batches.clear()
        self.creations = 0

    def get(self, batch_id: str) -> Batch:
        if batch_id not in self.batches:
            raise not_found(f"batch: {batch_id}")
        return self.batches[batch_id]

    async def create(self, input_file_id: str, metadata: dict[str, str] | None) -> Batch:
        """Take a new batch in and start its life, unless it does not fit the queue."""
        lines, problems = await batch_record.read_lines(self._files.get(input_file_id).content)
        batch_id = f"batch_sim{next(self._numbers):08d}"
        batch = Batch(batch_id, len(self.batches) + 1, input_file_id, metadata, lines, problems)
        settings = self._provider.config.batches
        limit = settings.enqueued_token_limit
        if settings.enqueued_rejection == "429" and self._is_too_much(batch, limit):
            message = batch_record.token_limit_message(batch.model, limit or 0)
            raise ApiFailure(HttpError(429, "token_limit_exceeded", "tokens", message))
        self.batches[batch_id] = batch
        if not settings.manual:
            self._start(self._live(batch))
        return batch

    def cancel(self, batch: Batch) -> None:
        """Begin to cancel; a batch that has ended stays as it is."""
        if batch.status not in WAITING or batch.status == "cancelling":
            return
        batch.enter("cancelling")
        settings = self._provider.config.batches
        if not settings.manual:
            self._start(self._step_after(batch, settings.finalizing_s))

    async def step(self, batch: Batch) -> None:
        """Move the batch one status on, doing all the work of the status it leaves."""
        if batch.status == "validating":
            self._validate(batch)
        elif batch.status == "in_progress":
            await self._answer_until(batch, self._target(batch))
            if batch.status == "in_progress":  # not cancelled meanwhile
                self._leave_progress(batch)
        elif batch.status in ("finalizing", "cancelling"):
            self._write_files(batch)
            batch.enter("completed" if batch.status == "finalizing" else "cancelled")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _step_after(self, batch: Batch, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.step(batch)

    async def _live(self, batch: Batch) -> None:
        """The timed life of one batch; ends early when the batch is cancelled."""
        settings = self._provider.config.batches
        await asyncio.sleep(settings.validating_s)
        if batch.status == "validating":
            await self.step(batch)
        started, target = time.monotonic(), self._target(batch)
        while batch.status == "in_progress":
            passed = time.monotonic() - started
            if passed >= settings.in_progress_s:
                await self.step(batch)
                break
            await self._answer_until(batch, int(target * passed / settings.in_progress_s))
            await asyncio.sleep(_TICK_S)
        if batch.status == "finalizing":
            await self._step_after(batch, settings.finalizing_s)

    def _is_too_much(self, batch: Batch, limit: int | None) -> bool:
        """Whether this and the earlier waiting batches of its model pass the limit of tokens."""
        earlier = [one for one in self.batches.values() if one.number < batch.number]
        same = [one for one in earlier if one.model == batch.model and one.status in WAITING]
        return limit is not None and sum(one.tokens for one in (*same, batch)) > limit

    def _validate(self, batch: Batch) -> None:
        settings = self._provider.config.batches
        limit = settings.enqueued_token_limit
        if batch.number in settings.fail_batches:
            batch.problems.append(problem("internal_error", "Scripted."))
        if len(batch.lines) > settings.max_requests:
            message = f"{len(batch.lines)} requests; at most {settings.max_requests} are allowed."
            batch.problems.append(problem("too_many_tasks", message))
        if settings.enqueued_rejection == "failed" and self._is_too_much(batch, limit):
            message = batch_record.token_limit_message(batch.model, limit or 0)
            batch.problems.append(problem("token_limit_exceeded", message))
        batch.enter("failed" if batch.problems else "in_progress")

    def _target(self, batch: Batch) -> int:
        """How many lines will be answered before the batch ends or expires."""
        share = self._provider.config.batches.expire_after_share
        return len(batch.lines) if share is None else math.floor(share * len(batch.lines))

    def _leave_progress(self, batch: Batch) -> None:
        if self._provider.config.batches.expire_after_share is None:
            batch.enter("finalizing")
            return
        for index in range(batch.done, len(batch.lines)):
            batch.failed += 1
            batch.errors.append(_result(batch, index, None, _EXPIRED))
        self._write_files(batch)
        batch.enter("expired")

    async def _answer_until(self, batch: Batch, target: int) -> None:
        while batch.done < target and batch.status == "in_progress":
            batch.done += 1
            self._answer_line(batch, batch.done - 1)
            if batch.done % _CHUNK == 0:
                await asyncio.sleep(0)

    def _answer_line(self, batch: Batch, index: int) -> None:
        """Answer one line into the output file, or its failure into the error file."""
        settings = self._provider.config.batches
        try:
            if index + 1 in settings.fail_lines:
                raise ApiFailure(HTTP_ERRORS["server_error"])
            body, copies = self._answer_body(batch, index)
        except ApiFailure as failure:
            batch.failed += 1
            error = failure.error
            batch.errors.append(_result(batch, index, (error.status, error.body()), None))
            return
        batch.completed += 1
        if index + 1 not in settings.drop_lines:
            batch.output.extend([_result(batch, index, (200, body), None)] * copies)

    def _answer_body(self, batch: Batch, index: int) -> tuple[dict[str, Any], int]:
        """The completion of one line and how many times it is to be written."""
        provider = self._provider
        if provider.quota_used_up():
            raise ApiFailure(INSUFFICIENT_QUOTA)
        request = ChatRequest.parse(batch.lines[index].body, provider.config)
        attempt = provider.next_attempt(request.key)
        rule = provider.pick_fault(request, attempt, index + 1, "batch")
        fault = rule.kind if rule is not None else None
        if fault in HTTP_ERRORS:
            raise ApiFailure(HTTP_ERRORS[fault])
        body, bill = provider.answer(request, attempt=attempt, fault=fault, in_batch=True)
        bill.answered()
        return body, 2 if fault == "duplicate" else 1

    def _write_files(self, batch: Batch) -> None:
        """Write both files, in a shuffled order; an empty one does not come into being."""
        random.Random(batch.number).shuffle(batch.output)
        for kind, lines in (("output", batch.output), ("error", batch.errors)):
            if lines:
                name = f"{batch.id}_{kind}.jsonl"
                made = self._files.add(b"".join(lines), name, "batch_output")
                setattr(batch, f"{kind}_file_id", made.id)


def _result(batch: Batch, index: int, response: tuple[int, object] | None, error: object) -> bytes:
    """One line of an output or error file."""
    request_id = f"batch_req_{batch.id}_{index + 1}"
    told = None
    if response is not None:
        told = {"status_code": response[0], "request_id": request_id, "body": response[1]}
    line = {"id": request_id, "custom_id": batch.lines[index].custom_id, "response": told}
    return encode({**line, "error": error}) + b"\n"


class BatchRoutes:
    def __init__(self, provider: Provider, files: FileStore, store: BatchStore) -> None:
        self._provider, self._files, self._store = provider, files, store

    async def create(self, request: web.Request) -> web.Response:
        self._store.creations += 1
        fault = scripted(self._provider.config.batches.create_faults, self._store.creations)
        if (dropped := fail_if(request, fault, "before")) is not None:
            return dropped
        body = json.loads(await request.read())
        if body.get("endpoint") != ENDPOINT:
            raise bad_request(f"endpoint must be {ENDPOINT}.", param="endpoint")
        if body.get("completion_window") != "24h":
            raise bad_request("completion_window must be 24h.", param="completion_window")
        stored = self._files.get(str(body.get("input_file_id")))
        if stored.purpose != "batch":
            raise bad_request("The input file must have purpose batch.", param="input_file_id")
        if self._provider.quota_used_up():
            raise ApiFailure(INSUFFICIENT_QUOTA)
        batch = await self._store.create(stored.id, body.get("metadata"))
        return fail_if(request, fault, "after") or json_answer(batch.body())

    async def retrieve(self, request: web.Request) -> web.Response:
        return json_answer(self._store.get(request.match_info["id"]).body())

    async def list(self, request: web.Request) -> web.Response:
        """GET /v1/batches, newest first; `after`, `limit`."""
        found = [batch.body() for batch in reversed(self._store.batches.values())]
        limit, after = int(request.query.get("limit", "20")), request.query.get("after")
        begin = [one["id"] for one in found].index(after) + 1 if after else 0
        shown = found[begin : begin + limit]
        more = len(found) > begin + limit
        return json_answer({"object": "list", "data": shown, "has_more": more})

    async def cancel(self, request: web.Request) -> web.Response:
        batch = self._store.get(request.match_info["id"])
        self._store.cancel(batch)
        return json_answer(batch.body())

    async def advance(self, request: web.Request) -> web.Response:
        batch = self._store.get(request.match_info["id"])
        await self._store.step(batch)
        return json_answer(batch.body())

    async def all(self, _request: web.Request) -> web.Response:
        return json_answer({"data": [batch.body() for batch in self._store.batches.values()]})
