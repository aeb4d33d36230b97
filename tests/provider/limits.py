"""Requests-per-minute and tokens-per-minute limits, as token buckets of one second's rate."""

from __future__ import annotations

import math
import time

from tests.provider.config import Limits


def _duration(seconds: float) -> str:
    """At most a minute, as the x-ratelimit-reset headers write it: "120ms", "8.64s"."""
    ms = math.ceil(max(0.0, seconds) * 1000)
    return f"{ms}ms" if ms < 1000 else f"{ms / 1000:g}s"


class Bucket:
    """A token bucket with continuous refill.

    A demand above the capacity is let through when the bucket is full and leaves it in debt, so
    that the average rate holds and a large request is not refused for ever.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60.0
        self._capacity = max(1.0, self._rate)
        self._level = self._capacity
        self._at = now

    def level(self, now: float) -> float:
        """What may be taken at this time; negative while in debt."""
        if now > self._at:
            self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
            self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the amount may be taken; infinite when it can never be."""
        if amount > self.per_minute:
            return math.inf
        missing = min(amount, self._capacity) - self.level(now)
        return 0.0 if missing <= 1e-9 else missing / self._rate

    def take(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount

    def headers(self, name: str, now: float) -> dict[str, str]:
        level = self.level(now)
        return {
            f"x-ratelimit-limit-{name}": str(self.per_minute),
            f"x-ratelimit-remaining-{name}": str(max(0, math.floor(level + 1e-9))),
            f"x-ratelimit-reset-{name}": _duration((self._capacity - level) / self._rate),
        }


class RateLimiter:
    """The buckets of one account."""

    def __init__(self, limits: Limits) -> None:
        now = time.monotonic()
        set_ = {"requests": limits.rpm, "tokens": limits.tpm}
        self._buckets = {name: Bucket(most, now) for name, most in set_.items() if most}

    def admit(self, tokens: int) -> tuple[str, float] | None:
        """Take one request and its tokens, or nothing: which limit refuses, and seconds to wait."""
        now, wanted = time.monotonic(), {"requests": 1, "tokens": tokens}
        waits = {name: one.wait_s(wanted[name], now) for name, one in self._buckets.items()}
        which = max(waits, key=lambda name: waits[name], default=None)
        if which is not None and waits[which] > 0:
            return which, waits[which]
        for name, bucket in self._buckets.items():
            bucket.take(wanted[name], now)
        return None

    def headers(self) -> dict[str, str]:
        """The x-ratelimit headers of the limits that are set."""
        now = time.monotonic()
        found: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            found |= bucket.headers(name, now)
        return found
