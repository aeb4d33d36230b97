"""Rate limits of the provider, over the whole cluster. Pure: time (Unix seconds) is an argument.

Requests are not let go in bursts but *scheduled*: `reserve` answers with the instant at which the
request may be sent, evenly spaced (the virtual-scheduling form of a token bucket). So a provider
with a small bucket is never surprised, and a batch of permits can be handed to an actor at once.

What is learned: the real limits, from `x-ratelimit-*` headers; that the provider is short of
capacity, from 429 (half the rate, then step by step back); that it is down, from failures in a
row (pause, one probe, resume).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from ray_judge.failures import Signal

PACE = 0.99
"""Share of the allowed rate that is used. The rest refills the provider's bucket after requests
were late: what it could not save up then is missing when they come together."""
LOW = 0.5
EASE = 0.95
"""Share of the pace while the provider says that its bucket holds less than `LOW` of the most that
it ever said: to ease off a little costs less than the 429 that an empty bucket gives."""
BURST_S = 0.02
"""How far ahead of the even pace a request may go, in seconds of the rate."""
CLIMB_EVERY_S = 1.0
CLIMB = 0.1
"""After a 429 the share comes back by this much of the full rate each `CLIMB_EVERY_S` seconds."""
FLOOR = 1 / 64
TOLD_S = 2.0
"""What holds all requests up for longer is told."""
SILENT_S = 25.0
"""So is it when none of the requests in flight was answered for so long."""
LONGEST_BACKOFF_S = 10.0
"""A question at which the server failed is asked again so much later at the latest."""
FIRST = 16
"""So many answers show whether a run's questions can be answered."""
MAX_RETRY_AFTER_S = 3600.0
DATES_BEGIN_S = 1e9
"""More seconds than that are a date, as Unix time, which some gateways send."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Feedback:
    """One answer, as the limiter sees it.

    `sent_at`: Unix seconds, if known. `spare_tokens`: how many of the tokens reserved for it the
    prompt did not have, by the provider's own count; negative when it had more. `usable`: whether
    it gave a verdict; None: it says nothing of that. `why` it was not, or what failed.
    """

    signal: Signal
    headers: Mapping[str, str] = field(default_factory=dict)
    sent_at: float | None = None
    spare_tokens: int = 0
    usable: bool | None = None
    why: str = ""


class Opening:
    """How a run begins: one question, then sixteen, then as many as the limits allow.

    What goes wrong for all of the first ones would go wrong for all others, too.
    """

    def __init__(self, usable: int = 0, *, proven: bool = False) -> None:
        """`usable`: how many answers of this server are known to be usable.

        `proven`: an earlier session had verdicts. This one begins carefully all the same.
        """
        self._usable, self._unusable, self._proven = usable, 0, proven
        self.failure: Feedback | None = None
        """What came last in place of a verdict, once so many had none."""

    @property
    def proven(self) -> bool:
        """Whether the server has given a verdict."""
        return self._proven or self._usable > 0

    @property
    def most(self) -> float:
        """How many requests may be in flight."""
        return 1 if not self._usable else FIRST if self._usable < FIRST else math.inf

    def learn(self, feedback: Feedback) -> None:
        if feedback.usable:
            self._usable += 1
        elif feedback.usable is False and not self.proven:
            self._unusable += 1
            if self._unusable >= FIRST:
                self.failure = feedback


@dataclass(slots=True)
class _Pace:
    """One resource (requests or tokens): evenly spaced by `next_at`."""

    per_minute: float
    configured: float
    next_at: float = -math.inf
    most: float = 0.0
    """The most that the provider ever said to be left."""
    ease: float = 1.0

    def at(self, now: float) -> float:
        return max(now, self.next_at - BURST_S)

    def take(self, at: float, units: float, share: float) -> None:
        self.next_at = max(self.next_at, at) + units * self._each_s() / share

    def _each_s(self) -> float:
        return 60.0 / (self.per_minute * PACE * self.ease)

    def learn(self, headers: Mapping[str, str], name: str, now: float) -> None:
        """Take the provider's limit where it is lower than ours; ease off while little is left."""
        limit = _number(headers.get(f"x-ratelimit-limit-{name}"))
        remaining = _number(headers.get(f"x-ratelimit-remaining-{name}"))
        reset_s = duration_s(headers.get(f"x-ratelimit-reset-{name}"))
        if limit is not None and limit > 0:
            self.per_minute = min(self.configured, limit)
        if remaining is None:
            return
        self.most = max(self.most, remaining)
        self.ease = EASE if remaining < LOW * self.most else 1.0
        if remaining <= 0 and reset_s is not None:
            # `reset` is the time until the bucket is full; one unit is there much earlier.
            one_s = 60.0 / (self.per_minute * PACE)
            self.next_at = max(self.next_at, now + min(reset_s, one_s))

    def give_back(self, units: float) -> None:
        """Units that were taken and not used; negative for used and not taken."""
        self.next_at -= units * self._each_s()


