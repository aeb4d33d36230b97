"""The simulated provider of files and batches, in place of `BatchClient`.

What has reached the provider takes effect whatever becomes of the sender: a creation may still
travel when its sender is dead and its successor looks for the batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray_judge.escalation.batch.provider import METADATA, QUEUE_FULL
from ray_judge.failures import Kind, RequestFailed

from .loop import PROCESS
from .provider import UNBILLED, Request, Said

if TYPE_CHECKING:
    from .night import Night


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
    """Files and batches of the account, and the connection of each process to them."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._files: dict[str, list[tuple[str, bool]]] = {}
        """Input file → key of each line, and whether it asks by a schema."""
        self._batches: dict[str, Batch] = {}

    # --- what the provider does ---

    def _create(self, run: str, file: str, submission: str) -> dict[str, Any]:
        """Begin a batch. Its requests may be billed from here on."""
        night = self._night
        if file not in self._files:
            raise RequestFailed(Kind.ROW, "HTTP 400 no such file", status=400)
        keys = [key for key, _ in self._files[file]]
        requests = night.oracle.batch_created(run, submission, keys)
        for request, (_, schema) in zip(requests, self._files[file], strict=True):
            request.schema = schema
        lag_s = 40.0 * night.rng.random() if night.rng.random() < night.plan.faults.list_lag else 0
        number = f"batch-{len(self._batches)}"
        batch = Batch(number, submission, requests, night.now(), night.loop.now + lag_s)
        self._batches[number] = batch
        night.provider.later(night.rng.choice((5.0, 200.0, 3000.0)), self._end, batch)
        return batch.document()

    def _end(self, batch: Batch) -> None:
        """Everything that the batch does, it does now."""
        night, rng, faults = self._night, self._night.rng, self._night.plan.faults
        batch.ended_at = night.now()
        draw = rng.random()
        if draw < faults.batch_refused:
            batch.status, batch.codes = "failed", (rng.choice((QUEUE_FULL, "invalid")),)
            for request in batch.requests:
                night.oracle.not_billed(request)
            return
        batch.status, done = "completed", len(batch.requests)
        if draw < faults.batch_refused + faults.batch_ended:
            batch.status = rng.choice(("expired", "cancelled"))
            done = rng.randint(0, done)
        for number, request in enumerate(batch.requests):
            key = request.question.key
            if number >= done or rng.random() < faults.not_run:
                request.refused = "not run"
                night.oracle.not_billed(request)
                if batch.status != "cancelled":
                    batch.errors.append({"custom_id": key, "error": {"code": "batch_expired"}})
            elif why := night.provider.refuse_line(request):
                request.refused = why
                night.oracle.not_billed(request)
                said = Said.error(*UNBILLED[why], inside=rng.random() < faults.inside)
                self._write(batch, key, said.status_code, json.loads(said.text))
            else:
                document = night.provider.compute(request)
                batch.completed += 1
                request.arrived_at = night.loop.now
                request.lost = rng.random() < faults.no_result
                if not request.lost:
                    self._write(batch, key, 200, document)
        sound = any(request.usable and not request.lost for request in batch.requests)
        for request in batch.requests:
            request.proven = sound

    def _write(self, batch: Batch, key: str, status: int, body: Any) -> None:
        """A line of the output or error file."""
        lines = batch.output if status == 200 else batch.errors
        lines.append({"custom_id": key, "response": {"status_code": status, "body": body}})

    # --- `BatchClient`, for whichever process calls it ---

    async def close(self) -> None: ...

    async def upload(self, name: str, content: bytes) -> Any:
        def effect() -> str:
            file = f"file-{self._night.name()}"
            lines = map(json.loads, content.splitlines())
            self._files[file] = [(x["custom_id"], "response_format" in x["body"]) for x in lines]
            return file

        return await self._request(effect)

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> Any:
        run, submission = PROCESS.get().run, metadata[METADATA]
        return await self._request(lambda: self._create(run, file_id, submission), slow=True)

    async def retrieve(self, batch_id: str) -> Any:
        return await self._request(self._batches[batch_id].document)

    async def page(self, after: str | None) -> tuple[Any, bool]:
        def effect() -> list[dict[str, Any]]:
            now = self._night.loop.now
            shown = [batch for batch in self._batches.values() if batch.listed_at <= now]
            return [batch.document() for batch in reversed(shown)]

        return await self._request(effect), False

    async def download(self, file_id: str) -> Any:
        kind, _, batch = file_id.partition("-")
        found = self._batches[batch]
        lines = found.output if kind == "out" else found.errors
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return await self._request(lambda: content)

    async def delete(self, file_id: str) -> None:
        await self._request(lambda: self._files.pop(file_id, None))

    async def _request(self, effect: Callable[[], Any], *, slow: bool = False) -> Any:
        """Travel there, take effect, travel back; either way it may get lost."""
        night, process = self._night, PROCESS.get()
        rng, provider, faults = night.rng, night.provider, night.plan.faults
        answer = night.loop.create_future()

        def arrive() -> None:
            draw = rng.random()
            try:
                if provider.is_busy(process):
                    raise RequestFailed(Kind.RATE_LIMIT, "simulated: 429", status=429)
                if draw < faults.reset_before:
                    kind = rng.choice((Kind.TRANSIENT, Kind.RATE_LIMIT, Kind.AMBIGUOUS))
                    status = None if kind is Kind.AMBIGUOUS else 503
                    raise RequestFailed(kind, "simulated", status=status)
                what = effect()
                if draw > 1.0 - faults.reset_after:
                    raise RequestFailed(Kind.AMBIGUOUS, "simulated: lost")
            except RequestFailed as failure:
                what = failure
            provider.tell(process, answer, what)

        travel_s = rng.uniform(0.0002, 0.004)
        if slow and rng.random() < faults.late:
            travel_s = 10.0 * rng.random()
        provider.later(travel_s, arrive)
        return await answer
