"""The driver of a run, as a simulated process: what `escalate.py` does through Ray.

Kept as close to `escalate.py` as can be; read the two side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_judge.errors import EscalationError, RayJudgeError
from ray_judge.escalation.books.accounts import Accounts
from ray_judge.escalation.books.journal import Journal, compact, load_journal
from ray_judge.records import Outcome

from .hosts import AskerHost, GovernorDied, GovernorHost, ProcessDied, call
from .loop import Process
from .oracle import LastWord
from .plan import Question, set_of

if TYPE_CHECKING:
    from .night import Night

BARREN_SESSIONS = 3
"""As `escalate.BARREN_SESSIONS`; importing it would import Ray."""


class MonthIsFull(Exception):
    """As `books.month_is_full`, with what became of the questions."""

    def __init__(self, outcomes: Mapping[str, Outcome], accounts: Accounts, last: LastWord) -> None:
        """Keep them for the night, and the balances that the governor ended with."""
        super().__init__("the month is full")
        self.outcomes = outcomes
        self.accounts = accounts
        self.last = last


class Driver:
    """One `ray-judge score`, from start to exit."""

    def __init__(self, night: Night, process: Process) -> None:
        """Nothing has begun."""
        self.night = night
        self.process = process
        self._storage = night.storage(process)
        self.last_word: LastWord | None = None

    async def score(self) -> dict[str, Outcome]:
        """Ask until every question has its outcome. Raises RayJudgeError: run again later."""
        barren, before = 0, -1
        while True:
            journal = await self._journal()
            answered = len(journal.answers)
            barren = barren + 1 if answered == before else 0
            before = answered
            parts = self.night.parts
            session = _Session(self, parts.answered(journal), parts.unusable(journal))
            try:
                await session.run()
                break
            except ProcessDied as error:
                if not isinstance(error, GovernorDied):  # others may still be at work
                    session.doom()
                if barren >= BARREN_SESSIONS:
                    raise EscalationError(f"actors keep dying: {error}") from None
            finally:
                session.end()
        if self.night.plan.compacts:
            no_writers = not self.night.plan.shared
            token = self.process.name  # a seed's trace has no other chance in it
            await asyncio.to_thread(
                compact, self._storage, "journal", no_writers=no_writers, token=token
            )
        return await self.outcomes(session)

    async def outcomes(self, session: _Session) -> dict[str, Outcome]:
        """What became of every question."""
        journal = await self._journal()
        return {**session.outcomes, **{k: a.outcome for k, a in journal.answers.items()}}

    async def _journal(self) -> Journal:
        return await asyncio.to_thread(load_journal, self._storage, "journal")


class _Session:
    """One governor and its askers."""

    def __init__(self, driver: Driver, answered: set[str], unusable: Mapping[str, int]) -> None:
        self._night = driver.night
        self._driver = driver
        self._answered = answered
        self._unusable = unusable
        self._governor: GovernorHost | None = None
        self._askers: list[AskerHost] = []
        self._failure: RayJudgeError | None = None
        self.outcomes: dict[str, Outcome] = {}

    async def run(self) -> None:
        """Ask until nothing is left, or something fails; then wait for what is in flight."""
        waiting = self._units()
        running: dict[asyncio.Future[Any], int] = {}
        while waiting or running:
            if waiting and self._governor is None:
                await self._open()
            self._submit(waiting, running)
            await asyncio.wait(list(running), return_when=asyncio.FIRST_COMPLETED)
            for reference in [r for r in running if r.done()]:
                del running[reference]
                outcome = reference.result()
                if not isinstance(outcome, RayJudgeError):
                    self.outcomes.update(outcome)
                else:
                    await self._fail(outcome)
            waiting = [] if self._failure else waiting
        if self._governor is None or isinstance(self._failure, GovernorDied):
            if self._failure is not None:
                raise self._failure
            return
        for asker in self._askers:
            await call(self._night, asker.process, asker.close)
        final = await call(self._night, self._governor.process, self._governor.close)
        if self._failure is not None:
            raise self._failure
        superseded = self._driver.process.doomed_at is not None
        last = self._night.oracle.session_ended(final, superseded=superseded)
        self._driver.last_word = last
        if Outcome.PENDING in self.outcomes.values():
            accounts = self._governor.governor._ledger._accounts
            raise MonthIsFull(await self._driver.outcomes(self), accounts, last)

    def _units(self) -> list[Sequence[Question]]:
        questions = self._night.parts.distinct(self._night.plan.questions)
        left = [question for question in questions if question.key not in self._answered]
        size = self._night.plan.unit
        return [left[start : start + size] for start in range(0, len(left), size)]

    async def _open(self) -> None:
        night, plan = self._night, self._night.plan
        self._governor = GovernorHost(night, night.born("governor", self._driver.process))
        failure = await call(night, self._governor.process, self._governor.open)
        if failure is not None:
            raise failure
        count = max(1, min(plan.askers, plan.strong.concurrency))
        series = night.name()
        for number in range(count):
            in_flight = plan.strong.concurrency // count
            in_flight += number < plan.strong.concurrency % count
            process = night.born("asker", self._driver.process)
            name = f"{series}-{number}"
            host = AskerHost(night, process, self._governor, name, in_flight)
            await call(night, process, host.open)
            self._askers.append(host)

    def _submit(
        self, waiting: list[Sequence[Question]], running: dict[asyncio.Future[Any], int]
    ) -> None:
        load = [0] * len(self._askers)
        for number in running.values():
            load[number] += 1
        while waiting and min(load, default=2) < 2:
            number = load.index(min(load))
            asker = self._askers[number]
            unit, process = waiting.pop(0), asker.process
            running[call(self._night, process, asker.ask, unit, self._unusable)] = number
            load[number] += 1

    async def _fail(self, failure: RayJudgeError) -> None:
        if self._failure is None:
            self._failure = failure
            if self._governor is not None:
                with contextlib.suppress(ProcessDied):
                    governor = self._governor
                    await call(self._night, governor.process, governor.pause, str(failure))

    def doom(self) -> None:
        """What is in flight now may be asked again: its askers are about to be killed."""
        for host in self._askers:
            self._night.oracle.doom(host.process)

    def end(self) -> None:
        """Kill everyone: soon, but not at once."""
        for host in self._askers:
            self._night.kill_soon(host.process)
        if self._governor is not None:
            self._night.kill_soon(self._governor.process)


def distinct(questions: tuple[Question, ...]) -> list[Question]:
    """Identical rows are asked once."""
    return set_of(questions)
