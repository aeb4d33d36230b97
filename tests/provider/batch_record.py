"""What is known of one batch, and the check of its input file."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tests.provider.requests import prompt_tokens

ENDPOINT = "/v1/chat/completions"
WAITING = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
"""Statuses of a batch that has not ended; its prompt tokens count as enqueued."""
_STATUSES = "in_progress finalizing completed failed expired cancelling cancelled".split()
_TOLD = "id model input_file_id status output_file_id error_file_id created_at metadata".split()
_MAX_ERRORS = 20
_CHUNK = 500
"""Lines handled between two chances for other requests to be served."""


@dataclass(frozen=True, slots=True)
class Line:
    custom_id: str
    body: Any
    tokens: int


@dataclass(slots=True)
class Batch:
    """One batch; `times` maps status to the second (epoch) it was reached."""

    id: str
    number: int
    input_file_id: str
    metadata: dict[str, str] | None
    lines: list[Line]
    problems: list[dict[str, Any]]
    status: str = "validating"
    created_at: int = field(default_factory=lambda: int(time.time()))
    times: dict[str, int] = field(default_factory=dict)
    done: int = 0
    completed: int = 0
    failed: int = 0
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def model(self) -> str | None:
        return str(self.lines[0].body.get("model")) if self.lines else None

    @property
    def tokens(self) -> int:
        return sum(line.tokens for line in self.lines)

    def enter(self, status: str) -> None:
        self.status = status
        self.times[status] = int(time.time())

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
                "failed": self.failed,
            },
            **{f"{status}_at": self.times.get(status) for status in _STATUSES},
        }


def problem(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


async def read_lines(content: bytes) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of an input file, and what is wrong with them (line numbers from 1)."""
    lines: dict[str, Line] = {}
    problems: list[dict[str, Any]] = []
    for number, raw in enumerate(content.splitlines(), 1):
        if number % _CHUNK == 0:
            await asyncio.sleep(0)
        code, message = _read_line(raw, lines)
        if code and len(problems) < _MAX_ERRORS:
            problems.append(problem(code, message, number))
    if not lines and not problems:
        problems.append(problem("empty_file", "The input file is empty."))
    return list(lines.values()), problems


def _read_line(raw: bytes, lines: dict[str, Line]) -> tuple[str | None, str]:
    """Add the request of one line, or return the code and message of its defect."""
    try:
        value = json.loads(raw)
        custom_id, body = value.get("custom_id"), value.get("body")
    except (ValueError, AttributeError):
        return "invalid_json_line", "This line is not a JSON object."
    if not isinstance(custom_id, str) or not isinstance(body, dict):
        return "missing_required_parameter", "custom_id and body are required."
    if custom_id in lines:
        return "duplicate_custom_id", f"The custom_id '{custom_id}' is used twice."
    if value.get("method") != "POST" or value.get("url") != ENDPOINT:
        return "invalid_url", f"Every line must be a POST to {ENDPOINT}."
    if {one.body.get("model") for one in islice(lines.values(), 1)} - {body.get("model")}:
        return "mismatched_model", "All lines of a batch must name the same model."
    try:
        tokens = prompt_tokens(body)
    except (KeyError, TypeError, AttributeError):
        tokens = 0  # a malformed request: its line ends in the error file
    lines[custom_id] = Line(custom_id, body, tokens)
    return None, ""


def token_limit_message(model: str | None, limit: int) -> str:
    return (
        f"Enqueued token limit reached for {model}. Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )
