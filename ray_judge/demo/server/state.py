"""What the simulated provider knows while it runs; all of it in memory."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ray_judge.demo.server.answers import AnswerPolicy, make_policy
from ray_judge.demo.server.config import FaultRule, ServerConfig
from ray_judge.demo.server.fault_kinds import BILLED_TRANSPORT, UNBILLED_TRANSPORT
from ray_judge.demo.server.ledger import Ledger
from ray_judge.demo.server.rate_limits import RateLimiter
from ray_judge.demo.server.requests import draw

_CONNECTION_FAULTS = (UNBILLED_TRANSPORT | BILLED_TRANSPORT) - {"duplicate"}


class Simulator:
    """Configuration, books and counters of one simulated provider."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.policy: AnswerPolicy = make_policy(config)
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget all requests, bills and counts; the configuration stays."""
        self.ledger = Ledger()
        self.limiter = RateLimiter(self.config.limits)
        self.by_status: Counter[str] = Counter()
        self.faults_injected: Counter[str] = Counter()
        self._struck: Counter[int] = Counter()
        self._attempts: Counter[str] = Counter()
        self.requests = 0
        self.chat_requests = 0
        self.admitted = 0
        self.max_in_flight = self.in_flight
        self.policy.unknown = 0
        self.quota_told: float | None = None
        self.started = time.monotonic()

    def reconfigure(self, patch: dict[str, Any]) -> None:
        """Change settings in mid-run; counts, bills and attempt numbers are kept."""
        old, new = self.config, self.config.patched(patch)
        if new.answers != old.answers:
            self.policy = make_policy(new)
        if new.limits != old.limits:
            self.limiter = RateLimiter(new.limits)
        if new.faults != old.faults:
            self._struck = Counter()
        self.config = new

    def quota_used_up(self) -> bool:
        """Whether every request is to be answered with insufficient_quota."""
        quota = self.config.quota_usd
        return self.config.quota_exhausted or (quota is not None and self.ledger.total >= quota)

    def next_attempt(self, canonical: str) -> int:
        """The 1-based number of this attempt at the canonical request."""
        self._attempts[canonical] += 1
        return self._attempts[canonical]

    def pick_fault(
        self, canonical: str, attempt: int, number: int, prompt: str, scope: str, *, flex: bool
    ) -> FaultRule | None:
        """The first rule that strikes this request, counted as injected."""
        for index, rule in enumerate(self.config.faults):
            if rule.scope not in (scope, "all") or (rule.kind == "flex_unavailable" and not flex):
                continue
            if scope == "batch" and rule.kind in _CONNECTION_FAULTS:
                continue
            if not self._fires(index, rule, canonical, attempt, number, prompt):
                continue
            self._struck[index] += 1
            self.faults_injected[rule.kind] += 1
            return rule
        return None

    def _fires(
        self, index: int, rule: FaultRule, canonical: str, attempt: int, number: int, prompt: str
    ) -> bool:
        if rule.max_times is not None and self._struck[index] >= rule.max_times:
            return False
        if rule.attempts and attempt not in rule.attempts:
            return False
        if rule.contains and rule.contains not in prompt:
            return False
        if not rule.probability and not rule.requests:
            return bool(rule.attempts or rule.contains or rule.max_times)
        if number in rule.requests:
            return True
        if not rule.probability:
            return False
        key = (self.config.fault_seed, index, rule.kind, canonical, attempt)
        return draw(*key) < rule.probability

    def latency_s(self, canonical: str, attempt: int) -> float:
        """Seconds this attempt takes."""
        latency = self.config.latency
        span = latency.max_ms - latency.min_ms
        extra = draw(latency.seed, "latency", canonical, attempt) * span if span else 0.0
        return (latency.min_ms + extra) / 1000.0

    def stats(self) -> dict[str, Any]:
        """The counts of GET /control/stats."""
        return {
            "simulator": True,
            "requests": self.requests,
            "chat_requests": self.chat_requests,
            "admitted": self.admitted,
            **self.ledger.totals(),
            "by_status": dict(self.by_status),
            "faults_injected": dict(self.faults_injected),
            "rate_limited": dict(self.limiter.refused),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "unknown_questions": self.policy.unknown,
            "quota_used_up": self.quota_used_up(),
            "quota_told_monotonic": self.quota_told,
            "uptime_s": round(time.monotonic() - self.started, 3),
        }
