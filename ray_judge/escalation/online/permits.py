"""Permits: what an asker needs before it sends a request, got in few calls to the governor.

A permit dies `PERMIT_LIFE_S` after it was granted. So a process that was asleep sends nothing
under money that a later owner of the ledger counts as spent, and whatever an earlier owner let
go has come back `quiet_s` after the next owner's claim.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from ray_judge.errors import RayJudgeError
from ray_judge.escalation.books.accounts import AS_IT_IS
from ray_judge.escalation.online.limiter import Feedback

BATCH = 16
"""Needs in one call to the governor: one durable lease covers them all."""
PERMIT_LIFE_S = 30.0
LOOK_S = 5.0
"""How often a process that waits for a permit looks whether it is there."""


def quiet_s(timeout_s: float) -> float:
    """Seconds after a claim until no request of an earlier owner can be on its way any more.

    `timeout_s`: the total time limit of one request.
    """
    return PERMIT_LIFE_S + timeout_s + 5.0


@dataclass(frozen=True, slots=True)
class Need:
    """One request: its question, the most it can cost, its tokens (in and out, estimated)."""

    key: str
    max_cost_usd: Decimal
    tokens: int


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send the first `slots` of the requests asked for, each at most once.

    Each has `factor` thousandths of the money that it asked for. `send_after_s[i]`: seconds after
    this permit arrived before request i goes out. `denied`: the money for so many of those behind
    them can never be had, under `cap` (`run` or `month`). `paused`: why the whole run rests or
    ends. `proven`: the server has given verdicts.
    """

    lease_id: str
    slots: int
    send_after_s: tuple[float, ...] = ()
    denied: int = 0
    cap: str | None = None
    paused: RayJudgeError | None = None
    factor: int = AS_IT_IS
    proven: bool = True


class GovernorPort(Protocol):
    """The governor as an asker calls it, in this process or in another."""

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit: ...

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None: ...

    async def pause(self, why: RayJudgeError) -> None: ...


def denying_cap(cost_usd: Decimal, best_usd: Mapping[str, Decimal]) -> str | None:
    """The cap that can never pay this much, `run` or `month`, by `Ledger.best_usd`; else None.

    The run's own cap is named first: no new month raises it.
    """
    return next((cap for cap in ("run", "month") if cost_usd > best_usd.get(cap, cost_usd)), None)


@dataclass(frozen=True, slots=True)
class Slot:
    """Leave for one request: its place in a lease, the most it may cost, and when it may go."""

    lease: str
    number: int
    need: Need
    max_cost_usd: Decimal
    send_at: float
    expires_at: float
    """As `send_at`, in seconds of the clock of `Permits`."""
    proven: bool = True


_Asking = tuple[Need, asyncio.Future[Slot]]


class Denied(Exception):
    """The money for a question cannot be had under a cap. It never crosses a process."""

    def __init__(self, cap: str | None) -> None:
        super().__init__(cap)
        self.cap = cap


def _boot_time() -> float:
    """Seconds that go on while this machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Permits:
    """Turns the needs of many questions into few calls to the governor, and books costs."""

    def __init__(
        self, name: str, governor: GovernorPort, *, clock: Callable[[], float] = _boot_time
    ) -> None:
        self._name = name
        self._governor = governor
        self._clock = clock
        self._waiting: deque[_Asking] = deque()
        self._asked: list[_Asking] = []
        self._done: list[tuple[tuple[str, int, Decimal], Feedback]] = []
        self._unused: list[tuple[str, int]] = []
        self._pump: asyncio.Task[None] | None = None
        self._booking: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def slot(self, need: Need) -> Slot:
        """Wait for leave to send one request, now. Raises Denied, or why the run rests."""
        while True:
            future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
            self._waiting.append((need, future))
            if self._pump is None or self._pump.done():
                self._pump = asyncio.ensure_future(self._serve())
                self._pump.add_done_callback(self._ended)
            slot = await future
            await asyncio.sleep(max(0.0, slot.send_at - self._clock()))
            if self._clock() <= slot.expires_at:
                return slot
            self.give_back(slot)

    def settle(self, slot: Slot, cost_usd: Decimal, feedback: Feedback) -> None:
        """Book a request that was sent."""
        self._done.append(((slot.lease, slot.number, cost_usd), feedback))
        self._book()

    def give_back(self, slot: Slot) -> None:
        """Return a slot under which nothing was sent, nor will be."""
        self._unused.append((slot.lease, slot.number))
        self._book()

    async def pause(self, why: RayJudgeError) -> None:
        """Rest the whole run: no actor gets leave to send any more."""
        await self._governor.pause(why)

    async def flush(self) -> None:
        """Return when everything settled so far is booked. Raises the error of a failed booking."""
        while self._booking is not None:
            await asyncio.wait([self._booking])
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._asked = batch
            permit, since = await self._acquire([need for need, _ in batch])
            self._hand_out(permit, batch, since)

    def _ended(self, pump: asyncio.Task[None]) -> None:
        """Nobody may wait for ever: whatever ended the governor is told to all who wait."""
        if not pump.cancelled() and (error := pump.exception()) is not None:
            self._refuse([*self._asked, *self._waiting], error)
            self._waiting.clear()

    async def _acquire(self, needs: Sequence[Need]) -> tuple[Permit, float]:
        """A permit, and a time before which it was not granted.

        When it arrives tells nothing: it may have lain there while this process was asleep. But
        had it been granted before one look, it would have been there at the next.
        """
        call = asyncio.ensure_future(self._governor.acquire(self._name, needs))
        since = looked = self._clock()
        while not (await asyncio.wait([call], timeout=LOOK_S))[0]:
            since, looked = looked, self._clock()
        return call.result(), since

    def _hand_out(self, permit: Permit, batch: list[_Asking], since: float) -> None:
        now = self._clock()
        for number, (need, future) in enumerate(batch[: permit.slots]):
            send_at = now + permit.send_after_s[number]
            most = need.max_cost_usd * permit.factor / AS_IT_IS
            slot = Slot(
                permit.lease_id, number, need, most, send_at, since + PERMIT_LIFE_S, permit.proven
            )
            if future.cancelled():
                self.give_back(slot)
            else:
                future.set_result(slot)
        rest = batch[permit.slots :]
        if permit.paused:
            self._refuse([*rest, *self._waiting], permit.paused)
            self._waiting.clear()
        else:
            self._refuse(rest[: permit.denied], Denied(permit.cap))
            self._waiting.extendleft(reversed(rest[permit.denied :]))

    def _refuse(self, waiting: Sequence[_Asking], error: BaseException) -> None:
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)

    def _book(self) -> None:
        if self._booking is None:
            self._booking = asyncio.ensure_future(self._send_books())
            self._booking.add_done_callback(self._booked)

    async def _send_books(self) -> None:
        while self._done or self._unused:
            done, self._done = self._done, []
            unused, self._unused = self._unused, []
            items, feedback = [item for item, _ in done], [told for _, told in done]
            await self._governor.settle(self._name, items, unused, feedback)

    def _booked(self, booking: asyncio.Task[None]) -> None:
        self._booking = None
        if not booking.cancelled():
            self._failure = self._failure or booking.exception()
            if self._done or self._unused:
                self._book()
