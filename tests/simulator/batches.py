"""The simulated provider of files and batches, in place of `BatchClient`.

What has reached the provider takes effect whatever becomes of the sender: a creation may still
travel when its sender is dead and its successor looks for the batch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ray_judge.escalation.answers import Reply
from ray_judge.escalation.batch.provider import METADATA, QUEUE_FULL
from ray_judge.escalation.failures import Kind, RequestFailed

from .loop import Process
from .provider import Request

if TYPE_CHECKING:
    from .night import Night

EXPIRED = {"code": "batch_expired"}


@dataclass
class Batch:
    """One batch, as the provider keeps it."""

    id: str
    submission: str
    requests: list[Request]
    created_at: float
    listed_at: float
    status: str = "in_progress"
    completed: int = 0
    codes: tuple[str, ...] = ()
    ended_at: float | None = None
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The API's batch object."""
        return {
            "id": self.id,
            "status": self.status,
            "metadata": {METADATA: self.submission},
            "created_at": self.created_at,
            f"{self.status}_at": self.ended_at,
            "request_counts": {"completed": self.completed},
            "output_file_id": f"out-{self.id}" if self.output else None,
            "error_file_id": f"err-{self.id}" if self.errors else None,
            "errors": {"data": [{"code": code} for code in self.codes]},
        }


class Batches:
    """Files and batches of the account."""

    def __init__(self, night: Night) -> None:
        self.night = night
        self.files: dict[str, list[str]] = {}
        self.batches: dict[str, Batch] = {}

    def create(self, run: str, file: str, submission: str) -> dict[str, Any]:
        """Begin a batch. Its requests may be billed from here on."""
        night = self.night
        if file not in self.files:
            raise RequestFailed(Kind.ROW, "HTTP 400 no such file", status=400)
        requests = night.oracle.batch_created(run, submission, self.files[file])
        lag_s = 40.0 * night.rng.random() if night.rng.random() < night.plan.faults.list_lag else 0
        number = f"batch-{len(self.batches)}"
        batch = Batch(number, submission, requests, night.wall(), night.loop.now + lag_s)
        self.batches[number] = batch
        night.provider.later(night.rng.choice((5.0, 200.0, 3000.0)), self._end, batch)
        return batch.document()

    def _end(self, batch: Batch) -> None:
        """Everything that the batch does, it does now."""
        rng, faults = self.night.rng, self.night.plan.faults
        batch.ended_at = self.night.wall()
        draw = rng.random()
        if draw < faults.batch_refused:
            batch.status, batch.codes = "failed", (rng.choice((QUEUE_FULL, "invalid")),)
            for request in batch.requests:
                self.night.oracle.not_billed(request)
            return
        batch.status = "completed"
        if draw < faults.batch_refused + faults.batch_ended:
            batch.status = rng.choice(("expired", "cancelled"))
        done = len(batch.requests)
        if batch.status != "completed":
            done = rng.randint(0, done)
        for number, request in enumerate(batch.requests):
            if number >= done or rng.random() < faults.not_run:
                self.night.oracle.not_billed(request)
                if batch.status != "cancelled":
                    batch.errors.append({"custom_id": request.question.key, "error": EXPIRED})
            elif rng.random() < faults.row_refused:
                self.night.oracle.not_billed(request)
                response = {"status_code": 400, "body": {"error": {"code": "invalid"}}}
                batch.errors.append({"custom_id": request.question.key, "response": response})
            else:
                self._answer(batch, request)

    def _answer(self, batch: Batch, request: Request) -> None:
        reply = self.night.provider.compute(request)
        batch.completed += 1
        request.arrived_at = self.night.loop.now
        if self.night.rng.random() < self.night.plan.faults.no_result:
            request.lost = True
            return
        response = {"status_code": 200, "body": _completion(reply)}
        batch.output.append({"custom_id": request.question.key, "response": response})


class SimBatchClient:
    """One process's connection."""

    def __init__(self, night: Night, process: Process) -> None:
        self._night, self._process, self._all = night, process, night.batches

    async def close(self) -> None:
        """Nothing is open."""

    async def upload(self, name: str, content: bytes) -> str:
        def effect() -> str:
            file = f"file-{self._night.name()}"
            lines = content.splitlines()
            self._all.files[file] = [json.loads(line)["custom_id"] for line in lines]
            return file

        return str(await self._request(effect))

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        run, submission = self._process.run, metadata[METADATA]
        document: dict[str, Any] = await self._request(
            lambda: self._all.create(run, file_id, submission), slow=True
        )
        return document

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        document: dict[str, Any] = await self._request(self._all.batches[batch_id].document)
        return document

    async def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        def effect() -> list[dict[str, Any]]:
            now = self._night.loop.now
            shown = [batch for batch in self._all.batches.values() if batch.listed_at <= now]
            return [batch.document() for batch in reversed(shown)]

        return await self._request(effect), False

    async def download(self, file_id: str) -> bytes:
        kind, _, batch = file_id.partition("-")
        found = self._all.batches[batch]
        lines = found.output if kind == "out" else found.errors
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return bytes(await self._request(lambda: content))

    async def delete(self, file_id: str) -> None:
        await self._request(lambda: self._all.files.pop(file_id, None))

    async def _request(self, effect: Callable[[], Any], *, slow: bool = False) -> Any:
        """Travel there, take effect, travel back; either way it may get lost."""
        night, process = self._night, self._process
        rng, provider = night.rng, night.provider
        answer: asyncio.Future[Any] = night.loop.create_future()

        def deliver(result: Any, error: RequestFailed | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def tell(result: Any, error: RequestFailed | None) -> None:
            context = night.loop.context_of(process)
            travel_s = rng.uniform(0.0002, 0.004)
            night.loop.call_later(travel_s, deliver, result, error, context=context)

        def arrive() -> None:
            draw, faults = rng.random(), night.plan.faults
            if draw < faults.reset_before:
                kind = rng.choice((Kind.TRANSIENT, Kind.RATE_LIMIT, Kind.AMBIGUOUS))
                status = None if kind is Kind.AMBIGUOUS else 503
                return tell(None, RequestFailed(kind, "simulated", status=status))
            try:
                result = effect()
            except RequestFailed as failure:
                return tell(None, failure)
            if draw > 1.0 - faults.reset_after:
                return tell(None, RequestFailed(Kind.AMBIGUOUS, "simulated: lost"))
            return tell(result, None)

        travel_s = rng.uniform(0.0002, 0.004)
        if slow and rng.random() < night.plan.faults.late:
            travel_s = 10.0 * rng.random()
        provider.later(travel_s, arrive)
        return await answer


def _completion(reply: Reply) -> dict[str, Any]:
    message = {"content": reply.text, "refusal": reply.refusal}
    usage = asdict(reply.usage) if reply.usage else None
    counts = usage and {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
    }
    return {
        "id": reply.response_id,
        "model": reply.model,
        "choices": [{"message": message, "finish_reason": reply.finish_reason}],
        "usage": counts,
    }
