"""Requests-per-minute and tokens-per-minute limits as token buckets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from ray_judge.demo.server.config import Limits


def format_reset(seconds: float) -> str:
    """A duration as the x-ratelimit-reset headers write it: "120ms", "1s", "6m0s", "1h0m2s"."""
    ms = math.ceil(max(0.0, seconds) * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    text = f"{rest_ms / 1000:g}s"
    if minutes == 0:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


class Bucket:
    """A token bucket with continuous refill.

    A demand above the capacity is let through when the bucket is full and leaves it in debt, so
    that the average rate holds and a large request is not refused for ever.
    """

    def __init__(self, per_minute: int, burst_s: float, least: float, now: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60.0
        self.capacity = max(least, self.rate * burst_s)
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        """What may be taken at this time; negative while in debt."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the amount may be taken; 0 when it may be now."""
        missing = min(amount, self.capacity) - self.level(now)
        return 0.0 if missing <= 1e-9 else missing / self.rate

    def take(self, amount: float, now: float) -> None:
        """Take the amount, into debt if need be."""
        self._level = self.level(now) - amount

    def headers(self, name: str, now: float) -> dict[str, str]:
        """The three x-ratelimit headers of this bucket."""
        level = self.level(now)
        return {
            f"x-ratelimit-limit-{name}": str(self.per_minute),
            f"x-ratelimit-remaining-{name}": str(max(0, math.floor(level + 1e-9))),
            f"x-ratelimit-reset-{name}": format_reset((self.capacity - level) / self.rate),
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is over a limit; `wait_s` is infinite if it can never fit."""

    which: str
    wait_s: float


class RateLimiter:
    """The buckets of one account."""

    def __init__(self, limits: Limits) -> None:
        now = time.monotonic()
        self._limits = limits
        self._requests = (
            Bucket(limits.rpm, limits.burst_s, 1.0, now) if limits.rpm is not None else None
        )
        self._tokens = (
            Bucket(limits.tpm, limits.burst_s, 1.0, now) if limits.tpm is not None else None
        )
        self.refused: dict[str, int] = {"requests": 0, "tokens": 0}

    def admit(self, tokens: int) -> Refusal | None:
        """Take one request and its tokens, or say which limit refuses it (taking nothing)."""
        now = time.monotonic()
        refusal = self._refusal(tokens, now)
        if refusal is not None:
            self.refused[refusal.which] += 1
            if self._limits.rejected_count and self._requests is not None:
                self._requests.take(1, now)
            return refusal
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        return None

    def _refusal(self, tokens: int, now: float) -> Refusal | None:
        if self._tokens is not None and tokens > self._tokens.per_minute:
            return Refusal("tokens", math.inf)
        waits = {
            "requests": self._requests.wait_s(1, now) if self._requests is not None else 0.0,
            "tokens": self._tokens.wait_s(tokens, now) if self._tokens is not None else 0.0,
        }
        which = max(waits, key=lambda name: waits[name])
        return Refusal(which, waits[which]) if waits[which] > 0 else None

    def headers(self) -> dict[str, str]:
        """The x-ratelimit headers of the limits that are set."""
        now = time.monotonic()
        headers: dict[str, str] = {}
        if self._requests is not None:
            headers.update(self._requests.headers("requests", now))
        if self._tokens is not None:
            headers.update(self._tokens.headers("tokens", now))
        return headers