class Limiter:
    """Schedules requests under requests/min, tokens/min and requests in flight."""

    def __init__(
        self,
        *,
        requests_per_minute: float,
        tokens_per_minute: float,
        concurrency: int,
        failures_to_open: int = 10,
        usable: int = 0,
        proven: bool = False,
    ) -> None:
        """`failures_to_open`: this many `UNAVAILABLE` in a row open the circuit.

        `usable`, `proven`: see `Opening`.
        """
        self._requests = _Pace(requests_per_minute, requests_per_minute)
        self._tokens = _Pace(tokens_per_minute, tokens_per_minute)
        self._most = concurrency
        self._concurrency = float(concurrency)
        self._share = 1.0
        self._halved_at = -math.inf
        self._climbed_at = -math.inf
        self._resume_at = -math.inf
        self._circuit = Circuit(failures_to_open)
        self._failed_first: float | None = None
        """When the first failure came since the last answer; None: that was none."""
        self._failed_last = self._heard_at = -math.inf
        self.last_failure = ""
        """What the server said the last time that it did not answer."""
        self.opening = Opening(usable, proven=proven)
        self.in_flight = 0

    def reserve(self, tokens: int, now: float, horizon_s: float = 0.0) -> float | None:
        """Take the place of one request of `tokens` (input plus output, estimated).

        Returns when it may be sent, at most `horizon_s` ahead, or None when there is no place
        within that: ask again after `wait_s`. Every reservation is ended by one `done` or `undo`.
        """
        self._climb(now)
        if self._full() or now < self._resume_at or not self._circuit.admits(now):
            return None
        at = max(self._requests.at(now), self._tokens.at(now))
        if at > now + horizon_s:
            return None
        self._circuit.sent()
        self._heard_at = self._heard_at if self.in_flight else at
        self.in_flight += 1
        self._requests.take(at, 1.0, self._share)
        self._tokens.take(at, float(tokens), self._share)
        return at

    def wait_s(self, now: float) -> float:
        """Seconds until `reserve` may succeed; infinite when only an answer can change that."""
        self._climb(now)
        if self._full() or self._circuit.waiting_for_probe:
            return math.inf
        at = max(self._requests.at(now), self._tokens.at(now))
        return max(at, self._resume_at, self._circuit.open_until, now) - now

    def _full(self) -> bool:
        return self.in_flight >= min(int(self._concurrency), self.opening.most)

    def undo(self) -> None:
        """A reservation will not be used."""
        self.in_flight = max(0, self.in_flight - 1)
        self._circuit.unsent()

    def done(self, feedback: Feedback, now: float) -> None:
        """An answer came (or a failure): end its reservation and learn from it."""
        self.in_flight = max(0, self.in_flight - 1)
        self.opening.learn(feedback)
        self._heard_at = now
        if feedback.signal is Signal.OK:
            self._failed_first = None
        else:
            self._failed_first, self._failed_last = self._failed_first or now, now
            self.last_failure = feedback.why
        headers = {key.lower(): value for key, value in feedback.headers.items()}
        self._requests.learn(headers, "requests", now)
        self._tokens.learn(headers, "tokens", now)
        # An estimate that is 2 % too high would leave 2 % of the allowed rate unused, all night.
        self._tokens.give_back(feedback.spare_tokens)
        if feedback.signal is Signal.UNAVAILABLE:
            self._circuit.failed(now)
            self._concurrency = max(1.0, self._concurrency * 0.9)
        else:
            self._circuit.succeeded()
        if feedback.signal is Signal.RATE_LIMITED:
            self._slow_down(feedback.sent_at, now)
        elif feedback.signal is Signal.OK:
            # One more at a time for each round of answers, as TCP does.
            self._concurrency = min(self._most, self._concurrency + 1.0 / self._concurrency)
        if feedback.signal is not Signal.OK:
            self._resume_at = max(self._resume_at, now + (retry_after_s(headers, now) or 0.0))

    def _slow_down(self, sent_at: float | None, now: float) -> None:
        """Half the rate, once per wave: answers to what was sent before the last halving do not."""
        if (now - CLIMB_EVERY_S if sent_at is None else sent_at) <= self._halved_at:
            return
        self._halved_at = self._climbed_at = now
        self._share = max(FLOOR, self._share / 2)
        self._concurrency = max(1.0, self._concurrency / 2)

    def _climb(self, now: float) -> None:
        steps = (now - self._climbed_at) // CLIMB_EVERY_S if self._share < 1.0 else 0
        if steps >= 1:
            self._share = min(1.0, self._share + CLIMB * steps)
            self._climbed_at += steps * CLIMB_EVERY_S

    def state(self, now: float) -> dict[str, Any]:
        """Rates per minute as used now, requests in flight, and what all others wait for."""
        self._climb(now)
        return {
            "requests_per_minute": self._requests.per_minute * self._share,
            "tokens_per_minute": self._tokens.per_minute * self._share,
            "concurrency": int(self._concurrency),
            "in_flight": self.in_flight,
            "waits": self.waits(now),
        }

    def down_s(self, now: float) -> float:
        """For how many seconds the provider has given no answer though it was asked; 0: it did.

        Time without a question does not count.
        """
        if self._failed_first is None:
            return 0.0
        again_at = self._failed_last + LONGEST_BACKOFF_S
        held = now <= max(self._resume_at, self._circuit.open_until, again_at)
        return (now if held else self._failed_last) - self._failed_first

    def waits(self, now: float) -> str | None:
        """What holds all requests up, as a sentence; None: nothing does for long."""
        held_s = max(self._resume_at, self._circuit.open_until) - now
        down_s = 0.0 if self._failed_first is None else now - self._failed_first
        if max(held_s, down_s) > TOLD_S:
            times = [f"no answer for {down_s:.0f} s"] if down_s else []
            times += [f"asked again in {held_s:.0f} s"] if held_s >= 1 else []
            return f"the strong judge: {self.last_failure} ({', '.join(times)})"
        if self.in_flight and now - self._heard_at > SILENT_S:
            since = f"{now - self._heard_at:.0f} s"
            return f"{self.in_flight} requests are in flight, and none was answered for {since}"
        at = max(self._requests.at(now), self._tokens.at(now))
        if at - now > TOLD_S:
            return f"the rate limits leave room for the next request in {at - now:.0f} s"
        return None


