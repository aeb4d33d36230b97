"""The governor: every request to the strong judge needs its permit of money and of rate.

There is one per run, a plain asyncio class with an injected clock. Actors ask in batches, and
take turns. One commit of the ledger makes all answers of a round durable, and nobody is answered
before it has returned.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from itertools import takewhile
from typing import Any, Protocol

from ray_judge.errors import EscalationError, PausedError, ProviderDown, RayJudgeError
from ray_judge.escalation.books.ledger import Lease, LeaseSlot, Ledger
from ray_judge.escalation.online.limiter import FIRST, Feedback, Limiter
from ray_judge.escalation.online.permits import Need, Permit, denying_cap
from ray_judge.failures import Signal

HORIZON_S = 0.5
"""How far ahead permits are handed out: long enough to batch, and to bear a commit or a process
that is half of it late without a gap in the rate; short enough to react to a 429."""

TURN_SLOTS = 16
"""The most that one actor gets before the next one's turn."""


class Clock(Protocol):
    """Where the governor takes its time from: Unix seconds."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


NONE = Lease("", 0)


@dataclass(slots=True)
class _Waiter:
    actor: str
    needs: Sequence[Need]
    permit: asyncio.Future[Permit]


@dataclass(slots=True)
class _Offer:
    """What a waiter gets: a lease, when each of its requests may be sent, how many are denied."""

    waiter: _Waiter
    lease: Lease = NONE
    times: list[float] = field(default_factory=list)
    denied: int = 0
    cap: str | None = None


class _HeldBy(Enum):
    """Why the first waiter cannot be answered yet."""

    MONEY = "open leases hold what it needs"
    RATE = "no place within the horizon"


async def _in_thread(work: Callable[[], None]) -> None:
    await asyncio.to_thread(work)


def _down(patience_s: float, why: str) -> ProviderDown:
    return ProviderDown(
        f"the strong judge's server gave no answer for {patience_s:g} s (strong.give_up_after_s): "
        f"{why}. Everything is kept, run again later"
    )


def _in_vain(last: Feedback) -> RayJudgeError:
    if last.signal is Signal.OK:
        return EscalationError(
            f"the strong judge's first {FIRST} answers cannot be used: {last.why}"
        )
    return ProviderDown(
        f"the strong judge's server answered none of {FIRST} requests, which count in full, with "
        f"anything that can be read: {last.why}. Everything is kept, run again later"
    )


class Governor:
    """Serves permits from one ledger and one limiter."""

    def __init__(
        self,
        ledger: Ledger,
        limiter: Limiter,
        clock: Clock,
        *,
        horizon_s: float = HORIZON_S,
        patience_s: float = math.inf,
        off_loop: Callable[[Callable[[], None]], Awaitable[None]] = _in_thread,
    ) -> None:
        """Takes over `ledger` and `limiter`.

        `patience_s`: a provider that is down for longer pauses the run. `off_loop` runs the
        ledger's blocking commit (in a thread, unless a test decides otherwise).
        """
        self._ledger = ledger
        self._limiter = limiter
        self._clock = clock
        self._horizon_s = horizon_s
        self._patience_s = patience_s
        self._off_loop = off_loop
        self._waiting: dict[str, deque[_Waiter]] = {}
        self._turns: deque[str] = deque()
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._ledger_free = asyncio.Lock()
        self._paused: RayJudgeError | None = None
        self._failure: BaseException | None = None
        self._offers: list[_Offer] = []
        self._in_flight: set[LeaseSlot] = set()
        self._commit_s = 0.0

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        """Wait for rate and money for at least the first of `needs`; see `Permit`.

        Denial comes only when nothing that is open could free enough. Raises LedgerFenced or
        StorageError when the ledger is lost: nothing more can be sent under it. Raises
        ConfigError for a cost that is no amount of money.
        """
        self._check()
        self._ledger.fitting([need.max_cost_usd for need in needs])  # refuses what is no amount
        waiter = _Waiter(actor, needs, asyncio.get_running_loop().create_future())
        if actor not in self._waiting:
            self._waiting[actor] = deque()
            self._turns.append(actor)
        self._waiting[actor].append(waiter)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.ensure_future(self._serve())
            self._pump.add_done_callback(self._ended)
        self._wake.set()
        return await waiter.permit

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[LeaseSlot] = (),
        feedback: Sequence[Feedback] = (),
    ) -> None:
        """Book costs, give back unused slots, and learn from the answers. Safe to repeat.

        `items`: (lease, slot, cost in USD) of requests that were sent; one `Feedback` belongs to
        each, in the same order (missing ones count as OK).
        """
        async with self._ledger_free:
            self._check()
            now = self._clock.now()
            for at, (lease, slot, cost) in enumerate(items):
                told = feedback[at] if at < len(feedback) else Feedback(Signal.OK)
                self._book(lease, slot, cost, told, now)
            for lease, slot in released:
                self._book(lease, slot, Decimal(0), None, now)
        self._wake.set()

    def pause(self, why: RayJudgeError) -> None:
        """Answer every waiting and every later `acquire` with this error."""
        self._paused = why
        self._urgent.set()
        self._wake.set()

    def _pause_permit(self) -> Permit:
        return Permit("", 0, paused=self._paused)

    def state(self) -> dict[str, Any]:
        """Money in USD (`best_usd`: see `denying_cap`) and rates per minute."""
        return {
            "spent_usd": self._ledger.spent_usd,
            "open_usd": self._ledger.open_usd,
            "lost_usd": self._ledger.lost_usd,
            "cap_usd": self._ledger.cap_usd,
            "best_usd": self._ledger.best_usd(),
            "month_usd": self._ledger.month_usd(),
            "excess_usd": self._ledger.excess.usd,
            "excess_said": self._ledger.excess.said,
            "waiting": sum(map(len, self._waiting.values())),
            **self._limiter.state(self._clock.now()),
        }

    async def close(self) -> None:
        """Answer all who wait with a pause, write the ledger's final snapshot, and stop."""
        self.pause(self._paused or PausedError("the run is ending"))
        async with self._ledger_free:  # behind a commit that is under way, and its answers
            if self._pump is not None:
                self._pump.cancel()
            self._answer_all(self._pause_permit())
            await self._off_loop(self._ledger.close)

    async def _serve(self) -> None:
        """Serve rounds while anyone waits. What it raises ends the governor: see `_ended`."""
        while self._waiting:
            self._wake.clear()
            self._urgent.clear()
            held_by = await self._round()
            if held_by is not None and self._waiting:
                await self._rest(held_by)

    def _ended(self, pump: asyncio.Task[None]) -> None:
        """Nobody may wait for ever: whatever ended the serving is told to all who are waiting."""
        if pump.cancelled() or pump.exception() is None:
            return
        self._failure = pump.exception()
        for waiter in [*(offer.waiter for offer in self._offers), *self._take_all()]:
            if not waiter.permit.done() and self._failure is not None:
                waiter.permit.set_exception(self._failure)

    async def _round(self) -> _HeldBy | None:
        """Answer as many as can be answered, after one commit; what holds up the rest."""
        async with self._ledger_free:
            now = self._clock.now()
            if self._limiter.down_s(now) > self._patience_s:
                self._paused = _down(self._patience_s, self._limiter.last_failure)
            if self._paused is not None:
                self._answer_all(self._pause_permit())
                return None
            offers = self._offers = []
            held_by: _HeldBy | None = None
            while self._turns and held_by is None:
                waiter = self._waiting[self._turns[0]][0]
                if waiter.permit.done():  # cancelled while it waited
                    self._next_turn()
                    continue
                offer = self._offer(waiter, now)
                if isinstance(offer, _HeldBy):
                    # Nobody overtakes: a later, smaller need must not starve this one.
                    held_by = offer
                else:
                    offers.append(offer)
                    self._next_turn()
            if any(offer.times for offer in offers):
                await self._off_loop(self._ledger.commit)
                self._commit_s = self._clock.now() - now
            for offer in offers:
                self._deliver(offer)
        return held_by

    def _offer(self, waiter: _Waiter, now: float) -> _Offer | _HeldBy:
        """Money first, because looking is free; then places; then both are taken.

        A month may begin in between, and change what the looks before it showed.
        """
        best, needs = self._ledger.best_usd(), waiter.needs[:TURN_SLOTS]
        affordable = self._ledger.fitting([need.max_cost_usd for need in needs])
        caps = [denying_cap(need.max_cost_usd, best) for need in waiter.needs[affordable:]]
        cap = caps[0] if caps else None
        denied = len([*takewhile(lambda name: name == cap, caps)]) if cap else 0
        if not affordable and denied:
            return _Offer(waiter, denied=denied, cap=cap)
        if not affordable:
            return _HeldBy.MONEY if self._ledger.best_usd() == best else self._offer(waiter, now)
        times: list[float] = []
        for need in needs[:affordable]:
            # The commit comes before the first request: places start behind it.
            at = self._limiter.reserve(need.tokens, now + self._commit_s, self._horizon_s)
            if at is None:
                break
            times.append(at)
        if not times:
            return _HeldBy.RATE
        wanted = [(need.key, need.max_cost_usd) for need in needs[: len(times)]]
        lease = self._ledger.propose(waiter.actor, wanted)
        for _ in times[lease.slots :]:
            self._limiter.undo()
        if not lease.slots:
            return self._offer(waiter, now)
        self._in_flight.update((lease.id, slot) for slot in range(lease.slots))
        offer = _Offer(waiter, lease, times[: lease.slots])
        if lease.slots == affordable:
            offer.denied, offer.cap = denied, cap
        return offer

    def _deliver(self, offer: _Offer) -> None:
        now, slots = self._clock.now(), len(offer.times)
        if offer.waiter.permit.done():  # whoever asked is gone
            for slot in range(slots):
                self._book(offer.lease.id, slot, Decimal(0), None, now)
            self._wake.set()
            return
        after = tuple(max(0.0, at - now) for at in offer.times)
        offer.waiter.permit.set_result(
            Permit(
                offer.lease.id, slots, after,
                denied=offer.denied, cap=offer.cap, factor=offer.lease.factor,
                proven=self._limiter.opening.proven,
            )
        )  # fmt: skip

    async def _rest(self, held_by: _HeldBy) -> None:
        """Until what holds up the first waiter may have changed."""
        now = self._clock.now()
        wait_s = self._limiter.wait_s(now) if held_by is _HeldBy.RATE else math.inf
        if not math.isfinite(wait_s):
            await self._wake.wait()
            return
        wait_s = min(wait_s, self._patience_s - self._limiter.down_s(now))
        # Let a batch gather; the places handed out so far last for twice as long.
        wait_s = max(self._horizon_s / 2, wait_s - self._horizon_s)
        sleepers = [
            asyncio.ensure_future(self._urgent.wait()),
            asyncio.ensure_future(self._clock.sleep(wait_s)),
        ]
        try:
            await asyncio.wait(sleepers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for sleeper in sleepers:
                sleeper.cancel()

    def _next_turn(self) -> None:
        """Take the served waiter away; its actor's next one comes behind the other actors'."""
        actor = self._turns.popleft()
        self._waiting[actor].popleft()
        if self._waiting[actor]:
            self._turns.append(actor)
        else:
            del self._waiting[actor]

    def _take_all(self) -> list[_Waiter]:
        waiters = [waiter for queue in self._waiting.values() for waiter in queue]
        self._waiting.clear()
        self._turns.clear()
        return waiters

    def _answer_all(self, permit: Permit) -> None:
        for waiter in self._take_all():
            if not waiter.permit.done():
                waiter.permit.set_result(permit)

    def _book(
        self, lease: str, slot: int, cost: Decimal, feedback: Feedback | None, now: float
    ) -> None:
        """Settle one slot; the limiter hears of it once, and only if the place was its own."""
        self._ledger.settle(lease, slot, cost)
        if (lease, slot) in self._in_flight:
            self._in_flight.remove((lease, slot))
            if feedback is None:
                self._limiter.undo()
            else:
                self._limiter.done(feedback, now)
                if (last := self._limiter.opening.failure) and self._paused is None:
                    self.pause(_in_vain(last))

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
