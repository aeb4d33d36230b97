"""The simulated provider, in place of `StrongClient`: it bills exactly, and is unreliable.

A request that has reached the provider is computed and billed whatever becomes of the sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_judge.escalation.answers import Reply
from ray_judge.escalation.books.ledger import LeaseSlot
from ray_judge.escalation.online.permits import Slot
from ray_judge.escalation.questions import Question
from ray_judge.failures import Bill, Kind, RequestFailed
from ray_judge.records import Usage

from .loop import PROCESS, Process, resolve
from .plan import INPUT_UNITS, MAX_OUTPUT_TOKENS, OUTPUT_UNITS

if TYPE_CHECKING:
    from .night import Night

QUOTA_BACK_AFTER_S = 20.0
SLOT: ContextVar[Slot] = ContextVar("slot")
"""What pays for the request that is sent next."""


@dataclass(eq=False, slots=True)
class Request:
    """One request on its way, as the simulator's books have it."""

    question: Question
    process: Process | None
    """Who waits for the answer; None: a batch has it, whoever comes for it."""
    run: str
    slot: LeaseSlot
    billed: int = 0
    """What it cost, in `UNITS`."""
    arrived_at: float | None = None
    """When the asker had its answer in hand."""
    usable: bool = False
    """It arrived whole and says something: the question need not be asked again."""
    lost: bool = False


class Provider:
    """Bills, answers, refuses."""

    def __init__(self, night: Night) -> None:
        self._loop, self._rng, self._plan = night.loop, night.rng, night.plan
        self._oracle, self._note = night.oracle, night.note
        self._outside = night.loop.context_of(Process("provider"))
        asked = [question for questions in night.plan.asks.values() for question in questions]
        self._by_body = {id(question.body): question for question in asked}
        self._room = night.plan.provider_rpm / 60.0
        self._room_at = 0.0
        self._answered = 0
        self._broke_at: float | None = None
        self._timeout_s = night.plan.strong.timeout_s

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """What `StrongClient.send` does, for whichever process calls it."""
        process, slot = PROCESS.get(), SLOT.get()
        question = self._by_body[id(body)]
        request = Request(question, process, process.run, (slot.lease, slot.number))
        self._oracle.sent(request)
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self.later(self._rng.uniform(0.0002, 0.004), self._arrive, request, answer)
        late = RequestFailed(Kind.AMBIGUOUS, "simulated: time-out")
        timer = self._loop.call_later(self._timeout_s, resolve, answer, late)
        try:
            reply = await answer
        except RequestFailed as failure:
            request.lost = failure.meaning.bill is Bill.MOST
            raise
        finally:
            timer.cancel()
        request.arrived_at = self._loop.now
        return reply

    async def close(self) -> None: ...

    def later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> None:
        self._loop.call_later(seconds, callback, *args, context=self._outside.copy())

    def tell(self, process: Any, answer: asyncio.Future[Any], what: Any) -> None:
        """Bring a reply or a failure to the sender, if it still lives and waits."""
        context, travel_s = self._loop.context_of(process), self._rng.uniform(0.0002, 0.004)
        self._loop.call_later(travel_s, resolve, answer, what, context=context)

    def _arrive(self, request: Request, answer: asyncio.Future[Reply]) -> None:
        refusal = self._refuse()
        if refusal is not None:
            self._note("provider", f"refuses {request.slot}: {refusal.reason}")
            self._oracle.not_billed(request)
            self.tell(request.process, answer, refusal)
            return
        latency_s = self._rng.uniform(0.01, 0.3)
        if self._rng.random() < self._plan.faults.late:
            latency_s += self._timeout_s * self._rng.uniform(0.5, 2.0)
        self.later(latency_s, self._complete, request, answer)

    def _refuse(self) -> RequestFailed | None:
        """A failure that is certain not to be billed, or none."""
        faults, now, draw = self._plan.faults, self._loop.now, self._rng.random()
        if self._out_of_quota(now):
            return RequestFailed(Kind.BILLING, "HTTP 429 insufficient_quota", status=429)
        per_s = self._plan.provider_rpm / 60.0
        self._room = min(max(1.0, per_s), self._room + (now - self._room_at) * per_s)
        self._room_at = now
        if self._room < 1.0 or draw < faults.rate_limit:
            headers = {"x-ratelimit-limit-requests": str(self._plan.provider_rpm)}
            if self._rng.random() < 0.5:
                headers["retry-after"] = self._rng.choice(("0", "1", "2.5"))
            return RequestFailed(Kind.RATE_LIMIT, "HTTP 429", status=429, headers=headers)
        self._room -= 1.0
        draw = self._rng.random()
        for share, kind in (
            (faults.server_error / 2, Kind.TRANSIENT),
            (faults.server_error / 2, Kind.BROKEN),
            (faults.reset_before, Kind.AMBIGUOUS),
            (faults.no_schema, Kind.NO_SCHEMA),
            (faults.row_refused, Kind.ROW),
        ):
            if draw < share:
                return RequestFailed(kind, f"simulated {kind}")
            draw -= share
        return None

    def _out_of_quota(self, now: float) -> bool:
        if self._plan.quota_after is None or self._answered < self._plan.quota_after:
            return False
        if self._broke_at is None:
            self._broke_at = now
        return now < self._broke_at + QUOTA_BACK_AFTER_S

    def _complete(self, request: Request, answer: asyncio.Future[Reply]) -> None:
        """The answer is computed: from here on it is paid for."""
        faults, draw = self._plan.faults, self._rng.random()
        what: Reply | RequestFailed = self.compute(request)
        if draw < faults.reset_after + faults.cut:
            request.lost = True
            kind = Kind.BROKEN if draw < faults.reset_after / 2 else Kind.AMBIGUOUS
            what = RequestFailed(kind, "simulated: lost")
        self.tell(request.process, answer, what)

    def compute(self, request: Request) -> Reply:
        """Compute the answer to a request, and bill it."""
        self._answered += 1
        reply, usage = self._reply(request.question.input_bound)
        request.billed = usage.input_tokens * INPUT_UNITS + usage.output_tokens * OUTPUT_UNITS
        request.usable = reply.refusal is None and reply.text is not None and "A" in reply.text
        self._note("provider", f"bills {request.slot} {request.billed}")
        self._oracle.billed_now(request)
        return reply

    def _reply(self, bound: int) -> tuple[Reply, Usage]:
        """An answer, and what is billed for it, which it may not say."""
        faults, rng = self._plan.faults, self._rng
        text: str | None = '{"verdict": "A"}'
        refusal, finish = None, "stop"
        draw = rng.random()
        if draw < faults.refusal:
            text, refusal = None, "I would rather not"
        elif draw < faults.refusal + faults.malformed:
            text, finish = rng.choice(
                (("", "stop"), ('{"verd', "length"), ('{"verdict": 7}', "stop"))
            )
        silent = rng.random() < faults.no_usage
        most = len(text or refusal or "") if silent else MAX_OUTPUT_TOKENS
        usage = Usage(bound, most)
        if not self._plan.dearest:
            usage = Usage(rng.randint(bound // 4, bound), rng.randint(0, most))
        told, number = None if silent else usage, f"r{self._answered}"
        return Reply(text, refusal, finish, told, "sim-1", number), usage
