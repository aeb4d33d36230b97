"""The provider's own books: every bill, in exact decimal dollars."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from typing import Any, Literal

from ray_judge.demo.server.config import Prices

_EXACT = Context(prec=80)
"""Enough digits that no product or sum of prices and token counts is ever rounded."""
_MILLION = Decimal(1_000_000)

Tier = Literal["default", "flex", "batch"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; reasoning tokens are part of the completion tokens."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    def body(self) -> dict[str, Any]:
        """The `usage` object of a chat completion."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def price_of(usage: Usage, prices: Prices, tier: Tier) -> Decimal:
    """Exact dollars of one answer."""
    mul, add = _EXACT.multiply, _EXACT.add
    total = add(
        add(
            mul(Decimal(usage.prompt - usage.cached), prices.input),
            mul(Decimal(usage.cached), prices.cached_input),
        ),
        mul(Decimal(usage.completion), prices.output),
    )
    if tier == "batch":
        total = mul(total, prices.batch_factor)
    elif tier == "flex":
        total = mul(total, prices.flex_factor)
    return _EXACT.divide(total, _MILLION)


@dataclass(slots=True)
class Bill:
    """One billed answer.

    Monotonic times are seconds of the system-wide monotonic clock (comparable between processes
    of one machine), wall times seconds since the epoch. `answered_*` is when the last byte was
    given to the socket, None if the answer was lost on the way or still is on it.
    """

    number: int
    canonical: str
    attempt: int
    usd: str
    tier: Tier
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    billed_monotonic: float
    billed_wall: float
    fault: str | None = None
    custom_id: str | None = None
    batch_id: str | None = None
    answered_monotonic: float | None = None
    answered_wall: float | None = None

    def answered(self) -> None:
        """Note that the answer left the server."""
        self.answered_monotonic = time.monotonic()
        self.answered_wall = time.time()

    def body(self) -> dict[str, Any]:
        """The bill as JSON values."""
        return asdict(self)


class Ledger:
    """All bills since the start or the last reset."""

    def __init__(self) -> None:
        self.bills: list[Bill] = []
        self.total = Decimal(0)
        self.times_billed: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def charge(
        self,
        canonical: str,
        usage: Usage,
        prices: Prices,
        tier: Tier,
        *,
        attempt: int,
        model: str,
        fault: str | None,
        custom_id: str | None = None,
        batch_id: str | None = None,
    ) -> Bill:
        """Bill one computed answer and return its entry."""
        usd = price_of(usage, prices, tier)
        self.total = _EXACT.add(self.total, usd)
        self.times_billed[canonical] += 1
        self.tokens["prompt"] += usage.prompt
        self.tokens["cached"] += usage.cached
        self.tokens["completion"] += usage.completion
        self.tokens["reasoning"] += usage.reasoning
        bill = Bill(
            number=len(self.bills) + 1,
            canonical=canonical,
            attempt=attempt,
            usd=format(usd, "f"),
            tier=tier,
            model=model,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            billed_monotonic=time.monotonic(),
            billed_wall=time.time(),
            fault=fault,
            custom_id=custom_id,
            batch_id=batch_id,
        )
        self.bills.append(bill)
        return bill

    def totals(self) -> dict[str, Any]:
        """Sums for the statistics; `total_usd` is an exact decimal string."""
        return {
            "billed": len(self.bills),
            "billed_requests": len(self.times_billed),
            "billed_twice": sum(1 for times in self.times_billed.values() if times > 1),
            "total_usd": format(self.total, "f"),
            "tokens": {
                kind: self.tokens[kind] for kind in ("prompt", "cached", "completion", "reasoning")
            },
        }
