"""The processes of a run: what `actors.py` puts into Ray actors, as simulated processes.

Kept as close to `actors.py` as can be; what is real here is everything that they hold.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ray_judge.errors import EscalationError, PausedError, RayJudgeError
from ray_judge.escalation.books.journal import JournalWriter, load_journal
from ray_judge.escalation.books.ledger import LeaseSlot, Ledger
from ray_judge.escalation.client import Reply
from ray_judge.escalation.online.asker import Asker, Purse, Slot
from ray_judge.escalation.online.governor import Governor, Need, Permit
from ray_judge.escalation.online.limiter import Feedback, Limiter
from ray_judge.records import Outcome

from .loop import Process
from .plan import Question, parts

if TYPE_CHECKING:
    from .night import Night


class ProcessDied(EscalationError):
    """What Ray's `RayActorError` is: the other side is gone."""


class GovernorDied(ProcessDied):
    """The same, as an asker hears it."""


def call(
    night: Night, target: Process, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any
) -> asyncio.Future[Any]:
    """A remote call: it travels, runs in the other process, and its answer travels back.

    An answer that was on its way when its sender died still arrives.
    """
    loop = night.loop
    reply: asyncio.Future[Any] = loop.create_future()
    back = contextvars.copy_context()

    def answer(result: Any, error: BaseException | None) -> None:
        if not reply.done():
            if error is None:
                reply.set_result(result)
            else:
                reply.set_exception(error)

    def send_back(result: Any, error: BaseException | None) -> None:
        loop.call_later(night.travel_s(), answer, result, error, context=back.copy())

    def lost() -> None:
        send_back(None, ProcessDied(f"{target.name} died"))

    async def work() -> None:
        try:
            result = await method(*args)
        except Exception as error:
            target.at_death.remove(lost)
            send_back(None, error)
        else:
            target.at_death.remove(lost)
            send_back(result, None)

    def arrive() -> None:
        if target.alive:
            target.at_death.append(lost)
            loop.spawn(target, work())
        else:
            lost()

    loop.call_later(night.travel_s(), arrive, context=night.outside())
    return reply


class WallClock:
    """Unix seconds of the night."""

    def __init__(self, night: Night) -> None:
        self._night = night

    def now(self) -> float:
        """See `governor.Clock`."""
        return self._night.wall()

    async def sleep(self, seconds: float) -> None:
        """See `governor.Clock`."""
        await asyncio.sleep(seconds)


class GovernorHost:
    """As `actors.GovernorActor`."""

    def __init__(self, night: Night, process: Process) -> None:
        """Nothing is opened yet."""
        self._night = night
        self.process = process
        self.governor: Governor

    async def open(self) -> RayJudgeError | None:
        """Recover the ledger and become its owner."""
        night, strong = self._night, self._night.plan.strong
        try:
            ledger = await asyncio.to_thread(self._ledger)
        except RayJudgeError as error:
            return error
        night.oracle.ledgers.append((self.process, ledger))
        limiter = Limiter(
            requests_per_minute=strong.requests_per_minute,
            tokens_per_minute=strong.tokens_per_minute,
            concurrency=strong.concurrency,
        )
        clock = WallClock(night)
        self.governor = night.parts.governor(
            ledger, limiter, clock, patience_s=strong.give_up_after_s
        )
        return None

    def _ledger(self) -> Ledger:
        night = self._night
        storage = night.storage(self.process)
        opened: Ledger = night.parts.ledger.open(
            storage,
            "ledger",
            cap_usd=night.plan.cap_usd,
            owner=self.process.name,
            journal_costs=load_journal(storage, "journal").paid,
            clock=night.wall,
            monthly_cap_usd=night.plan.monthly_cap_usd,
            nonce=night.name(),
        )
        return opened

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        """See `Governor.acquire`."""
        return await self.governor.acquire(actor, needs)

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[LeaseSlot],
        feedback: Sequence[Feedback],
    ) -> None:
        """See `Governor.settle`."""
        self._night.oracle.settled(items)
        await self.governor.settle(actor, items, released, feedback)

    async def pause(self, reason: str) -> None:
        """See `Governor.pause`."""
        self.governor.pause(reason)

    async def close(self) -> dict[str, Any]:
        """Write the ledger's last word and give the final state."""
        await self.governor.close()
        return self.governor.state()


