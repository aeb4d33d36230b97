"""Asks questions under permits: lease, send, journal, settle, in this order and no other.

A plain asyncio class; `actors.py` puts it into a Ray actor. `RETRY` is the one retry policy of
the project: what is tried again, how long between, and when it is enough.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import tenacity

from ray_judge.config import StrongConfig
from ray_judge.errors import EscalationError, PausedError, ProviderDown, StorageError
from ray_judge.escalation.books.accounts import comes_back
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.client import Kind, RequestFailed, StrongClient, suspect_model
from ray_judge.escalation.online.governor import PROVIDER_DOWN, Need, Permit
from ray_judge.escalation.online.limiter import Feedback, Signal
from ray_judge.escalation.pricing import (
    Price,
    input_token_bound,
    input_token_estimate,
    max_cost,
)
from ray_judge.escalation.question import StrongQuestion
from ray_judge.escalation.reading import counted, read_answer
from ray_judge.records import Answer, Outcome

BATCH = 16
"""Needs in one call to the governor: one durable lease covers them all."""
TRIES = 8
"""How often one question may fail in transit before its row is given up as `failed`."""
LOST_TRIES = 3
"""How often its answer may be lost after it was sent: each of those counts as billed in full."""
UNBILLED = {Kind.RATE_LIMIT: Signal.RATE_LIMITED, Kind.TRANSIENT: Signal.UNAVAILABLE}
MAY_BE_BILLED = (Kind.BROKEN, Kind.AMBIGUOUS)
"""Failures behind which there may be an answer that was computed: they count in full."""


class Treasurer(Protocol):
    """The governor as an actor sees it, near or far."""

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        """Wait for money and rate."""
        ...

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None:
        """Book what was spent and what was not used."""
        ...

    async def pause(self, reason: str) -> None:
        """Rest the whole run."""
        ...


@dataclass(frozen=True, slots=True)
class Slot:
    """Leave for one request: its place in a lease, its maximum, and when it may go."""

    lease: str
    number: int
    need: Need
    send_at: float
    """Seconds of the purse's clock."""


class Denied(Exception):
    """The money for a question cannot be had under a cap. Stays inside one actor."""

    def __init__(self, account: str | None) -> None:
        """Name what is short: `run:...` or `month:...`."""
        super().__init__(account)
        self.account = account


