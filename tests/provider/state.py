"""What the provider knows while it runs, and how it computes one answer; all of it in memory."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from tests.provider.answers import Judge
from tests.provider.bills import Bill, Bills, TokenCount
from tests.provider.config import FaultRule, ServerConfig
from tests.provider.faults import BILLED_TRANSPORT, UNBILLED_TRANSPORT
from tests.provider.limits import RateLimiter
from tests.provider.requests import ChatRequest, draw, text_tokens

_CONNECTION_FAULTS = (UNBILLED_TRANSPORT | BILLED_TRANSPORT) - {"duplicate"}


_COUNTS = ("requests", "chat_requests", "in_flight", "max_in_flight")


class Provider:
    """Configuration, bills and counters of one simulated provider."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.judge = Judge(config.truth)
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget all requests, bills and counts; the configuration stays."""
        self.bills = Bills()
        self.limiter = RateLimiter(self.config.limits)
        self.by_status: Counter[str] = Counter()
        self.faults_injected: Counter[str] = Counter()
        self._struck: Counter[int] = Counter()
        self._attempts: Counter[str] = Counter()
        self.requests = self.chat_requests = self.admitted = 0
        self.max_in_flight = self.in_flight
        self.judge.unknown = 0
        self.quota_told: float | None = None

    def reconfigure(self, patch: dict[str, Any]) -> None:
        """Change settings in mid-run; counts, bills and attempt numbers are kept."""
        old, new = self.config, self.config.patched(patch)
        if new.truth != old.truth:
            self.judge = Judge(new.truth)
        if new.limits != old.limits:
            self.limiter = RateLimiter(new.limits)
        if new.faults != old.faults:
            self._struck = Counter()
        self.config = new

    def quota_used_up(self) -> bool:
        quota = self.config.quota_usd
        return self.config.quota_exhausted or (quota is not None and self.bills.total >= quota)

    def next_attempt(self, key: str) -> int:
        self._attempts[key] += 1
        return self._attempts[key]

    def pick_fault(
        self, request: ChatRequest, attempt: int, number: int, scope: str
    ) -> FaultRule | None:
        """The first rule that strikes this request, counted as injected."""
        for index, rule in enumerate(self.config.faults):
            if rule.scope not in (scope, "all"):
                continue
            if rule.kind == "flex_unavailable" and not (scope == "chat" and request.wants_flex):
                continue
            if scope == "batch" and rule.kind in _CONNECTION_FAULTS:
                continue
            if self._fires(index, rule, request, attempt, number):
                self._struck[index] += 1
                self.faults_injected[rule.kind] += 1
                return rule
        return None

    def _fires(
        self, index: int, rule: FaultRule, request: ChatRequest, attempt: int, number: int
    ) -> bool:
        spent = rule.max_times is not None and self._struck[index] >= rule.max_times
        other = rule.attempts and attempt not in rule.attempts
        if spent or other or rule.contains not in request.prompt:
            return False
        if not rule.probability and not rule.requests:
            return bool(rule.attempts or rule.contains or rule.max_times)
        if number in rule.requests:
            return True
        drawn = draw(self.config.fault_seed, index, rule.kind, request.key, attempt)
        return drawn < rule.probability

    def latency_s(self, key: str, attempt: int) -> float:
        latency = self.config.latency
        span = latency.max_ms - latency.min_ms
        return (latency.min_ms + draw("latency", key, attempt) * span) / 1000.0

    def answer(
        self, request: ChatRequest, *, attempt: int, fault: str | None, in_batch: bool = False
    ) -> tuple[dict[str, Any], Bill]:
        """Compute an answer and bill it, with the model's fault if one is named."""
        content, refusal, finish = _with_fault(self.judge.content(request), fault)
        content, finish, tokens = self._measured(request, content, refusal, finish)
        tier = "flex" if request.wants_flex and self.config.permit_flex else "default"
        prices, billed_as = self.config.prices, "batch" if in_batch else tier
        bill = self.bills.charge(request, tokens, prices, billed_as, attempt=attempt, fault=fault)
        message = {"role": "assistant", "content": content, "refusal": refusal}
        body: dict[str, Any] = {
            "id": f"chatcmpl-sim-{request.key[:24]}-{bill.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": tokens.body(),
            "service_tier": "default" if in_batch else tier,
            "system_fingerprint": "simulator",
        }
        if fault == "missing_usage":
            del body["usage"]
        return body, bill

    def _measured(
        self, request: ChatRequest, content: str | None, refusal: str | None, finish: str
    ) -> tuple[str | None, str, TokenCount]:
        """Cut the content to the tokens the request permits, and count what is billed."""
        reasoning, allowance = self.config.reasoning_tokens, request.allowance
        visible = text_tokens(content or refusal or "")
        if allowance is not None and reasoning + visible > allowance:
            reasoning = min(reasoning, allowance)
            visible = allowance - reasoning
            raw = (content or "").encode()[: 4 * visible]
            content, finish = raw.decode("utf-8", "ignore"), "length"
        cached = min(self.config.cached_tokens, request.prompt_tokens)
        count = TokenCount(request.prompt_tokens, cached, reasoning + visible, reasoning)
        return content, finish, count

    def stats(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            **self.bills.totals(),
            "by_status": dict(self.by_status),
            "faults_injected": dict(self.faults_injected),
            "rate_limited": dict(self.limiter.refused),
            "unknown_questions": self.judge.unknown,
            "quota_told_monotonic": self.quota_told,
        }


def _with_fault(content: str, fault: str | None) -> tuple[str | None, str | None, str]:
    """Content, refusal and finish_reason after a model-level fault."""
    if fault == "refusal":
        return None, "I'm sorry, I can't help with that.", "stop"
    if fault == "content_filter":
        return "", None, "content_filter"
    if fault == "cut":
        return content[: len(content) // 2], None, "length"
    changed = {
        "malformed_json": content[:-1] + ",,",
        "wrong_verdict": '{"verdict":"neither of these","score":"very good"}',
        "fenced_json": f"Here is my judgement:\n```json\n{content}\n```\nI hope it helps.",
        "empty_content": "",
        "other_verdict": content.translate(str.maketrans("AB", "BA")),
    }
    return changed.get(fault or "", content), None, "stop"
