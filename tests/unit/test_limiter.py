"""The limiter against simulated providers, in simulated time."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ray_judge.errors import ConfigError
from ray_judge.escalation.online.limiter import Circuit, Feedback, Limiter, Signal, duration_s

pytestmark = pytest.mark.timeout(60)

START = 1_795_000_000.0


class Bucket:
    """A token bucket as a provider keeps it."""

    def __init__(self, per_minute: float, burst_s: float) -> None:
        self.rate = per_minute / 60
        self.size = self.level = self.rate * burst_s
        self.at = START

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now


class Provider:
    """Takes a request when both buckets hold enough, else answers 429."""

    def __init__(self, rpm: float, tpm: float, burst_s: float, *, headers: bool = False) -> None:
        self.requests, self.tokens = Bucket(rpm, burst_s), Bucket(tpm, burst_s)
        self.rpm, self.tpm = rpm, tpm
        self.taken = self.refused = self.taken_tokens = 0
        self.headers = headers

    def answer(self, tokens: int, now: float) -> Feedback:
        self.requests.fill(now)
        self.tokens.fill(now)
        if self.requests.level < 1 or self.tokens.level < tokens:
            self.refused += 1
            return Feedback(Signal.RATE_LIMITED)
        self.requests.level -= 1
        self.tokens.level -= tokens
        self.taken += 1
        self.taken_tokens += tokens
        if not self.headers:
            return Feedback(Signal.OK)
        return Feedback(
            Signal.OK,
            {
                "x-ratelimit-limit-requests": str(int(self.rpm)),
                "x-ratelimit-limit-tokens": str(int(self.tpm)),
                "X-RateLimit-Remaining-Requests": str(int(self.requests.level)),
                "x-ratelimit-reset-requests": "120ms",
            },
        )


def drive(
    limiter: Limiter,
    provider: Callable[[int, float], Feedback],
    seconds: float,
    *,
    tokens: Callable[[random.Random], int] = lambda rng: 200,
) -> None:
    """Ask as fast as the limiter lets for `seconds`; requests arrive late by up to 0.05 s."""
    rng = random.Random(0)
    events: list[tuple[float, int, str, int, Feedback | None]] = [(START, 0, "ask", 0, None)]
    count = 0
    while events:
        now, _, kind, size, feedback = heapq.heappop(events)
        if now > START + seconds:
            return
        count += 1
        if kind == "ask":
            while True:
                size = tokens(rng)
                at = limiter.reserve(size, now, 0.25)
                if at is None:
                    break
                count += 1
                arrival = at + rng.uniform(0, 0.05)
                heapq.heappush(events, (arrival, count, "arrive", size, None))
            wait_s = limiter.wait_s(now)
            pause = min(0.05, wait_s) if math.isfinite(wait_s) else 0.05
            heapq.heappush(events, (now + max(0.01, pause), count, "ask", 0, None))
        elif kind == "arrive":
            told = provider(size, now)
            slow = rng.uniform(0.2, 1.5) if told.signal is Signal.OK else 0.05
            heapq.heappush(events, (now + slow, count, "answer", size, told))
        else:
            assert feedback is not None
            limiter.done(feedback, now)


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("burst_s", [0.2, 1.0, 60.0])
def test_the_allowed_request_rate_is_used_and_not_exceeded(burst_s: float, headers: bool) -> None:
    provider = Provider(5000, 10_000_000, burst_s, headers=headers)
    limiter = Limiter(requests_per_minute=5000, tokens_per_minute=10_000_000, concurrency=512)
    drive(limiter, provider.answer, 120)
    assert provider.taken >= 0.98 * 10_000
    assert provider.refused <= 0.001 * provider.taken


@pytest.mark.parametrize("share", [0.8, 0.97, 1.0, 1.04])
def test_the_allowed_token_rate_is_used_and_not_exceeded(share: float) -> None:
    """The provider's count puts an estimate right that is off by a share."""
    provider = Provider(100_000, 1_000_000, 1.0)
    limiter = Limiter(requests_per_minute=100_000, tokens_per_minute=1_000_000, concurrency=512)

    def answer(reserved: int, now: float) -> Feedback:
        size = round(reserved * share)
        return replace(provider.answer(size, now), spare_tokens=reserved - size)

    drive(limiter, answer, 120, tokens=lambda rng: rng.randint(50, 700))
    assert provider.taken_tokens >= 0.98 * 2_000_000
    assert provider.refused <= 0.001 * provider.taken


