"""The life of batches: validating, in_progress, finalizing and the four ends."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from typing import Any

from ray_judge.demo.server.batch_record import (
    WAITING,
    Batch,
    Line,
    problems_of_limits,
    token_limit_message,
)
from ray_judge.demo.server.chat import check_body, check_context
from ray_judge.demo.server.completion import ChatRequest, answer
from ray_judge.demo.server.fault_kinds import HTTP_ERRORS, INSUFFICIENT_QUOTA, HttpError
from ray_judge.demo.server.files import FileStore
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import ApiFailure, encode, not_found

_TICK_S = 0.01
_CHUNK = 100
"""Lines answered between two chances for other requests to be served."""


class BatchStore:
    """All batches and the tasks that move them on."""

    def __init__(self, sim: Simulator, files: FileStore) -> None:
        self._sim = sim
        self._files = files
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.batches: dict[str, Batch] = {}
        self.creations = 0

    def clear(self) -> None:
        """Stop and forget all batches."""
        for task in self._tasks:
            task.cancel()
        self.batches.clear()
        self.creations = 0

    def get(self, batch_id: str) -> Batch:
        """The batch, or the 404 of the API."""
        batch = self.batches.get(batch_id)
        if batch is None:
            raise not_found(f"batch: {batch_id}")
        return batch

    def record(
        self,
        input_file_id: str,
        metadata: dict[str, str] | None,
        lines: list[Line],
        problems: list[dict[str, Any]],
    ) -> Batch:
        """Take a new batch in and start its life, unless it does not fit the queue."""
        number = len(self.batches) + 1
        batch_id = f"batch_sim{next(self._numbers):08d}"
        batch = Batch(batch_id, number, input_file_id, metadata, lines, problems)
        settings = self._sim.config.batches
        limit = settings.enqueued_token_limit
        refuses = settings.enqueued_rejection == "429"
        if limit is not None and refuses and self._enqueued(batch) + batch.tokens > limit:
            message = token_limit_message(batch.model, limit)
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
        if not self._sim.config.batches.manual:
            self._start(self._step_after(batch, self._sim.config.batches.finalizing_s))

    async def step(self, batch: Batch) -> None:
        """Move the batch one status on, doing all the work of the status it leaves."""
        if batch.status == "validating":
            self._validate(batch)
        elif batch.status == "in_progress":
            await self._answer_until(batch, self._target(batch))
            if batch.status == "in_progress":  # not cancelled meanwhile
                self._leave_progress(batch)
        elif batch.status == "finalizing":
            self._write_files(batch)
            batch.enter("completed")
        elif batch.status == "cancelling":
            self._write_files(batch)
            batch.enter("cancelled")

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _step_after(self, batch: Batch, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.step(batch)

    async def _live(self, batch: Batch) -> None:
        """The timed life of one batch; ends early when the batch is cancelled."""
        settings = self._sim.config.batches
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

    def _enqueued(self, batch: Batch) -> int:
        """Prompt tokens of the earlier batches of the same model that have not ended."""
        return sum(
            other.tokens
            for other in self.batches.values()
            if other.number < batch.number
            and other.model == batch.model
            and other.status in WAITING
        )

    def _validate(self, batch: Batch) -> None:
        settings = self._sim.config.batches
        if batch.number in settings.fail_batches:
            batch.problems.append(
                {"code": "internal_error", "message": "Scripted.", "line": None, "param": None}
            )
        limit = settings.enqueued_token_limit if settings.enqueued_rejection == "failed" else None
        batch.problems.extend(
            problems_of_limits(batch, settings.max_requests, self._enqueued(batch), limit)
        )
        batch.enter("failed" if batch.problems else "in_progress")

    def _target(self, batch: Batch) -> int:
        """How many lines will be answered before the batch ends or expires."""
        share = self._sim.config.batches.expire_after_share
        return len(batch.lines) if share is None else math.floor(share * len(batch.lines))

    def _leave_progress(self, batch: Batch) -> None:
        if batch.done >= len(batch.lines) and self._sim.config.batches.expire_after_share is None:
            batch.enter("finalizing")
            return
        error = {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
        for index in range(batch.done, len(batch.lines)):
            batch.failed += 1
            batch.errors.append(_result(batch, index, None, error))
        self._write_files(batch)
        batch.enter("expired")

    async def _answer_until(self, batch: Batch, target: int) -> None:
        while batch.done < target and batch.status == "in_progress":
            index = batch.done
            batch.done += 1
            self._answer_line(batch, index)
            if batch.done % _CHUNK == 0:
                await asyncio.sleep(0)

    def _answer_line(self, batch: Batch, index: int) -> None:
        """Answer one line into the output file, or its failure into the error file."""
        settings = self._sim.config.batches
        line = batch.lines[index]
        try:
            if index + 1 in settings.fail_lines:
                raise ApiFailure(HTTP_ERRORS["server_error"])
            body, copies = self._answer_body(batch, line, index + 1)
        except ApiFailure as failure:
            batch.failed += 1
            error = failure.error
            batch.errors.append(_result(batch, index, (error.status, error.body()), None))
            return
        batch.completed += 1
        if index + 1 in settings.drop_lines:
            return
        batch.output.extend([_result(batch, index, (200, body), None)] * copies)

    def _answer_body(self, batch: Batch, line: Line, number: int) -> tuple[dict[str, Any], int]:
        """The completion of one line and how many times it is to be written."""
        sim = self._sim
        if sim.quota_used_up():
            raise ApiFailure(INSUFFICIENT_QUOTA)
        request = ChatRequest.parse(check_body(line.body, sim.config))
        check_context(request, sim.config)
        attempt = sim.next_attempt(request.canonical)
        rule = sim.pick_fault(
            request.canonical, attempt, number, request.prompt, "batch", flex=False
        )
        fault = rule.kind if rule is not None else None
        if fault in HTTP_ERRORS:
            raise ApiFailure(HTTP_ERRORS[fault])
        answered = answer(
            sim,
            request,
            attempt=attempt,
            fault=fault,
            custom_id=line.custom_id,
            batch_id=batch.id,
        )
        answered.bill.answered()
        batch.usage["prompt"] += answered.bill.prompt_tokens
        batch.usage["cached"] += answered.bill.cached_tokens
        batch.usage["completion"] += answered.bill.completion_tokens
        return answered.body, 2 if fault == "duplicate" else 1

    def _write_files(self, batch: Batch) -> None:
        """Write the output and the error file; an empty one does not come into being."""
        if self._sim.config.batches.shuffle_output:
            random.Random(batch.number).shuffle(batch.output)
        if batch.output:
            content = b"".join(batch.output)
            name = f"{batch.id}_output.jsonl"
            batch.output_file_id = self._files.add(content, name, "batch_output").id
        if batch.errors:
            content = b"".join(batch.errors)
            name = f"{batch.id}_error.jsonl"
            batch.error_file_id = self._files.add(content, name, "batch_output").id


def _result(batch: Batch, index: int, response: tuple[int, object] | None, error: object) -> bytes:
    """One line of an output or error file."""
    request_id = f"batch_req_{batch.id}_{index + 1}"
    value: dict[str, Any] = {
        "id": request_id,
        "custom_id": batch.lines[index].custom_id,
        "response": None,
        "error": error,
    }
    if response is not None:
        status, body = response
        value["response"] = {"status_code": status, "request_id": request_id, "body": body}
    return encode(value) + b"\n"
