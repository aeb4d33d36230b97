"""The limiter against simulated providers, in simulated time."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from ray_judge.escalation.online.limiter import FIRST, Circuit, Feedback, Limiter
from ray_judge.failures import Signal

START = 1_795_000_000.0


class Provider:
    """Takes a request when both its token buckets hold enough, else answers 429."""

    def __init__(self, rpm: float, tpm: float, burst_s: float, headers: bool = False) -> None:
        self.per_s = [rpm / 60, tpm / 60]
        self.size, self.at, self.headers = [per_s * burst_s for per_s in self.per_s], START, headers
        self.levels = list(self.size)
        self.taken = self.refused = self.taken_tokens = 0

    def answer(self, tokens: int, now: float) -> Feedback:
        gone_s, self.at = now - self.at, now
        filled = zip(self.size, self.levels, self.per_s, strict=True)
        self.levels = [min(size, level + gone_s * per_s) for size, level, per_s in filled]
        if self.levels[0] < 1 or self.levels[1] < tokens:
            self.refused += 1
            return Feedback(Signal.RATE_LIMITED)
        self.levels = [self.levels[0] - 1, self.levels[1] - tokens]
        self.taken, self.taken_tokens = self.taken + 1, self.taken_tokens + tokens
        told = {
            "x-ratelimit-limit-requests": str(round(self.per_s[0] * 60)),
            "x-ratelimit-limit-tokens": str(round(self.per_s[1] * 60)),
            "X-RateLimit-Remaining-Requests": str(int(self.levels[0])),
            "x-ratelimit-reset-requests": "120ms",
        }
        return Feedback(Signal.OK, told if self.headers else {}, usable=True)


def drive(
    limiter: Limiter,
    provider: Callable[[int, float], Feedback],
    seconds: float,
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


def limits(requests: float = 5000, concurrency: int = 512, tokens: float = 1e9) -> Limiter:
    rates = {"requests_per_minute": requests, "tokens_per_minute": tokens}
    return Limiter(**rates, concurrency=concurrency, usable=FIRST)


def test_a_run_begins_with_one_question_and_then_sixteen() -> None:
    limiter = Limiter(requests_per_minute=1e6, tokens_per_minute=1e9, concurrency=64)

    def let_go() -> int:
        return sum(limiter.reserve(1, START, horizon_s=60) is not None for _ in range(99))

    assert let_go() == 1 and math.isinf(limiter.wait_s(START))
    limiter.done(Feedback(Signal.OK, usable=False, why="no"), START)
    assert let_go() == 1 and not limiter.opening.proven
    limiter.done(Feedback(Signal.UNAVAILABLE), START)
    assert let_go() == 1, "a failure is no answer"
    limiter.done(Feedback(Signal.OK, usable=True), START)
    assert limiter.opening.proven and let_go() == 16
    for _ in range(16):
        limiter.done(Feedback(Signal.OK, usable=True), START)
    assert let_go() > 48 and limiter.opening.failure is None


REFUSED = Feedback(Signal.RATE_LIMITED, {"retry-after": "90"}, why="HTTP 429: slow down")
LOST = Feedback(Signal.UNAVAILABLE, why="http://x cannot be reached: no such name")
GOOD = Feedback(Signal.OK, usable=True)


@pytest.mark.parametrize(
    ("before", "told", "seconds", "said"),
    [
        ([], [], 99, None),  # nobody asks
        (["taken"], [], 20, None),
        (["taken"], [], 40, "1 requests are in flight, and none was answered for 40 s"),
        (["taken"], [LOST], 1, None),
        (["taken"], [LOST], 12, "x cannot be reached: no such name (no answer for 12 s)"),
        (["taken"], [LOST, LOST, GOOD], 12, None),
        (["taken"], [REFUSED], 1, "HTTP 429: slow down (no answer for 1 s, asked again in 89 s)"),
        (["taken"], [REFUSED, GOOD], 60, "HTTP 429: slow down (asked again in 30 s)"),
        (["taken"] * 3, [GOOD] * 3, 0, "rate limits leave room for the next request in 91 s"),
    ],
)
def test_what_all_requests_wait_for_is_said(
    before: list[str], told: list[Feedback], seconds: float, said: str | None
) -> None:
    limiter = limits(2 if len(before) == 3 else 600)
    for _ in before:
        assert limiter.reserve(1, START, horizon_s=90) is not None
    for feedback in told:
        limiter.done(feedback, START)
    found = limiter.state(START + seconds)["waits"]
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("limit", "burst_s", "headers", "used", "refused"),
    [
        *((5000, burst_s, False, 0.98, 0.001) for burst_s in (0.2, 1.0, 60.0)),
        *((5000, burst_s, True, 0.98, 0.001) for burst_s in (0.2, 1.0, 60.0)),
        (600, 3.0, True, 0.9, 0.1),  # lower than configured, and said so
        (1000, 1.0, False, 0.5, 1.0),
    ],
)
def test_the_allowed_request_rate_is_used_and_not_exceeded(
    limit: int, burst_s: float, headers: bool, used: float, refused: float
) -> None:
    provider = Provider(limit, 1e7, burst_s, headers)
    limiter = limits(concurrency=512 if limit == 5000 else 64)
    drive(limiter, provider.answer, 120)
    assert provider.taken >= used * 2 * limit
    assert provider.refused <= refused * provider.taken
    assert not headers or limiter.state(START + 120)["requests_per_minute"] == limit


@pytest.mark.parametrize(
    ("share", "burst_s"), [(1.0, 0.5), (0.8, 1.0), (0.97, 1.0), (1.0, 1.0), (1.04, 1.0)]
)
def test_the_allowed_token_rate_is_used_and_not_exceeded(share: float, burst_s: float) -> None:
    """The provider's count puts an estimate right that is off by a share."""
    provider = Provider(100_000, 1_000_000, burst_s)

    def answer(reserved: int, now: float) -> Feedback:
        size = round(reserved * share)
        return replace(provider.answer(size, now), spare_tokens=reserved - size)

    drive(limits(100_000, tokens=1_000_000), answer, 120, lambda rng: rng.randint(50, 900))
    assert provider.taken_tokens >= 0.98 * 2_000_000
    assert provider.refused <= 0.001 * provider.taken


