"""The provider's own books: every bill, in exact decimal dollars."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

_INPUT, _CACHED_INPUT, _OUTPUT = Decimal(2), Decimal("0.5"), Decimal(8)
"""Dollars per million tokens: gpt-4.1's."""
_FACTOR = {"default": Decimal(1), "flex": Decimal("0.5"), "batch": Decimal("0.5")}


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one answer; reasoning tokens are part of the completion tokens."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }

    def price(self, tier: str) -> Decimal:
        """Exact dollars."""
        total = (self.prompt - self.cached) * _INPUT + self.cached * _CACHED_INPUT
        return (total + self.completion * _OUTPUT) * _FACTOR[tier] / 1_000_000


@dataclass(slots=True)
class Bill:
    """One billed answer.

    Monotonic times are seconds of the system-wide monotonic clock (comparable between processes
    of one machine), wall times seconds since the epoch. `answered_*` is when the last byte was
    given to the socket, None if the answer was lost on the way or still is on it.
    """

    number: int
    canonical: str
    usd: str
    tier: str
    prompt_tokens: int
    completion_tokens: int
    billed_monotonic: float
    fault: str | None
    answered_monotonic: float | None = None
    answered_wall: float | None = None

    def answered(self) -> None:
        """Note that the answer left the server."""
        self.answered_monotonic, self.answered_wall = time.monotonic(), time.time()
