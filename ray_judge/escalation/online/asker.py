"""Asks questions under permits: lease, send, journal, settle, in this order and no other.

A plain asyncio class. What is tried again, and how often, follows from `failures.MEANING`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal

import tenacity

from ray_judge.errors import PausedError, StorageError
from ray_judge.escalation.answers import Reply, failed_answer, read_answer
from ray_judge.escalation.books.journal import InVain, JournalWriter
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.limiter import LONGEST_BACKOFF_S, Feedback
from ray_judge.escalation.online.permits import Denied, Need, Permits, Slot
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.failures import (
    DENIALS,
    OF_A_ROW,
    TRIES,
    Bill,
    Fault,
    Kind,
    RequestFailed,
    Signal,
    run_error,
)  # fmt: skip
from ray_judge.records import Answer, Outcome

log = logging.getLogger(__name__)


class _Tries:
    """When one question has failed often enough; kinds with the same limit count together."""

    def __init__(self, past: InVain) -> None:
        self.past = past
        self._failures: Counter[int] = Counter()
        self._refused = 0
        self._first: Counter[Signal] = Counter()
        self._last: Counter[Signal] = Counter()
        self._compared = 0
        self._meanwhile: Counter[Signal] = Counter()
        """What came between its refusals, where an answer did."""
        self._alone, self._given_up = 0, False

    def count(self, failure: RequestFailed, seen: Counter[Signal]) -> None:
        """Count a failure; `seen`: what came of all requests by then.

        How long a server that cannot be reached is borne is the governor's decision. A question
        that meets a rate limit again and again, while others do not, is too large for it. Where
        the others were before, the limit may be another by now: it is given up for this session.
        """
        if failure.meaning.tries and not failure.unreachable:
            self._failures[failure.meaning.tries] += 1
        if failure.kind is Kind.RATE_LIMIT:
            self._first = self._first or seen.copy()
            now, since = seen - (self._last or seen), seen - self._first
            self._last = seen.copy()
            refused = since[Signal.RATE_LIMITED] - self._refused + 1
            self._refused += 1
            if now[Signal.OK]:
                self._compared += 1
                self._meanwhile += now
            others = self._meanwhile[Signal.RATE_LIMITED] - self._compared + 1
            if _share(others, self._meanwhile[Signal.OK]) ** self._compared < UNLIKELY:
                failure.kind = Kind.ROW
            in_all = _share(refused, since[Signal.OK]) ** self._refused
            self._alone = 0 if now[Signal.OK] else self._alone + 1
            self._given_up = in_all < UNLIKELY and self._alone >= TRIES

    def enough(self, _: tenacity.RetryCallState | None = None) -> bool:
        tried = any(count >= most for most, count in self._failures.items())
        return tried or self._given_up


def _share(refused: int, taken: int) -> float:
    return refused / (refused + taken)


def _again(failure: BaseException) -> bool:
    return isinstance(failure, RequestFailed) and bool(failure.meaning.again)


_WAITS = {
    Signal.UNAVAILABLE: tenacity.wait_random_exponential(multiplier=0.25, max=LONGEST_BACKOFF_S),
    # A 429's own wait is the governor's, for all at once, who are not to keep step behind it.
    Signal.RATE_LIMITED: tenacity.wait_random(0, 0.5),
    Signal.OK: tenacity.wait_none(),
}


def _wait(state: tenacity.RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, RequestFailed)
    return _WAITS[failure.meaning.signal](state)


UNLIKELY = 1e-6
"""A question that has met rate limits this improbably, as others fare, is too large for them."""
RETRY = tenacity.AsyncRetrying(retry=tenacity.retry_if_exception(_again), wait=_wait, reraise=True)
"""Copied per question with its `_Tries`; each try has its own slot."""


class Asker:
    """Asks questions one by one, many at a time."""

    def __init__(
        self,
        maker: QuestionMaker,
        client: StrongClient,
        permits: Permits,
        journal: JournalWriter,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock`: Unix seconds; `sleep`: between the tries of a question."""
        self._maker = maker
        self._strong = maker.strong
        self._client = client
        self._permits = permits
        self._journal = journal
        self._clock = clock
        self._sleep = sleep
        self._journal_failed: StorageError | None = None
        self._seen: Counter[Signal] = Counter()
        """What came of all requests."""
        self._denials = 0
        """Of questions in a row."""
        self._doubtful: list[tuple[Answer, bool]] = []
        """Of questions that the server did not take since its last answer, and whether it denied
        them: theirs is the fault, unless they are many, or it gives no answer any more."""

    async def ask(self, question: Question, past: InVain) -> Outcome:
        """Ask one question to its end. The answer is in the journal when this returns.

        Where a cap leaves no money for it: DENIED_BUDGET, or PENDING until the next month begins.
        `past`: how often earlier sessions asked it in vain.
        Raises PausedError (everything kept, ask again later), EscalationError (no question of
        this run can be answered) and StorageError (no answer can be kept: nothing more is sent).
        """
        most = self._strong.reasks
        for reask in range(min(past.unusable, most), most + 1):
            try:
                answer = await self._attempt(question, past, reask == most)
            except Denied as denied:
                return Outcome.PENDING if denied.cap == "month" else Outcome.DENIED_BUDGET
            if answer.final or answer.usage is None:
                break
        return answer.outcome

    async def close(self) -> None:
        """Mark this actor's log as ended and close the connections.

        A log that cannot be ended loses nothing: it is read as that of a process that died.
        """
        try:
            await asyncio.to_thread(self._journal.close)
        except StorageError as error:
            log.warning("the journal's log could not be ended: %s", error)
        await self._client.close()

    async def _attempt(self, question: Question, past: InVain, last: bool) -> Answer:
        """Get one whole answer (or the row's permanent failure) and make it durable."""
        assert question.body is not None
        tokens = question.tokens + self._strong.max_output_tokens
        need, tries = Need(question.key, question.max_cost_usd, tokens), _Tries(past)
        given_up: Answer | None = None
        try:
            async for attempt in RETRY.copy(stop=tries.enough, sleep=self._sleep):
                with attempt:
                    slot = await self._permits.slot(need)
                    if self._journal_failed is not None:
                        self._permits.give_back(slot)
                        raise self._journal_failed
                    sent_at = self._clock()
                    try:
                        reply = await self._client.send(question.body)
                    except RequestFailed as failure:
                        self._seen[failure.meaning.signal] += 1
                        tries.count(failure, self._seen)
                        given_up = await self._failed(slot, sent_at, failure, tries)
                        raise
        except RequestFailed:
            assert given_up is not None
            return given_up
        return await self._answered(question, slot, sent_at, reply, last)

    async def _answered(
        self, question: Question, slot: Slot, sent_at: float, reply: Reply, last: bool
    ) -> Answer:
        bound = question.input_bound
        place, at = (slot.lease, slot.number), self._clock()
        # Until the server has given a verdict nobody knows whether the fault is the question's.
        last = last and slot.proven
        answer = read_answer(self._maker, question.key, bound, reply, place, at, last=last)
        await self._keep(answer)
        await self.keep_doubtful(sent_at)
        self._seen[Signal.OK] += 1
        self._denials = 0
        spare = 0
        if reply.usage is not None:
            # No count above the bound is believed: the whole run would wait for those tokens.
            spare = question.tokens - min(reply.usage.input_tokens, bound)
        usable = answer.verdict is not None
        told = Feedback(Signal.OK, reply.headers, sent_at, spare, usable, answer.error or "")
        self._permits.settle(slot, answer.cost_usd, told)
        return answer

    async def keep_doubtful(self, answered: float | None = None, *, sound: bool = True) -> None:
        """Make durable which questions the server did not take.

        `answered`: when a request was sent that it took; None: there are no more. Unless `sound`,
        nobody knows whose fault it was.
        """
        ours = [one for one in self._doubtful if answered is None or one[0].at <= answered]
        self._doubtful = [one for one in self._doubtful if one not in ours]
        sound = sound and (answered is not None or len(ours) < DENIALS)
        for answer, denied in ours:
            surely = sound and not (denied and answered is None)  # the key may be revoked
            await self._keep(replace(answer, final=answer.final and surely))

    async def _keep(self, answer: Answer) -> None:
        """Make an answer durable. A journal that fails rests the whole run.

        What it cannot keep would be paid for again, and the lease of what it lost never comes back.
        """
        try:
            await self._journal.put(answer)
        except StorageError as error:
            if self._journal_failed is None:
                self._journal_failed = error
                await self._permits.pause(PausedError(f"the journal cannot be written: {error}"))
            raise

    async def _failed(
        self, slot: Slot, sent_at: float, failure: RequestFailed, tries: _Tries
    ) -> Answer | None:
        """Journal and book a failed request; give the answer that ends the question, if it does.

        Raises where no other question can fare better: PausedError, EscalationError.
        """
        again_some_day = failure.status in (401, 404) or failure.kind is Kind.PARAMETER
        denied = failure.kind in OF_A_ROW and (slot.proven or failure.status == 403)  # moderated?
        if denied:
            known = slot.proven and tries.past.not_run  # was denied before: it says nothing new
            self._denials += not known
            if self._denials < DENIALS:
                failure.kind = OF_A_ROW[failure.kind]
        meaning = failure.meaning
        of_question = meaning.fault is Fault.QUESTION
        over = of_question or tries.enough()
        final = of_question and slot.proven and not again_some_day
        billed = meaning.bill is Bill.MOST
        cost_usd = slot.max_cost_usd if billed else Decimal(0)
        place, at = (slot.lease, slot.number), self._clock()
        key, kind, reason = slot.need.key, failure.kind, failure.reason
        answer = failed_answer(key, kind, reason, cost_usd, place, at, final=final)
        if of_question:
            self._doubtful.append((answer, denied))
        elif billed or over:
            await self._keep(answer)
        in_vain = of_question or kind in (Kind.AMBIGUOUS, Kind.NO_SCHEMA)
        usable = False if in_vain and not failure.surely_of_row else None
        told = Feedback(meaning.signal, failure.headers, sent_at, usable=usable, why=reason)
        self._permits.settle(slot, cost_usd, told)
        if meaning.fault is Fault.RUN and not meaning.again:
            error = run_error(failure, self._strong)
            await self._permits.pause(error)
            raise error
        return answer if over else None
