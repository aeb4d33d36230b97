"""The batch courier: questions go out as files, at half the price, and come back within a day.

One batch is one lease whose slots are its requests. Each step is durable before the next:

    intent → lease → upload → creating → CREATE → submitted → ended → journal → ledger → read
    └──── given back ────┘└─ looked for ─┘└──────── read, or read again ────────┘

Whoever comes after a crash does with each batch what stands below its last durable step, so no
batch is created twice, none is forgotten, and no answer counts twice. What is not obvious about
that stands in docs/decisions/0020-batch-mode.md.

Why two processes cannot create one batch each: `creating` is written, and *then* the ledger makes
sure that it has no newer owner. A newer owner reads the records after its claim, so it sees
`creating` and looks for the batch; a process that has lost the books stops before the call, or
finds its file deleted. The books are owned only while there is something to book: a night's wait
keeps no other run from books that they share.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.errors import EscalationError, PausedError, RayJudgeError
from ray_judge.escalation.batch.first_questions import FirstQuestions
from ray_judge.escalation.batch.provider import QUEUE_FULL, Provider, View, lost_batch_error
from ray_judge.escalation.batch.queue import BatchQueue, Request
from ray_judge.escalation.batch.results import BatchReading, ResultReader, read_results
from ray_judge.escalation.books.batches import BatchRecord, Stage, load, path_of, save
from ray_judge.escalation.books.books import Books, Claim
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.client import BatchClient
from ray_judge.escalation.online.governor import Clock
from ray_judge.escalation.online.limiter import FIRST
from ray_judge.escalation.processes import unique_name
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.escalation.session import POLL_S, Report, Session
from ray_judge.failures import RequestFailed, run_error
from ray_judge.records import Chunk, Outcome

STRIKES = 3
"""So many batches in a row that the provider refused as a whole end the run."""


class BatchCourier:
    """Asks the questions of a session in batches. After a crash another one goes on."""

    poll_s = POLL_S

    def __init__(
        self,
        config: RunConfig,
        books: Books,
        maker: QuestionMaker,
        chunks: Mapping[str, Chunk],
        client: BatchClient,
        clock: Clock,
        report: Report,
        first: FirstQuestions,
        make_name: Callable[[], str] = unique_name,
    ) -> None:
        """Own nothing yet. `make_name` gives a new name each time, as `unique_name` does."""
        self._first = first
        self._make_name = make_name
        self._strong, self._books, self._clock, self._report = config.strong, books, clock, report
        self._provider = Provider(config.strong, client, clock, report)
        self._queue = BatchQueue(
            config.strong.batch, lambda questions: maker.bodies(questions, chunks)
        )
        self._results = ResultReader(maker)
        self._ledger: Ledger | None = None
        self._writer: JournalWriter | None = None
        self._pending: dict[str, BatchRecord] = {}
        self._asked: dict[str, set[str]] = {}
        """Pending batch → the keys of its questions."""
        self._questions: dict[str, Question] = {}
        self._completed: Counter[str] = Counter()
        self._ended_at: dict[str, float] = {}
        self._strikes = 0
        self._full = False
        """No room, or no money, until a pending batch has ended."""
        self._stop: RayJudgeError | None = None

    # --- what the session calls ---

    async def open(self) -> Claim:
        """Claim the books, and go on with this run's batches as their records say.

        The records are read after the claim: nobody who owned the books before can add one now.
        """
        ledger, claim = await asyncio.to_thread(self._books.claim, self._make_name())
        self._ledger = ledger
        asked: dict[str, set[str]] = {}
        for key, batch in claim.batched.items():
            asked.setdefault(batch, set()).add(key)
        self._pending, self._asked = {}, asked
        others = dict(claim.batched)
        records = await asyncio.to_thread(load, self._books.storage, self._books.run)
        for record in records:
            self._queue.words |= record.words or record.refused
            for key in asked.get(record.id, ()):
                others.pop(key, None)
            ledger.expect(record.actor)
            if record.stage is Stage.SUBMITTED:
                self._pending[record.id] = record
            elif record.stage is Stage.CREATING:
                await self._find(record)
            elif record.stage is Stage.INTENT:
                await self._abandon(record)
        # Who made a batch knew whether the server takes `response_format`.
        self._first.proven |= claim.proven and bool(records)
        self._first.answered = claim.proven
        return replace(claim, batched=others)

    async def carry(self, session: Session) -> None:
        """Ask all questions, once all are known. Raises PausedError with batches pending."""
        while await session.take(math.inf):
            await self._clock.sleep(POLL_S)
        self._questions = {**session.waiting, **session.aside}
        if not self._questions and not await self._has_pending():
            return  # nothing to ask: no lease, no owner, nothing changed
        begun = self._clock.now()
        await session.own()
        while True:
            session.check()
            await self._collect(session)
            await self._submit(session)
            if not self._pending and not session.waiting and not await session.recheck():
                return
            rest_s = begun + self._strong.batch.wait_s - self._clock.now()
            if rest_s <= 0:
                raise PausedError(f"{self._describe_pending(session)}; run again to go on")
            await session.release()
            await self._show(session)
            until = self._clock.now() + min(self._strong.batch.poll_s, rest_s)
            while not session.stopping and (left_s := until - self._clock.now()) > 0:
                await self._clock.sleep(min(self.poll_s, left_s))

    async def close(self) -> None:
        """Write the ledger's final snapshot, and end the journal's log."""
        ledger, self._ledger = self._ledger, None
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                await asyncio.to_thread(writer.close)
        finally:
            if ledger is not None:
                await asyncio.to_thread(ledger.close)

    async def kill(self) -> None:
        """Forget the books. What they do not know yet is found by whoever claims them next."""
        self._ledger = self._writer = None
        await self._provider.close()

    # --- continuing what another process began ---

    async def _has_pending(self) -> bool:
        records = await asyncio.to_thread(load, self._books.storage, self._books.run)
        return any(not record.over for record in records)

    async def _find(self, record: BatchRecord) -> bool:
        """Look for a batch whose creation nobody saw; False: there is none, and never will be."""
        try:
            batch = await self._provider.find(record)
        except RequestFailed as failure:  # still unknown: its money stays where it is
            raise run_error(failure, self._strong) from None
        if batch is None:
            await self._abandon(record)
            return False
        await self._wait_for(record, batch)
        return True

    async def _wait_for(self, record: BatchRecord, batch: str) -> None:
        self._pending[record.id] = await self._step(record, Stage.SUBMITTED, batch=batch)

    async def _abandon(self, record: BatchRecord) -> None:
        """Close the record of a batch of which nothing ran, nor will; its money comes back."""
        ledger = self._owned()
        for slot in ledger.held(record.actor):
            ledger.release(slot.lease, [slot.slot])
        await asyncio.to_thread(ledger.commit)
        await self._step(record, Stage.ABANDONED)

    async def _step(self, record: BatchRecord, stage: Stage, **found: Any) -> BatchRecord:
        record = replace(record, stage=stage, **found)
        await asyncio.to_thread(save, self._books.storage, record)
        if record.over:
            self._pending.pop(record.id, None)
            self._asked.pop(record.id, None)
        return record

    def _owned(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    # --- sending ---

    async def _submit(self, session: Session) -> None:
        """Send what money, limits and the provider's queue have room for."""
        while (free := self._free(session)) and not self._full:
            if not self._queue.is_open(self._clock.now()):
                return
            await session.own()
            ledger = self._owned()
            if not self._first.proven:
                if self._pending:
                    return
                await self._first.ask(session, ledger)
                session.check()
                self._queue.words |= self._first.words
            session.deny(ledger.best_usd())
            free = self._free(session)
            fitting = ledger.fitting([question.max_cost_usd for question in free])
            if free and not fitting and not self._pending:
                for question in free:
                    if not ledger.fitting([question.max_cost_usd]):  # this month's cap
                        session.outcomes[question.key] = Outcome.PENDING
                        del session.waiting[question.key]
                continue
            queued = sum(record.tokens for record in self._pending.values())
            requests = await asyncio.to_thread(
                self._queue.take, free[:fitting], queued if self._pending else None
            )
            if requests:
                await self._send(session, requests)
            else:
                self._full = bool(free)

    def _free(self, session: Session) -> list[Question]:
        """What waits and is in no pending batch."""
        busy = set().union(*(self._asked.get(batch, set()) for batch in self._pending))
        return [question for key, question in session.waiting.items() if key not in busy]

    async def _send(self, session: Session, requests: Sequence[Request]) -> None:
        """Submit one batch. Where it was not created its questions still wait."""
        record = BatchRecord(
            id=f"rj-{self._make_name().partition('@')[0]}",
            run=self._books.run,
            requests=len(requests),
            tokens=sum(request.question.tokens for request in requests),
            at=self._clock.now(),
            words=self._queue.words,
        )
        await self._step(record, Stage.INTENT)
        ledger, questions = self._owned(), [request.question for request in requests]
        costs = [(question.key, question.max_cost_usd) for question in questions]
        lease = await asyncio.to_thread(ledger.grant, record.actor, costs)
        if lease.slots < len(requests):  # a month began between looking and granting
            await self._abandon(record)
            return
        self._asked[record.id] = {question.key for question in questions}
        try:
            content = b"".join(request.line for request in requests)
            file = await self._provider.upload(record, content)
            record = await self._step(record, Stage.CREATING, file=file)
            batch = await self._provider.create(record, lambda: asyncio.to_thread(ledger.commit))
        except RequestFailed as failure:
            await self._abandon(record)
            if failure.code != QUEUE_FULL:
                raise run_error(failure, self._strong) from None
            self._queue_is_full(record)
            return
        if batch is not None:
            await self._wait_for(record, batch)
        elif not await self._find(record):
            self._strike("the provider did not answer their creation, and does not list them")

    def _queue_is_full(self, record: BatchRecord) -> None:
        others = sum(other.tokens for other in self._pending.values())
        self._queue.shrink(record.tokens + others, self._clock.now())

    def _strike(self, why: str) -> None:
        self._strikes += 1
        if self._strikes >= STRIKES:
            raise EscalationError(f"{STRIKES} batches in a row were refused: {why}")

    # --- reading ---

    async def _collect(self, session: Session) -> None:
        """Read every batch that has ended; only then say what one of them found for all."""
        for record in list(self._pending.values()):
            try:
                view = await self._provider.look(str(record.batch))
                self._completed[record.id] = view.completed or 0
                if self._is_ready(record, view):
                    await session.own()
                    if record.id in self._pending:
                        await self._read(session, record, view)
            except RequestFailed as failure:
                file = f"{self._books.storage.uri}/{path_of(record.id)}"
                raise lost_batch_error(failure, self._strong, record.batch, file) from None
        if self._stop is not None:
            raise self._stop

    def _is_ready(self, record: BatchRecord, view: View) -> bool:
        """Whether the batch has ended, and its answers can be expected to be there."""
        if view.status not in ("validating", "failed"):
            self._strikes = 0
            self._queue.accept()
        if not view.ended:
            return False
        ended_at = view.ended_at or self._ended_at.setdefault(record.id, self._clock.now())
        late = self._clock.now() - ended_at >= self._strong.batch.patience_s
        return late or not view.completed or view.output_file is not None

    async def _read(self, session: Session, record: BatchRecord, view: View) -> None:
        """Take an ended batch to the journal and the ledger; what it lacks waits again.

        Slots that an earlier reading of it, before a crash, brought into the journal were settled
        when the books were claimed: only the others are still held.
        """
        self._full = False
        if view.nothing_ran:
            await self._abandon(record)
            if QUEUE_FULL in view.codes:
                self._queue_is_full(record)
            else:
                self._strike(", ".join(view.codes) or "no reason given")
            return
        results = read_results(*await self._provider.results(view))
        ledger = self._owned()
        reading = self._results.read(
            ledger.held(record.actor), self._questions, results, session.in_vain,
            billed=view.billed, at=self._clock.now(), words=record.words,
        )  # fmt: skip
        await asyncio.to_thread(self._keep, reading.answers)
        for answer in reading.answers:
            ledger.settle(answer.lease, answer.slot, answer.cost_usd)
        for slot in reading.free:
            ledger.release(slot.lease, [slot.slot])
        await asyncio.to_thread(ledger.commit)
        usd, said = ledger.excess.usd, ledger.excess.said
        self._report({"excess_usd": usd, "excess_said": said})
        await self._step(record, Stage.READ, refused=reading.words)
        self._queue.words |= reading.words
        session.settle(reading.ended)
        if self._stop is None:
            self._stop = self._judge(reading)
        await session.look()

    def _judge(self, reading: BatchReading) -> RayJudgeError | None:
        """What a batch says of every question of the run."""
        if reading.stop is not None:
            return run_error(reading.stop, self._strong)
        useless = Counter(reading.useless)
        if reading.usable or useless.total() < FIRST:
            return None
        ((why, _),) = useless.most_common(1)
        return EscalationError(f"no answer of a batch of {useless.total()} can be used: {why}")

    def _keep(self, answers: Sequence[Any]) -> None:
        if self._writer is None:
            self._writer = self._books.writer(f"batch-{self._make_name()}")
        for answer in answers:
            self._writer.append(answer)
        self._writer.sync()

    # --- telling ---

    async def _show(self, session: Session) -> None:
        settled, held = await asyncio.to_thread(self._books.recorded)
        self._report(
            {
                "spent_usd": settled,
                "open_usd": held,
                "cap_usd": self._books.cap_usd,
                **session.figures(),
                "waits": self._describe_pending(session),
                "in_batches": sum(record.requests for record in self._pending.values()),
            }
        )

    def _describe_pending(self, session: Session) -> str:
        total = sum(record.requests for record in self._pending.values())
        done = sum(self._completed[batch] for batch in self._pending)
        left = len(self._free(session))
        more = f", {left} questions wait for a batch" if left else ""
        return f"batch pending: {done} of {total} requests done{more}"