def test_429_halves_once_per_wave_and_climbs_back_step_by_step() -> None:
    limiter = limits(600, 100)
    for _ in range(10):
        assert limiter.reserve(1, START, horizon_s=60) is not None
    for _ in range(10):
        limiter.done(Feedback(Signal.RATE_LIMITED, sent_at=START - 1), START)
    rates = [limiter.state(START + s)["requests_per_minute"] for s in range(7)]
    assert rates == pytest.approx([300, 360, 420, 480, 540, 600, 600])


DURATIONS = {"1s": 1, "6m0s": 360, "120ms": 0.12, "0.5h": 1800, "1h2m3.5s": 3600, "2m3.5s": 123.5,
             "2": 2, "0s": 0, "": 0, "1x": 0, "nan": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7), ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 18 Nov 2026 12:26:50 GMT"}, 10),
        ({"retry-after": "Thu, 18 Nov 2020 12:26:50 GMT"}, 0), ({"retry-after": "soon"}, 0),
        ({"retry-after": "1e12"}, 3600), ({"retry-after": "-3"}, 0), ({}, 0),
        *(({"retry-after": text}, seconds) for text, seconds in DURATIONS.items()),
    ],
)  # fmt: skip
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    now = 1_795_004_800.0  # 2026-11-18 12:26:40 GMT
    limiter = limits(6000, 8)
    assert limiter.reserve(1, now) is not None
    limiter.done(Feedback(Signal.RATE_LIMITED, headers), now)
    assert limiter.wait_s(now) == pytest.approx(seconds, abs=0.05)
    if seconds > 1:
        assert limiter.reserve(1, now + seconds - 0.1) is None
    assert limiter.reserve(1, now + seconds + 0.1) is not None


def test_concurrency_is_bounded_and_adapts() -> None:
    limiter = limits(1e6, 8)
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
            limiter.done(Feedback(Signal.OK, usable=True), START + second)
    assert limiter.state(START)["concurrency"] == 8


def test_a_provider_that_is_down_gets_probes_not_a_storm() -> None:
    asked: list[float] = []

    def down(tokens: int, now: float) -> Feedback:
        asked.append(now)
        up = now > START + 60
        return Feedback(Signal.OK if up else Signal.UNAVAILABLE, usable=up or None)

    limiter = limits(6000, 32)
    drive(limiter, down, 180)
    in_outage = [at for at in asked if START + 2 < at <= START + 60]
    assert len(in_outage) <= 8
    assert sum(at > START + 130 for at in asked) > 1000
    assert limiter.down_s(START + 180) == 0


def test_the_circuit() -> None:
    """Failures in a row open it, and each pause, twice as long as the last, ends with one probe."""
    circuit = Circuit(failures_to_open=2)
    for at in (0, 1):
        circuit.succeeded()
        circuit.failed(at)
        assert circuit.admits(at)
    now = 2.0
    for pause_s in (1, 2, 4):
        circuit.failed(now)
        assert not circuit.admits(now + pause_s - 0.1)
        now += pause_s
        assert circuit.admits(now)
        circuit.sent()
        assert not circuit.admits(now)
        circuit.unsent()
        assert circuit.admits(now)
        circuit.sent()
    circuit.succeeded()
    assert circuit.admits(now) and circuit.down_since is None