@pytest.mark.parametrize(
    ("limit", "headers", "used", "refused"), [(600, True, 0.9, 0.1), (1000, False, 0.5, 1.0)]
)
def test_a_limit_that_is_lower_than_configured(
    limit: float, headers: bool, used: float, refused: float
) -> None:
    provider = Provider(limit, 10_000_000, 3.0 if headers else 1.0, headers=headers)
    limiter = Limiter(requests_per_minute=5000, tokens_per_minute=10_000_000, concurrency=64)
    drive(limiter, provider.answer, 120)
    assert provider.taken >= used * 2 * limit
    assert provider.refused <= refused * provider.taken
    if headers:
        assert limiter.state(START + 120)["requests_per_minute"] == limit


def test_429_halves_once_per_wave_and_climbs_back_step_by_step() -> None:
    limiter = Limiter(requests_per_minute=600, tokens_per_minute=1e9, concurrency=100)
    for _ in range(10):
        assert limiter.reserve(1, START, horizon_s=60) is not None
    for _ in range(10):
        limiter.done(Feedback(Signal.RATE_LIMITED, sent_at=START - 1), START)
    rates = [limiter.state(START + s)["requests_per_minute"] for s in range(7)]
    assert rates == pytest.approx([300, 360, 420, 480, 540, 600, 600])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 18 Nov 2026 12:26:50 GMT"}, 10),
        ({"retry-after": "Thu, 18 Nov 2020 12:26:50 GMT"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "1e12"}, 3600),
        ({"retry-after": "-3"}, 0),
        ({}, 0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    now = 1_795_004_800.0  # 2026-11-18 12:26:40 GMT
    limiter = Limiter(requests_per_minute=6000, tokens_per_minute=1e9, concurrency=8)
    assert limiter.reserve(1, now) is not None
    limiter.done(Feedback(Signal.RATE_LIMITED, headers), now)
    assert limiter.wait_s(now) == pytest.approx(seconds, abs=0.05)
    if seconds > 1:
        assert limiter.reserve(1, now + seconds - 0.1) is None
    assert limiter.reserve(1, now + seconds + 0.1) is not None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("0s", 0), ("2", 2),
        ("", None), ("soon", None), ("1x", None), ("nan", None), (None, None),
    ],
)  # fmt: skip
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_concurrency_is_bounded_and_adapts() -> None:
    limiter = Limiter(requests_per_minute=1e6, tokens_per_minute=1e9, concurrency=8)
    taken = [limiter.reserve(1, START, 10) for _ in range(20)]
    assert sum(at is not None for at in taken) == 8
    assert limiter.wait_s(START) == math.inf
    limiter.undo()  # a place that is not used comes back
    assert limiter.reserve(1, START, 10) is not None
    for _ in range(8):
        limiter.done(Feedback(Signal.RATE_LIMITED), START)
    assert limiter.state(START)["concurrency"] == 4
    for second in range(100):
        if limiter.reserve(1, START + second, 10) is not None:
            limiter.done(Feedback(Signal.OK), START + second)
    assert limiter.state(START)["concurrency"] == 8


def test_a_provider_that_is_down_gets_probes_not_a_storm() -> None:
    asked: list[float] = []

    def down(tokens: int, now: float) -> Feedback:
        asked.append(now)
        up = now > START + 60
        return Feedback(Signal.OK if up else Signal.UNAVAILABLE)

    limiter = Limiter(requests_per_minute=6000, tokens_per_minute=1e9, concurrency=32)
    drive(limiter, down, 180)
    in_outage = [at for at in asked if START + 2 < at <= START + 60]
    assert len(in_outage) <= 8
    assert sum(at > START + 130 for at in asked) > 1000
    assert limiter.down_s(START + 180) == 0


def test_the_circuit_by_itself() -> None:
    circuit = Circuit(failures_to_open=2)
    circuit.failed(0)
    circuit.succeeded()
    circuit.failed(1)
    assert circuit.admits(1)
    circuit.failed(2)
    assert not circuit.admits(2.5)
    assert circuit.admits(3)
    circuit.sent()
    assert not circuit.admits(3)
    circuit.failed(3)
    assert not circuit.admits(4.9)
    assert circuit.admits(5)
    circuit.sent()
    circuit.unsent()
    assert circuit.admits(5)
    circuit.succeeded()
    assert circuit.down_since is None


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    for name in ("requests_per_minute", "tokens_per_minute"):
        rates: dict[str, Any] = {"requests_per_minute": 1, "tokens_per_minute": 1, name: rate}
        with pytest.raises(ConfigError, match=rf"strong\.{name}"):
            Limiter(**rates, concurrency=1)