class Purse:
    """Turns the needs of many questions into few calls to the governor, and books costs."""

    def __init__(
        self,
        name: str,
        treasurer: Treasurer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty; the pumps run while there is something to do. `clock`: any zero."""
        self._name = name
        self._treasurer = treasurer
        self._clock = clock
        self._waiting: deque[tuple[Need, asyncio.Future[Slot]]] = deque()
        self._done: list[tuple[tuple[str, int, Decimal], Feedback]] = []
        self._unused: list[tuple[str, int]] = []
        self._pumping: asyncio.Task[None] | None = None
        self._booking: asyncio.Task[None] | None = None

    async def slot(self, need: Need) -> Slot:
        """Wait for leave to send one request. Raises Denied or PausedError."""
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append((need, future))
        if self._pumping is None or self._pumping.done():
            self._pumping = asyncio.ensure_future(self._pump())
        slot = await future
        await asyncio.sleep(max(0.0, slot.send_at - self._clock()))
        return slot

    def settle(self, slot: Slot, cost_usd: Decimal, feedback: Feedback) -> None:
        """Book a request that was sent."""
        self._done.append(((slot.lease, slot.number, cost_usd), feedback))
        self._book()

    def give_back(self, slot: Slot) -> None:
        """Return a slot under which nothing was sent, nor will be."""
        self._unused.append((slot.lease, slot.number))
        self._book()

    async def pause(self, reason: str) -> None:
        """Rest the whole run: no actor gets leave to send any more."""
        await self._treasurer.pause(reason)

    async def flush(self) -> None:
        """Return when everything settled so far is booked."""
        while self._done or self._unused or (self._booking and not self._booking.done()):
            self._book()
            if self._booking:
                await asyncio.shield(self._booking)

    async def _pump(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                permit = await self._treasurer.acquire(self._name, [need for need, _ in batch])
            except Exception as error:  # whatever ends the governor, nobody may wait for ever
                self._refuse([*batch, *self._waiting], error)
                self._waiting.clear()
                return
            self._hand_out(permit, batch)

    def _hand_out(self, permit: Permit, batch: list[tuple[Need, asyncio.Future[Slot]]]) -> None:
        now = self._clock()
        for number, (need, future) in enumerate(batch[: permit.slots]):
            if future.cancelled():
                self._unused.append((permit.lease_id, number))
                self._book()
            else:
                send_at = now + permit.send_after_s[number]
                future.set_result(Slot(permit.lease_id, number, need, send_at))
        rest = batch[permit.slots :]
        if permit.paused:
            self._refuse([*rest, *self._waiting], _pause(permit.paused))
            self._waiting.clear()
        elif permit.denied:
            self._refuse(rest[:1], Denied(permit.account))
            rest = rest[1:]
        if not permit.paused:
            self._waiting.extendleft(reversed(rest))

    def _refuse(
        self, waiting: Sequence[tuple[Need, asyncio.Future[Slot]]], error: BaseException
    ) -> None:
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)

    def _book(self) -> None:
        if self._booking is None or self._booking.done():
            self._booking = asyncio.ensure_future(self._send_books())

    async def _send_books(self) -> None:
        while self._done or self._unused:
            done, self._done = self._done, []
            unused, self._unused = self._unused, []
            await self._treasurer.settle(
                self._name, [item for item, _ in done], unused, [told for _, told in done]
            )


def _pause(reason: str) -> PausedError | ProviderDown:
    if reason != PROVIDER_DOWN:
        return PausedError(reason)
    return ProviderDown(
        "the strong judge's server did not answer for strong.give_up_after_s seconds: everything "
        "is kept, run again later"
    )


class _Tries:
    """When one question has failed often enough; 429 alone never is (the governor paces it)."""

    def __init__(self) -> None:
        self._transient = 0
        self._lost = 0

    def count(self, failure: RequestFailed) -> None:
        """Take note of one failure.

        A server that cannot be reached says nothing about the question: how long that is borne
        is for the governor (`strong.give_up_after_s`).
        """
        unreachable = failure.kind is Kind.TRANSIENT and failure.status is None
        self._transient += failure.kind in (Kind.TRANSIENT, Kind.BROKEN) and not unreachable
        self._lost += failure.kind is Kind.AMBIGUOUS

    def enough(self, _: tenacity.RetryCallState | None = None) -> bool:
        """Say whether the question is given up; also tenacity's `stop`."""
        return self._transient >= TRIES or self._lost >= LOST_TRIES


def _again(failure: BaseException) -> bool:
    kinds = (Kind.RATE_LIMIT, Kind.TRANSIENT, Kind.NO_SCHEMA, *MAY_BE_BILLED)
    return isinstance(failure, RequestFailed) and failure.kind in kinds


_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, max=20)


def _wait(state: tenacity.RetryCallState) -> float:
    """Back off when the server failed. A 429's own wait is the governor's, for all at once."""
    failure = state.outcome.exception() if state.outcome else None
    backs_off = isinstance(failure, RequestFailed) and failure.kind in (
        Kind.TRANSIENT,
        *MAY_BE_BILLED,
    )
    return _BACKOFF(state) if backs_off else 0.0


RETRY = tenacity.AsyncRetrying(retry=tenacity.retry_if_exception(_again), wait=_wait, reraise=True)
"""Transit failures, with backoff; each try has its own slot. Copied per question with `_Tries`."""