class FarTreasurer:
    """The governor's process, as an asker calls it."""

    def __init__(self, night: Night, process: Process, governor: GovernorHost) -> None:
        self._night = night
        self._process = process
        self._governor = governor

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        """See `asker.Treasurer`."""
        permit: Permit = await self._call(self._governor.acquire, actor, needs)
        self._night.oracle.permitted(self._process, permit.lease_id, needs[: permit.slots])
        return permit

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None:
        """See `asker.Treasurer`; sometimes delivered twice, as `Governor.settle` allows."""
        if self._night.rng.random() < self._night.plan.p_duplicate:
            await self._call(self._governor.settle, actor, items, released, feedback)
        await self._call(self._governor.settle, actor, items, released, feedback)

    async def pause(self, reason: str) -> None:
        """See `asker.Treasurer`."""
        await self._call(self._governor.pause, reason)

    async def _call(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        try:
            return await call(self._night, self._governor.process, method, *args)
        except ProcessDied:
            raise GovernorDied("the governor died") from None


SLOT: contextvars.ContextVar[Slot] = contextvars.ContextVar("slot")


class WatchedPurse(Purse):
    """The real purse; the slot that it gives is remembered for the provider's books."""

    async def slot(self, need: Need) -> Slot:
        """See `Purse.slot`."""
        slot = await super().slot(need)
        SLOT.set(slot)
        return slot


class RememberingAsker(Asker):
    """The real asker; what a question can cost is worked out once, not once a night."""

    def _need(self, body: Mapping[str, Any]) -> Need:
        key = (id(body), self._strong.max_output_tokens)
        if key not in _NEEDS:
            _NEEDS[key] = super()._need(body)
        return _NEEDS[key]


_NEEDS: dict[tuple[int, int], Need] = {}


class SimClient:
    """In place of `StrongClient`."""

    def __init__(self, night: Night, process: Process) -> None:
        self._night = night
        self._process = process

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """See `StrongClient.send`."""
        slot = SLOT.get()
        return await self._night.provider.send(self._process, (slot.lease, slot.number), body)


class AskerHost:
    """As `actors.AskerActor`."""

    def __init__(
        self, night: Night, process: Process, governor: GovernorHost, name: str, in_flight: int
    ) -> None:
        """Nothing is opened yet."""
        self._night = night
        self.process = process
        self._governor = governor
        self._name = name
        self._room = asyncio.Semaphore(in_flight)
        self._purse: Purse
        self._journal: JournalWriter
        self._asker: Asker

    async def open(self) -> None:
        """Open the journal's log of this actor; on failure Ray's actor would be dead."""
        night = self._night
        _, question, price, _ = parts()
        try:
            self._journal = await asyncio.to_thread(
                lambda: night.parts.journal(
                    night.storage(self.process),
                    "journal",
                    writer_id=self._name,
                    clock=lambda: night.loop.now,
                    linger_s=night.plan.linger_s,
                )
            )
        except RayJudgeError:
            night.kill(self.process)
            return
        treasurer = FarTreasurer(night, self.process, self._governor)
        self._purse = night.parts.purse(self._name, treasurer, clock=lambda: night.loop.now)
        self._asker = night.parts.asker(
            night.plan.strong,
            question,
            price,
            SimClient(night, self.process),
            self._purse,
            self._journal,
            clock=night.wall,
        )

    async def ask(
        self, questions: Sequence[Question], unusable: Mapping[str, int]
    ) -> dict[str, Outcome] | RayJudgeError:
        """Ask questions; errors come back as values."""
        tasks = [asyncio.ensure_future(self._one(q, unusable.get(q.key, 0))) for q in questions]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        try:
            await self._purse.flush()
        except RayJudgeError as error:
            failed.append(error)
        for failure in failed:
            if not isinstance(failure, RayJudgeError):
                raise failure
        if failed:
            return _gravest([error for error in failed if isinstance(error, RayJudgeError)])
        pairs = zip(questions, outcomes, strict=True)
        return {q.key: o for q, o in pairs if isinstance(o, Outcome)}

    async def _one(self, question: Question, unusable: int) -> Outcome:
        async with self._room:
            return await self._asker.ask(question.key, question.body, unusable)

    async def close(self) -> None:
        """Mark this actor's log as ended."""
        await asyncio.to_thread(self._journal.close)


def _gravest(errors: Sequence[RayJudgeError]) -> RayJudgeError:
    def weight(error: RayJudgeError) -> int:
        if isinstance(error, GovernorDied):
            return 0
        return 1 if isinstance(error, PausedError) else 2

    return max(errors, key=weight)
