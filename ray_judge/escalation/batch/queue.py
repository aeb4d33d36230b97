"""Which questions go into the next batch: the least sure first, within the provider's limits."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Mapping, Sequence

from ray_judge.config import BatchConfig
from ray_judge.errors import ConfigError
from ray_judge.escalation.batch.records import Request, RequestReader, Wanted

LONGEST_HOLD_S = 900.0
"""The longest pause after the provider said that its queue is full."""

log = logging.getLogger(__name__)


class BatchQueue:
    """The questions that wait for a batch, in the order in which they deserve the money."""

    def __init__(
        self, settings: BatchConfig, questions: Sequence[Wanted], reader: RequestReader
    ) -> None:
        """Nobody waits yet: see `put_back`."""
        self._settings = settings
        self._questions = questions
        self._rank = {question.key: rank for rank, question in enumerate(questions)}
        self._reader = reader
        self._left: list[int] = []
        self.elsewhere: dict[str, str] = {}
        """Question key → where another run says that it is asking it: set aside."""
        self._made: dict[str, Request] = {}
        self._token_limit = settings.enqueued_tokens
        self._hold_until = 0.0
        self._holds = 0
        self.words = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._left)

    def fill(self, without: Iterable[str]) -> None:
        """Let every question wait but these."""
        busy = set(without)
        self.put_back(key for key in self._rank if key not in busy)

    def put_back(self, keys: Iterable[str]) -> None:
        """Let questions wait (again), each in its own place."""
        for key in keys:
            if key in self._rank:
                heapq.heappush(self._left, self._rank[key])

    def forget(self, keys: Iterable[str]) -> None:
        """These are answered, or in a batch already."""
        gone = {self._rank[key] for key in keys if key in self._rank}
        self._left = [rank for rank in sorted(self._left) if rank not in gone]  # sorted: a heap
        self.elsewhere = {k: v for k, v in self.elsewhere.items() if self._rank[k] not in gone}

    def set_aside(self, asked: Mapping[str, str]) -> None:
        """Leave to other runs what they ask just now: key → where that is said.

        What was set aside before and is not among them waits again.
        """
        self.put_back(self.elsewhere)
        waiting = [self._questions[rank].key for rank in self._left]
        found = {key: asked[key] for key in waiting if key in asked}
        self.forget(found)
        self.elsewhere = found

    def ask_in_words(self) -> None:
        """The server does not take `response_format`: from now on without it."""
        if not self.words:
            self.words, self._made = True, {}

    def take(self, enqueued_tokens: int | None) -> list[Request]:
        """Take the first, as many as one batch may hold; none where the queue has no room.

        `enqueued_tokens`: prompt tokens of the batches that have not ended; None: there are none,
        so that one question goes in any case.
        """
        settings, limit = self._settings, self._token_limit
        room = None if limit is None else limit - (enqueued_tokens or 0)
        taken: list[Request] = []
        size = tokens = 0
        while self._left and len(taken) < settings.max_requests:
            request = self._request(self._questions[self._left[0]])
            if len(request.line) > settings.max_bytes:
                raise ConfigError("a question is longer than strong.batch.max_bytes permits")
            size, tokens = size + len(request.line), tokens + request.tokens
            alone = not taken and enqueued_tokens is None
            if size > settings.max_bytes or (room is not None and tokens > room and not alone):
                break
            heapq.heappop(self._left)
            taken.append(request)
        return taken

    def _request(self, question: Wanted) -> Request:
        """The line of a question; lines are made many at a time, as each reads its chunk."""
        if question.key not in self._made:
            ranks = heapq.nsmallest(self._settings.max_requests, self._left)
            block = [self._questions[rank] for rank in ranks]
            self._made = self._reader.read(block, words=self.words)
        return self._made[question.key]

    def full(self, queued_tokens: int, now: float) -> None:
        """The provider has no room for so many tokens: fewer at once, and not at once."""
        limit = min(self._token_limit or queued_tokens, queued_tokens)
        self._token_limit = max(1, limit // 2)
        pause_s = min(LONGEST_HOLD_S, self._settings.poll_s * 2**self._holds)
        self._hold_until, self._holds = now + pause_s, min(self._holds + 1, 16)
        log.warning("the provider's batch queue is full: at most %d tokens now", self._token_limit)

    def accepted(self) -> None:
        """The provider took a batch: the next refusal is a new one."""
        self._holds = 0

    def open(self, now: float) -> bool:
        """Whether somebody waits, and the provider may be asked."""
        return bool(self._left) and now >= self._hold_until
