"""What the provider knows while it runs, and how it computes one answer; all of it in memory."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from tests.provider.answers import Judge
from tests.provider.batches import Batches
from tests.provider.bills import Bill, TokenCount
from tests.provider.config import FaultRule, ServerConfig
from tests.provider.faults import HTTP_ERRORS, ApiFailure
from tests.provider.limits import RateLimiter
from tests.provider.requests import ChatRequest, draw, text_tokens

_COUNTS = ("requests", "chat_requests", "in_flight", "max_in_flight")


class Provider:
    """Settings, bills, batches and counters of one simulated provider."""

    def __init__(self, config: ServerConfig) -> None:
        self._first, self.in_flight = config, 0
        self.clean()

    def clean(self, **settings: Any) -> None:
        """Forget all requests, bills and counts, and all settings of the start but for these."""
        self.config = self._first.patched(settings)
        self.judge = Judge(self.config.truth)
        self.reset()

    def reset(self) -> None:
        """Forget all requests, bills and counts; the settings stay."""
        self._bills: list[Bill] = []
        self._total = Decimal(0)
        self.store = Batches(self)
        self.limiter = RateLimiter(self.config.limits)
        self.by_status: Counter[str] = Counter()
        self._faults_injected: Counter[str] = Counter()
        self._struck: Counter[int] = Counter()
        self._attempts: Counter[str] = Counter()
        self.requests = self.chat_requests = self.admitted = 0
        self.max_in_flight = self.in_flight
        self.judge.unknown = 0
        self.quota_told: float | None = None
        self.busy_since: float | None = None

    def configure(self, **settings: Any) -> None:
        """Change settings in mid-run; counts, bills and attempt numbers are kept."""
        old, new = self.config, self.config.patched(settings)
        if new.truth != old.truth:
            self.judge = Judge(new.truth)
        if new.limits != old.limits:
            self.limiter = RateLimiter(new.limits)
        if new.faults != old.faults:
            self._struck = Counter()
        self.config = new

    def check_quota(self) -> None:
        quota = self.config.quota_usd
        if quota is not None and self._total >= quota:
            self.quota_told = self.quota_told or time.monotonic()
            raise ApiFailure(HTTP_ERRORS["insufficient_quota"])

    def check_busy(self) -> None:
        after, now = self.config.busy_after, time.monotonic()
        if after is not None and self.admitted >= after:
            self.busy_since = self.busy_since or now
            if now < self.busy_since + self.config.busy_s:
                raise ApiFailure(HTTP_ERRORS["rate_limit_no_header"])

    def next_attempt(self, key: str) -> int:
        self._attempts[key] += 1
        return self._attempts[key]

    def pick_fault(
        self, request: ChatRequest, attempt: int, number: int, scope: str
    ) -> FaultRule | None:
        """The first rule that strikes this request, counted as injected."""
        for index, rule in enumerate(self.config.faults):
            if rule.kind == "flex_unavailable" and not request.wants_flex:
                continue
            if rule.scope == scope and self._fires(index, rule, request, attempt, number):
                self._struck[index] += 1
                self._faults_injected[rule.kind] += 1
                return rule
        return None

    def _fires(
        self, index: int, rule: FaultRule, request: ChatRequest, attempt: int, number: int
    ) -> bool:
        spent = rule.max_times is not None and self._struck[index] >= rule.max_times
        wrong_attempt = rule.attempts and attempt not in rule.attempts
        wrong_request = rule.requests and number not in rule.requests
        if spent or wrong_attempt or wrong_request or rule.contains not in request.prompt:
            return False
        drawn = draw(self.config.fault_seed, index, rule.kind, request.key, attempt)
        return drawn < rule.probability

    def latency_s(self, key: str, attempt: int) -> float:
        latency = self.config.latency
        span = latency.max_ms - latency.min_ms
        return (latency.min_ms + draw("latency", key, attempt) * span) / 1000.0

    def answer(
        self, request: ChatRequest, fault: str | None, *, in_batch: bool = False
    ) -> tuple[dict[str, Any], Bill]:
        """Compute an answer and bill it, with the model's fault if one is named."""
        content, refusal, finish = _with_fault(self.judge.content(request), fault)
        content, finish, tokens = self._measured(request, content, refusal, finish)
        if fault == "overbilled":
            tokens = replace(tokens, completion=3 * (request.allowance or 1000))
        tier = "flex" if request.wants_flex and self.config.permit_flex else "default"
        billed_as = "batch" if in_batch else tier
        usd = tokens.price(billed_as)
        self._total += usd
        number, counts = len(self._bills) + 1, (tokens.prompt, tokens.completion)
        what = (number, request.key, format(usd, "f"), billed_as, *counts)
        bill = Bill(*what, time.monotonic(), fault)
        self._bills.append(bill)
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
        elif fault == "usage_of_zero":
            body["usage"] = TokenCount(0, 0, 0, 0).body()
        elif fault == "short_id":
            body["id"] = f"chatcmpl-{number % 999}"
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
        times_billed = Counter(bill.canonical for bill in self._bills)
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "billed": len(self._bills),
            "billed_twice": sum(times > 1 for times in times_billed.values()),
            "total_usd": format(self._total, "f"),
            "by_status": dict(self.by_status),
            "faults_injected": dict(self._faults_injected),
            "unknown_questions": self.judge.unknown,
            "quota_told_monotonic": self.quota_told,
            "batch_creations": self.store.creations,
        }

    def bills(self) -> list[dict[str, Any]]:
        """Every bill, oldest first (see `bills.Bill`)."""
        return [asdict(bill) for bill in self._bills]

    def batches(self) -> list[dict[str, Any]]:
        return [batch.body() for batch in self.store.all.values()]

    def advance_batch(self, batch_id: str) -> dict[str, Any]:
        return self.store.advance(batch_id)


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
