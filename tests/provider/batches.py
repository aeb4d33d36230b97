"""Uploaded files and batches, in memory. A batch moves one status on when it is told to."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.provider.config import CallFault
from tests.provider.faults import HTTP_ERRORS, AnswerLost, ApiFailure, HttpError, not_found
from tests.provider.requests import ChatRequest, prompt_tokens

if TYPE_CHECKING:
    from tests.provider.state import Provider

ENDPOINT = "/v1/chat/completions"
_WAITING = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
"""Statuses of a batch that has not ended; its prompt tokens count as enqueued."""
_TOLD = "id model input_file_id status output_file_id error_file_id created_at metadata".split()
_NUMBERS = itertools.count(1)
"""Of files and batches: none is used twice in one process."""
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


@dataclass(frozen=True, slots=True)
class Line:
    custom_id: str
    body: Any
    tokens: int


@dataclass(slots=True)
class Batch:
    """One batch; its status was reached `at` this second (epoch)."""

    id: str
    number: int
    input_file_id: str
    metadata: dict[str, str] | None
    lines: list[Line]
    problems: list[dict[str, Any]]
    status: str = "validating"
    created_at: int = field(default_factory=lambda: int(time.time()))
    at: int | None = None
    completed: int = 0
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def model(self) -> str | None:
        return str(self.lines[0].body.get("model")) if self.lines else None

    def enter(self, status: str) -> None:
        self.status, self.at = status, int(time.time())

    def body(self) -> dict[str, Any]:
        failed = self.status == "failed"
        return {
            **{name: getattr(self, name) for name in _TOLD},
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": {"object": "list", "data": self.problems} if failed else None,
            "completion_window": "24h",
            "expires_at": self.created_at + 86_400,
            "request_counts": {
                "total": len(self.lines) if self.status != "validating" else 0,
                "completed": self.completed,
                "failed": len(self.errors),
            },
            f"{self.status}_at": self.at,
        }

    def result(self, index: int, response: tuple[int, object] | None, error: object) -> bytes:
        """One line of the output or error file."""
        request_id = f"batch_req_{self.id}_{index + 1}"
        told = None
        if response is not None:
            told = {"status_code": response[0], "request_id": request_id, "body": response[1]}
        line = {"id": request_id, "custom_id": self.lines[index].custom_id, "response": told}
        return json.dumps({**line, "error": error}).encode() + b"\n"


class Batches:
    """All files and batches of one provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.files: dict[str, bytes] = {}
        self.all: dict[str, Batch] = {}
        self.uploads = self.creations = 0

    def upload(self, content: bytes) -> str:
        """Store an input file; gives its id."""
        settings = self._provider.config.batches
        self.uploads += 1
        with _scripted(settings.upload_faults, self.uploads):
            return self._store(content)

    def content(self, file_id: str) -> bytes:
        if file_id not in self.files:
            raise not_found(f"File object: {file_id}")
        return self.files[file_id]

    def delete(self, file_id: str) -> None:
        self.content(file_id)
        del self.files[file_id]

    def create(self, file_id: str, metadata: dict[str, str] | None) -> dict[str, Any]:
        """Take a new batch in, unless it does not fit the queue."""
        settings = self._provider.config.batches
        self.creations += 1
        with _scripted(settings.create_faults, self.creations):
            lines, problems = _read(self.content(file_id))
            self._provider.check_quota()
            batch_id = f"batch_sim{next(_NUMBERS):08d}"
            batch = Batch(batch_id, len(self.all) + 1, file_id, metadata, lines, problems)
            if settings.enqueued_rejection == "429" and (full := self._is_too_much(batch)):
                raise ApiFailure(HttpError(429, "token_limit_exceeded", "tokens", full))
            self.all[batch_id] = batch
            return batch.body()

    def get(self, batch_id: str) -> Batch:
        if batch_id not in self.all:
            raise not_found(f"batch: {batch_id}")
        return self.all[batch_id]

    def page(self, after: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """Batches behind `after`, newest first, and whether there are more."""
        newest = [*self.all][::-1]
        begin = newest.index(after) + 1 if after else 0
        told = [self.all[name].body() for name in newest[begin : begin + limit]]
        return told, len(newest) > begin + limit

    def advance(self, batch_id: str) -> dict[str, Any]:
        """Move the batch one status on, doing all the work of the status it leaves."""
        batch = self.get(batch_id)
        if batch.status == "validating":
            self._validate(batch)
        elif batch.status == "in_progress":
            self._answer(batch)
        elif batch.status == "finalizing":
            self._write_files(batch)
            batch.enter("completed")
        elif batch.status == "cancelling":
            batch.enter("cancelled")
        return batch.body()

    def _store(self, content: bytes) -> str:
        file_id = f"file-sim{next(_NUMBERS):08d}"
        self.files[file_id] = content
        return file_id

    def _is_too_much(self, batch: Batch) -> str | None:
        """What is said where this and the earlier waiting batches of its model are too much."""
        limit = self._provider.config.batches.enqueued_token_limit
        earlier = [one for one in self.all.values() if one.number < batch.number]
        same = [one for one in earlier if one.model == batch.model and one.status in _WAITING]
        tokens = sum(line.tokens for one in (*same, batch) for line in one.lines)
        if limit is None or tokens <= limit:
            return None
        return (
            f"Enqueued token limit reached for {batch.model}. Limit: {limit:,} enqueued tokens. "
            "Please try again once some in_progress batches have been completed."
        )

    def _validate(self, batch: Batch) -> None:
        settings = self._provider.config.batches
        if batch.number in settings.fail_batches:
            batch.problems.append(_problem("internal_error", "Scripted."))
        if settings.enqueued_rejection == "failed" and (full := self._is_too_much(batch)):
            batch.problems.append(_problem("token_limit_exceeded", full))
        batch.enter("failed" if batch.problems else "in_progress")

    def _answer(self, batch: Batch) -> None:
        """Answer all lines, or those that are answered before the batch expires."""
        share = self._provider.config.batches.expire_after_share
        done = len(batch.lines) if share is None else math.floor(share * len(batch.lines))
        for index in range(done):
            self._answer_line(batch, index)
        for index in range(done, len(batch.lines)):
            batch.errors.append(batch.result(index, None, _EXPIRED))
        if share is None:
            batch.enter("finalizing")
        else:
            self._write_files(batch)
            batch.enter("expired")

    def _answer_line(self, batch: Batch, index: int) -> None:
        """Answer one line into the output file, or its failure into the error file."""
        provider = self._provider
        try:
            provider.check_quota()
            request = ChatRequest.parse(batch.lines[index].body, provider.config)
            attempt = provider.next_attempt(request.key)
            rule = provider.pick_fault(request, attempt, index + 1, "batch")
            fault = rule.kind if rule is not None else None
            if fault in HTTP_ERRORS:
                raise ApiFailure(HTTP_ERRORS[fault])
        except ApiFailure as failure:
            error = failure.error
            batch.errors.append(batch.result(index, (error.status, error.body()), None))
            return
        body, bill = provider.answer(request, fault, in_batch=True)
        bill.answered()
        batch.completed += 1
        if index + 1 not in provider.config.batches.drop_lines:
            copies = 2 if fault == "duplicate" else 1
            batch.output.extend([batch.result(index, (200, body), None)] * copies)

    def _write_files(self, batch: Batch) -> None:
        """Write both files, in a shuffled order; an empty one does not come into being."""
        random.Random(batch.number).shuffle(batch.output)
        if batch.output:
            batch.output_file_id = self._store(b"".join(batch.output))
        if batch.errors:
            batch.error_file_id = self._store(b"".join(batch.errors))


@contextmanager
def _scripted(faults: tuple[CallFault, ...], call: int) -> Iterator[None]:
    """Do something, with the fault of this 1-based call if one is scripted."""
    kind = next((fault.kind for fault in faults if call in fault.calls), "")
    lost = kind.startswith("reset")
    failure = AnswerLost() if lost else ApiFailure(HTTP_ERRORS["server_error"])
    if kind.endswith("before"):
        raise failure
    yield
    if kind.endswith("after"):
        raise failure


def _problem(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


def _read(content: bytes) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of an input file, and what is wrong with them (line numbers from 1)."""
    lines: dict[str, Line] = {}
    problems = [] if content else [_problem("empty_file", "The input file is empty.")]
    for number, raw in enumerate(content.splitlines(), 1):
        try:
            value = json.loads(raw)
            line = Line(value["custom_id"], value["body"], prompt_tokens(value["body"]))
            first = next(iter(lines.values()), line)
            defects = {
                "duplicate_custom_id": line.custom_id in lines,
                "invalid_url": (value["method"], value["url"]) != ("POST", ENDPOINT),
                "mismatched_model": first.body.get("model") != line.body.get("model"),
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(_problem("invalid_json_line", "This line is no request.", number))
            continue
        met = [_problem(code, f"{code}.", number) for code, true in defects.items() if true]
        problems += met
        if not met:
            lines[line.custom_id] = line
    return list(lines.values()), problems
