"""Which questions go into the next batch: the first ones, within the provider's limits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_judge.config import BatchConfig
from ray_judge.errors import ConfigError
from ray_judge.escalation.questions import Question, in_words

URL = "/v1/chat/completions"
LONGEST_HOLD_S = 900.0
"""The longest pause after the provider said that its queue is full."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A line of an input file, ready to be sent."""

    question: Question
    line: bytes


class BatchQueue:
    """The provider's limits, as configured and as learnt from its refusals."""

    def __init__(
        self, settings: BatchConfig, bodies: Callable[[Sequence[Question]], Sequence[Question]]
    ) -> None:
        """`bodies` gives the questions with what is sent."""
        self._settings = settings
        self._bodies = bodies
        self._token_limit = settings.enqueued_tokens
        self._hold_until = 0.0
        self._holds = 0
        self.words = False
        """The server does not take `response_format`: ask without it."""

    def take(self, waiting: Sequence[Question], enqueued_tokens: int | None) -> list[Request]:
        """Make lines of the first questions, as many as one batch may hold.

        `enqueued_tokens`: prompt tokens of the batches that have not ended; None: there are none,
        so that one question goes in any case.
        """
        limit, tokens, count = self._token_limit, enqueued_tokens or 0, 0
        for question in waiting[: self._settings.max_requests]:
            tokens += question.tokens
            alone = enqueued_tokens is None and not count
            if limit is not None and tokens > limit and not alone:
                break
            count += 1
        taken: list[Request] = []
        size = 0
        for question in self._bodies(waiting[:count]):
            line = self._line(question)
            size += len(line)
            if len(line) > self._settings.max_bytes:
                raise ConfigError("a question is longer than strong.batch.max_bytes permits")
            if size > self._settings.max_bytes:
                break
            taken.append(Request(question, line))
        return taken

    def _line(self, question: Question) -> bytes:
        assert question.body is not None
        body = in_words(question.body) if self.words else question.body
        line = {"custom_id": question.key, "method": "POST", "url": URL, "body": body}
        # In ASCII: some readers of JSONL end a line at U+2028 as well.
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    def shrink(self, queued_tokens: int, now: float) -> None:
        """The provider has no room for so many tokens: fewer at once, and not at once."""
        limit = min(self._token_limit or queued_tokens, queued_tokens)
        self._token_limit = max(1, limit // 2)
        pause_s = min(LONGEST_HOLD_S, self._settings.poll_s * 2**self._holds)
        self._hold_until, self._holds = now + pause_s, min(self._holds + 1, 16)
        log.warning("the provider's batch queue is full: at most %d tokens now", self._token_limit)

    def accept(self) -> None:
        """The provider took a batch: the next refusal is a new one."""
        self._holds = 0

    def is_open(self, now: float) -> bool:
        """Whether the provider may be asked to take a batch."""
        return now >= self._hold_until
