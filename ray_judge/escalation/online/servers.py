"""What runs in the processes of phase B: one governor, and the askers. Free of Ray.

`actors.py` puts these classes into Ray actors; the simulator puts them into simulated processes.
Errors of ours come back as values, since a value crosses processes unharmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from ray_judge.config import RunConfig
from ray_judge.errors import PausedError, RayJudgeError
from ray_judge.escalation.books.books import Books, Claim
from ray_judge.escalation.books.journal import InVain, JournalWriter
from ray_judge.escalation.books.ledger import LeaseSlot, Ledger
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.governor import Clock, Governor, WallClock
from ray_judge.escalation.online.limiter import Feedback, Limiter
from ray_judge.escalation.online.permits import GovernorPort, Need, Permit, Permits
from ray_judge.escalation.processes import gravity, unique_name
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.records import Outcome


class GovernorServer:
    """Owns the books and the rate limits of a session."""

    governor_type: type[Governor] = Governor

    def __init__(self, config: RunConfig, books: Books, clock: Clock | None = None) -> None:
        self._strong, self._books, self._clock = config.strong, books, clock or WallClock()
        self._governor: Governor | None = None

    async def open(self) -> Claim | RayJudgeError:
        try:
            ledger, claim = await asyncio.to_thread(self._books.claim, unique_name())
        except RayJudgeError as error:
            return error
        self.take(ledger, proven=claim.proven)
        return claim

    def take(self, ledger: Ledger, *, proven: bool = False) -> None:
        """Govern under a ledger that this process owns; `proven`: see `Claim`."""
        limiter = Limiter(
            requests_per_minute=self._strong.requests_per_minute,
            tokens_per_minute=self._strong.tokens_per_minute,
            concurrency=self._strong.concurrency,
            proven=proven,
        )
        self._governor = self.governor_type(
            ledger, limiter, self._clock, patience_s=self._strong.give_up_after_s
        )

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        assert self._governor is not None  # no asker is at work before `open`
        return await self._governor.acquire(actor, needs)

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[LeaseSlot],
        feedback: Sequence[Feedback],
    ) -> None:
        assert self._governor is not None
        await self._governor.settle(actor, items, released, feedback)

    async def pause(self, why: RayJudgeError) -> None:
        if self._governor is not None:
            self._governor.pause(why)

    async def state(self) -> dict[str, Any]:
        assert self._governor is not None
        return self._governor.state()

    async def close(self) -> RayJudgeError | None:
        try:
            if self._governor is not None:
                await self._governor.close()
        except RayJudgeError as error:
            return error
        return None


class AskerServer:
    """Asks many questions at once, at most `in_flight` of them at a time."""

    def __init__(
        self,
        config: RunConfig,
        books: Books,
        governor: GovernorPort,
        key: SecretStr,
        in_flight: int,
    ) -> None:
        self._config, self._books, self._key = config, books, key
        self._governor = governor
        self._room = asyncio.Semaphore(in_flight)
        self._name = self.make_name()
        self.client: Any
        self._permits: Permits
        self._asker: Asker

    async def open(self) -> RayJudgeError | None:
        try:
            journal = await asyncio.to_thread(self.make_writer)
        except RayJudgeError as error:
            return error
        self._permits, self.client = self.make_permits(), self.make_client()
        self._asker = self.make_asker(self.client, journal)
        return None

    def make_name(self) -> str:
        return unique_name()

    def make_writer(self) -> JournalWriter:
        return self._books.writer(self._name)

    def make_client(self) -> Any:
        return StrongClient(self._config.strong, self._key.get_secret_value())

    def make_permits(self) -> Permits:
        return Permits(self._name, self._governor)

    def make_asker(self, client: Any, journal: JournalWriter) -> Asker:
        return Asker(QuestionMaker(self._config), client, self._permits, journal)

    async def ask(
        self, questions: Sequence[Question], in_vain: Mapping[str, InVain]
    ) -> dict[str, Outcome] | RayJudgeError:
        """Ask questions, the first first; key → outcome. The answers are in the journal then.

        `in_vain`: how often earlier sessions asked them in vain.
        """
        tasks = [asyncio.ensure_future(self._one(question, in_vain)) for question in questions]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        try:
            await self._asker.keep_doubtful(sound=not failed)
            await self._permits.flush()
        except RayJudgeError as error:
            failed.append(error)
        ours = [failure for failure in failed if isinstance(failure, RayJudgeError)]
        for failure in failed:
            if not isinstance(failure, RayJudgeError):
                raise failure
        if ours:
            return max(ours, key=gravity)
        return {
            q.key: o for q, o in zip(questions, outcomes, strict=True) if isinstance(o, Outcome)
        }

    async def _one(self, question: Question, in_vain: Mapping[str, InVain]) -> Outcome:
        async with self._room:
            try:
                return await self._asker.ask(question, in_vain.get(question.key, InVain()))
            except RayJudgeError:
                raise
            except Exception as error:  # its slot never comes back: nobody may wait for it
                why = f"an asker failed: {type(error).__name__}: {error}"
                await self._permits.pause(PausedError(why))
                raise

    async def close(self) -> None:
        await self._asker.close()
