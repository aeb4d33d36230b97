"""One run's session with the strong judge: which questions are asked, and when it is over.

A session takes questions from a source, claims the books, and hands the questions to a courier,
online or batch. It alone decides which question is asked: not one that is answered, not one that a
pending batch asks, not one that a predecessor's process may still have in flight. It has no Ray:
the simulator runs this very class.

Whatever dies under a session (a process, a machine) makes it begin anew as after a crash of the
whole run: claim, recover, read the journal. There is one way of recovering, and it is used every
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from ray_judge.errors import EscalationError, PausedError, RayJudgeError, RunLockedError, Stopped
from ray_judge.escalation.books.books import Books, Claim, InFlight
from ray_judge.escalation.books.journal import InVain
from ray_judge.escalation.online.governor import Clock
from ray_judge.escalation.online.permits import denying_cap
from ray_judge.escalation.processes import ProcessDied
from ray_judge.escalation.questions import Question
from ray_judge.records import Outcome

BARREN_SESSIONS = 3
"""So many times in a row that processes died without a single new answer end the run."""
ENOUGH = 4096
"""With so many questions waiting no more are taken from the source."""
POLL_S = 0.25
LOCKED_POLL_S = 2.0
IDLE_S = 5.0
"""A run that shares its books lets go of them after so long without a question."""
STOPPED = "stopped: everything is kept, the same command continues"
LONG_LOST_S = 3600.0
"""What was lost so long before a claim, by whatever clock, is not in flight any more."""

log = logging.getLogger(__name__)
Report = Callable[[Mapping[str, Any]], None]


class QuestionSource(Protocol):
    """Where questions come from. `take` and `stop` may block, and are called in a thread."""

    def take(self) -> list[Question] | None:
        """The next questions, the first to be asked first.

        Empty: none now. None: no more will come. Raises RayJudgeError.
        """

    def check(self) -> None:
        """Raise the error that ended the source, as soon as it is known."""

    def stop(self) -> None:
        """Make no more."""


class Courier(Protocol):
    """What brings questions to the provider and answers into the journal."""

    async def open(self) -> Claim:
        """Become the owner of the books (`Books.claim`). Raises RayJudgeError."""

    async def carry(self, session: Session) -> None:
        """Ask all that the session has to ask. Raises RayJudgeError."""

    async def close(self) -> None:
        """Let go of the books in good order. Raises RayJudgeError."""

    async def kill(self) -> None:
        """Let nobody of this session send any more."""


class Session:
    """Asks every question of a source that is not answered yet."""

    def __init__(
        self,
        books: Books,
        courier: Courier,
        source: QuestionSource,
        clock: Clock,
        report: Report,
        *,
        quiet_s: float,
        patience_s: float,
        is_dead: Callable[[str], bool],
        before_asking: Callable[[], None] = lambda: None,
    ) -> None:
        """Own nothing yet.

        `quiet_s`: so long after a claim everything that earlier owners let out has come back.
        `patience_s`: how long to wait for books that another run holds. `is_dead`: whether the
        process of this name (`processes.identity`) surely has ended. `before_asking` is called, in
        a thread, before anything is asked that is not on file.
        """
        self._books, self._courier, self._source = books, courier, source
        self._clock, self.report = clock, report
        self._quiet_s, self._patience_s, self._is_dead = quiet_s, patience_s, is_dead
        self._before_asking = before_asking
        self._lock = contextlib.ExitStack()
        self._owner = False
        self._answered: set[str] = set()
        self._flying: Mapping[str, InFlight] = {}
        self._in_flight: set[str] = set()
        self._back_at: dict[str, float] = {}
        """Actor of an earlier owner → when all that it sent has come back, Unix seconds."""
        self._ended = False
        self._known: set[str] = set()
        self.waiting: dict[str, Question] = {}
        """What is to be asked now, in the order of asking."""
        self.aside: dict[str, Question] = {}
        """What is asked by a pending batch, or may be in flight."""
        self.batched: dict[str, str] = {}
        """Question key → the pending batch that asks it, of another run or another mode."""
        self.in_vain: Mapping[str, InVain] = {}
        self.outcomes: dict[str, Outcome] = {}
        """Of questions without an answer: DENIED_BUDGET, or PENDING until the next month."""
        self.denied = 0
        """How many of them are DENIED_BUDGET."""
        self._done = 0
        self.stopping = False
        """Nothing new is asked any more; what is in flight is waited for."""

    async def run(self) -> None:
        """Ask until every question is answered or denied.

        Raises PausedError with everything kept, EscalationError, StorageError, CorruptedError.
        """
        barren, before = 0, -1
        try:
            while True:
                await self.look()
                barren = barren + 1 if len(self._answered) == before else 0
                before = len(self._answered)
                try:
                    await self._courier.carry(self)
                    break
                except ProcessDied as died:
                    log.warning("%s: the session begins again from the journal", died)
                    if barren >= BARREN_SESSIONS:
                        raise EscalationError(f"phase B's processes keep dying: {died}") from None
                    await self._abandon()
            await self.release()
        except RayJudgeError:
            with contextlib.suppress(RayJudgeError):  # the first error is the one to be told
                await self.release()
            raise
        finally:
            await asyncio.to_thread(self._source.stop)
            await self._abandon()
        left = sum(outcome is Outcome.PENDING for outcome in self.outcomes.values())
        if left:
            raise self._books.month_is_full(left)
        if self.aside:
            raise self._books.asked_elsewhere({key: self.batched[key] for key in self.aside})

    def stop(self) -> None:
        """End soon, in good order: `run` raises Stopped then."""
        self.stopping = True

    def check(self) -> None:
        """Raise Stopped where this session was told to stop."""
        if self.stopping:
            raise Stopped(STOPPED)

    # --- owning the books ---

    async def own(self) -> None:
        """Own the books: lock, claim, recover, read the journal, in this order."""
        if self._owner:
            return
        await self._wait_for_lock()
        await asyncio.to_thread(self._before_asking)
        self.report({"waits": "the books are read, and the processes of phase B start"})
        claim = await self._courier.open()
        self._owner = True
        now = self._clock.now()
        self._flying = {
            key: one for key, one in claim.in_flight.items() if one.lost_at > now - LONG_LOST_S
        }
        for one in self._flying.values():
            self._back_at.setdefault(one.actor, now + self._quiet_s)
        self.batched = dict(claim.batched)
        await self.look()
        if not claim.proven:  # what failed the last time may be alone in that: others come first
            fresh = sorted(self.waiting, key=self.in_vain.__contains__)
            self.waiting = {key: self.waiting[key] for key in fresh}

    async def release(self) -> None:
        """Let go of the books, for other runs that share them."""
        owner, self._owner = self._owner, False
        try:
            if owner:
                await self._courier.close()
        finally:
            self._lock.close()

    async def _abandon(self) -> None:
        self._owner = False
        await self._courier.kill()
        self._lock.close()

    async def _wait_for_lock(self) -> None:
        until = self._clock.now() + self._patience_s
        while True:
            try:
                await asyncio.to_thread(self._lock.enter_context, self._books.locked())
            except RunLockedError as error:
                if self._clock.now() >= until:
                    raise PausedError(
                        f"{error.message}, for longer than strong.give_up_after_s: everything is "
                        "kept, run again later",
                        books=self._books.storage.uri,
                    ) from None
                self.check()
                self.report({"waits": error.message})
                await self._clock.sleep(LOCKED_POLL_S)
                self._source.check()
            else:
                return

    # --- which questions ---

    async def take(self, enough: float = ENOUGH) -> bool:
        """Take more questions from the source; False when no more will ever come.

        Raises Stopped.
        """
        self.check()
        while not self._ended and len(self.waiting) < enough:
            questions = await asyncio.to_thread(self._source.take)
            if questions is None:
                self._ended = True
            elif not questions:
                break
            else:
                self.put(self._unknown(questions))
        return not self._ended

    def _unknown(self, questions: Iterable[Question]) -> list[Question]:
        """Drop questions that came before: identical rows are asked once."""
        new = {q.key: q for q in questions if q.key not in self._known}
        self._known.update(new)
        return list(new.values())

    def put(self, questions: Iterable[Question]) -> None:
        """Let questions wait (again), or lay them aside, or forget those that are answered."""
        for question in questions:
            key = question.key
            if key in self._answered or key in self.outcomes:
                self._done += key in self._answered
                continue
            if not self._books.cap_usd:  # grants nothing, not even what is free
                self._leave(key, Outcome.DENIED_BUDGET)
                continue
            there = self.aside if self._is_elsewhere(key) else self.waiting
            there[key] = question

    def pop(self, most: int) -> list[Question]:
        keys = [key for key, _ in zip(self.waiting, range(most), strict=False)]
        return [self.waiting.pop(key) for key in keys]

    def deny(self, best_usd: Mapping[str, Decimal]) -> None:
        """Deny, at once, what no lease can ever cover; see `Ledger.best_usd`."""
        for key, question in list(self.waiting.items()):
            cap = denying_cap(question.max_cost_usd, best_usd)
            if cap is not None:
                self._leave(key, Outcome.DENIED_BUDGET if cap == "run" else Outcome.PENDING)
                del self.waiting[key]

    def _leave(self, key: str, outcome: Outcome) -> None:
        self.outcomes[key] = outcome
        self.denied += outcome is Outcome.DENIED_BUDGET

    def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        """Keep what became of questions; the others' answers are in the journal."""
        for key, outcome in outcomes.items():
            self.waiting.pop(key, None)
            if outcome in (Outcome.DENIED_BUDGET, Outcome.PENDING):
                self._leave(key, outcome)
            else:
                self._answered.add(key)
                self._done += 1

    def figures(self) -> dict[str, int]:
        return {"questions": len(self._known), "answered": self._done, "denied": self.denied}

    async def recheck(self) -> bool:
        """Whether something may still be in flight; what has come back, or never will, is asked."""
        flying = self._in_flight.intersection(self.aside)
        if not flying:
            return False
        actors = {self._flying[key].actor for key in flying}
        left_s = max(self._back_at[actor] for actor in actors) - self._clock.now()
        self.report(
            {"waits": f"{len(flying)} questions may be in flight: asked within {left_s:.0f} s"}
        )
        if all(map(self._is_over, actors)):
            await self.look()
        return bool(self.waiting) or not self._in_flight.isdisjoint(self.aside)

    async def look(self) -> None:
        """Read the journal, and sort all questions by what is on file.

        Who can write no more is found out first.
        """
        over = set(filter(self._is_over, {one.actor for one in self._flying.values()}))
        journal = await asyncio.to_thread(self._books.journal)
        self._answered, self.in_vain = journal.answered, journal.in_vain()
        self._in_flight = {key for key, one in self._flying.items() if one.actor not in over}
        questions = [*self.waiting.values(), *self.aside.values()]
        self.waiting, self.aside = {}, {}
        self.put(questions)

    def _is_over(self, actor: str) -> bool:
        """Whether all that an actor of an earlier owner sent has come back, or never will."""
        return self._clock.now() >= self._back_at[actor] or self._is_dead(actor)

    def _is_elsewhere(self, key: str) -> bool:
        return key in self._in_flight or key in self.batched