class Asker:
    """Asks questions one by one, many at a time."""

    def __init__(
        self,
        strong: StrongConfig,
        question: StrongQuestion,
        price: Price,
        client: StrongClient,
        purse: Purse,
        journal: JournalWriter,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the parts; nothing is opened here."""
        self._strong = strong
        self._question = question
        self._price = price
        self._client = client
        self._purse = purse
        self._journal = journal
        self._clock = clock
        self._sleep = sleep
        self._journal_failed: StorageError | None = None

    async def ask(self, key: str, body: Mapping[str, Any], unusable: int = 0) -> Outcome:
        """Ask one question to its end. The answer is in the journal when this returns.

        Where a cap leaves no money for it: DENIED_BUDGET, or PENDING until the next month begins.
        `unusable`: how many of its re-asks earlier sessions have used up.
        Raises PausedError (everything kept, ask again later), EscalationError (no question of
        this run can be answered) and StorageError (no answer can be kept: nothing more is sent).
        """
        need = self._need(body)
        most = self._strong.reasks
        for reask in range(min(unusable, most), most + 1):
            try:
                answer = await self._attempt(key, body, need, reask == most)
            except Denied as denied:
                return Outcome.PENDING if comes_back(denied.account) else Outcome.DENIED_BUDGET
            if answer.final:
                return answer.outcome
        raise AssertionError("the last attempt is final")

    def _need(self, body: Mapping[str, Any]) -> Need:
        messages, extra = body["messages"], body.get("response_format")
        output = self._strong.max_output_tokens
        bound = input_token_bound(messages, extra)
        most = max_cost(self._price, input_tokens=bound, output_tokens=output, tier="default")
        return Need(most, input_token_estimate(messages, extra) + output)

    async def _attempt(self, key: str, body: Mapping[str, Any], need: Need, last: bool) -> Answer:
        """Get one whole answer (or the row's permanent failure) and make it durable."""
        tries = _Tries()
        given_up: Answer | None = None
        try:
            async for attempt in RETRY.copy(stop=tries.enough, sleep=self._sleep):
                with attempt:
                    slot = await self._purse.slot(need)
                    if self._journal_failed is not None:
                        self._purse.give_back(slot)
                        raise self._journal_failed
                    sent_at = self._clock()
                    try:
                        reply = await self._client.send(body)
                    except RequestFailed as failure:
                        tries.count(failure)
                        given_up = await self._failed(key, slot, sent_at, failure, tries)
                        raise
        except RequestFailed:
            assert given_up is not None
            return given_up
        bound = input_token_bound(body["messages"], body.get("response_format"))
        answer = read_answer(
            self._question,
            self._price,
            key,
            reply,
            reply.usage or counted(reply, bound, self._strong.max_output_tokens),
            (slot.lease, slot.number),
            self._clock(),
            model=self._strong.model,
            last=last,
        )
        await self._keep(answer)
        # No count above the bound is believed: the whole run would wait for those tokens.
        counted_in = min(reply.usage.input_tokens, bound) if reply.usage else None
        told = Feedback(Signal.OK, reply.headers, sent_at, self._spare(need, counted_in))
        self._purse.settle(slot, answer.cost_usd, told)
        return answer

    def _spare(self, need: Need, input_tokens: int | None) -> int:
        """Tokens reserved and not used, where the provider says how many the prompt had."""
        if input_tokens is None:
            return 0
        return need.tokens - input_tokens - self._strong.max_output_tokens

    async def _keep(self, answer: Answer) -> None:
        """Make an answer durable. A journal that fails rests the whole run.

        What it cannot keep would be paid for again, and the lease of what it lost never comes back.
        """
        try:
            await self._journal.put(answer)
        except StorageError as error:
            if self._journal_failed is None:
                self._journal_failed = error
                await self._purse.pause(f"the journal cannot be written: {error}")
            raise

    async def _failed(
        self, key: str, slot: Slot, sent_at: float, failure: RequestFailed, tries: _Tries
    ) -> Answer | None:
        """Journal and book a failed request; give the answer that ends the question, if it does.

        Raises where no other question can fare better: PausedError, EscalationError.
        """
        lost = failure.kind in MAY_BE_BILLED
        final = failure.kind in (Kind.ROW, Kind.REFUSED) or tries.enough()
        answer = Answer(
            key=key,
            outcome=Outcome.REFUSED if failure.kind is Kind.REFUSED else Outcome.FAILED,
            verdict=None,
            # What may have been computed may have been billed: it counts in full.
            cost_usd=slot.need.max_cost_usd if lost else Decimal(0),
            usage=None,
            model=None,
            response_id=None,
            lease=slot.lease,
            slot=slot.number,
            at=self._clock(),
            final=final,
            error=failure.reason,
        )
        if lost or final:
            await self._keep(answer)
        signal = UNBILLED.get(failure.kind, Signal.UNAVAILABLE if lost else Signal.OK)
        self._purse.settle(slot, answer.cost_usd, Feedback(signal, failure.headers, sent_at))
        if failure.kind is Kind.BILLING:
            reason = f"the provider wants money first ({failure.reason}): mend it, run again"
            await self._purse.pause(reason)
            raise PausedError(reason)
        if failure.kind is Kind.RUN:
            reason = (
                f"the strong judge cannot be asked: {failure.reason}. Check the key in "
                f"{self._strong.api_key_env}, {suspect_model(self._strong)} and strong.base_url"
            )
            await self._purse.pause(reason)
            raise EscalationError(reason)
        return answer if final else None