class Circuit:
    """Closed: all pass. Open: nobody, for a while. Then one probe decides."""

    def __init__(self, failures_to_open: int, pause_s: float = 1.0, longest_s: float = 60.0):
        """`pause_s` is the first pause; each failed probe doubles it up to `longest_s`."""
        self._failures_to_open = failures_to_open
        self._first_s, self._longest_s = pause_s, longest_s
        self._pause_s = pause_s
        self._failures = 0
        self.down_since: float | None = None
        self.open_until = -math.inf
        self.waiting_for_probe = False

    def admits(self, now: float) -> bool:
        return self.down_since is None or (now >= self.open_until and not self.waiting_for_probe)

    def sent(self) -> None:
        self.waiting_for_probe = self.down_since is not None

    def unsent(self) -> None:
        self.waiting_for_probe = False

    def succeeded(self) -> None:
        self._failures = 0
        self._pause_s = self._first_s
        self.down_since, self.open_until, self.waiting_for_probe = None, -math.inf, False

    def failed(self, now: float) -> None:
        self._failures += 1
        if self.down_since is None:
            if self._failures >= self._failures_to_open:
                self.down_since, self.open_until = now, now + self._pause_s
        elif self.waiting_for_probe:
            self._pause_s = min(self._longest_s, self._pause_s * 2)
            self.open_until, self.waiting_for_probe = now + self._pause_s, False


def duration_s(text: str | None) -> float | None:
    """Seconds of `1s`, `6m0s`, `120ms`, `1h2m3.5s`, or a bare number; None for anything else."""
    text = (text or "").strip()
    number = _number(text)
    if number is not None:
        return max(0.0, number)
    parts = _DURATION.findall(text)
    if not parts or "".join(value + unit for value, unit in parts) != text:
        return None
    return sum(float(value) * _SECONDS[unit] for value, unit in parts)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by `retry-after-ms` or `retry-after` (seconds or an HTTP date).

    `headers` have lower-case names. None when absent or unreadable; never more than an hour, lest
    a broken clock on the other side stop the run for good.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    text = headers.get("retry-after")
    seconds = duration_s(text) if milliseconds is None else milliseconds / 1000.0
    if seconds is None and text is not None:
        with contextlib.suppress(ValueError):
            seconds = parsedate_to_datetime(text).timestamp() - now
    if seconds is not None and seconds > DATES_BEGIN_S:
        seconds -= now
    return None if seconds is None else min(MAX_RETRY_AFTER_S, max(0.0, seconds))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
