"""The processes of a run: the real servers of phase B inside simulated processes.

What Ray does for the real ones, a call that travels and a death that is noticed, is simulated here;
everything else is the code that runs at night.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from ray_judge.errors import RayJudgeError, RunLockedError
from ray_judge.escalation.answers import Reply
from ray_judge.escalation.books.books import Books, Claim
from ray_judge.escalation.books.ledger import LeaseSlot
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.online.limiter import Feedback, Limiter
from ray_judge.escalation.online.permits import Need, Permit, Permits, Slot
from ray_judge.escalation.online.servers import AskerServer, GovernorServer
from ray_judge.escalation.processes import ProcessDied

from .loop import Process

if TYPE_CHECKING:
    from .night import Night

SLOT: contextvars.ContextVar[Slot] = contextvars.ContextVar("slot")


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
        return self._night.wall()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SimBooks(Books):
    """The real books over the simulated disk. The lock dies with its process; or there is none,
    as on an object store whose lock was taken over while its owner slept."""

    def __init__(self, night: Night, process: Process, run: str, storage: Any = None) -> None:
        plan = night.plan
        super().__init__(
            storage or night.storage(process),
            shared=len(plan.runs) > 1,
            run=run,
            cap_usd=plan.cap_usd,
            monthly_cap_usd=plan.monthly_cap_usd,
            clock=night.wall,
        )
        self.owner_type = night.parts.ledger
        self._night, self._process = night, process

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        ledger, claim = super().claim(owner, nonce or self._night.name())
        self._night.oracle.ledgers.append((self._process, ledger))
        return ledger, claim

    def locked(self) -> Any:
        return _Lock(self._night, self._process)

    def compact(self, *, may_fold: Callable[[str], bool], token: str | None = None) -> int:
        return super().compact(may_fold=may_fold, token=token or self._night.name())


class _Lock:
    def __init__(self, night: Night, process: Process) -> None:
        self._night, self._process = night, process

    def __enter__(self) -> None:
        holder = self._night.lock_holder
        if self._night.plan.locks and holder is not None and holder.alive:
            raise RunLockedError("another run is asking")
        self._night.lock_holder = self._process

    def __exit__(self, *_: object) -> None:
        if self._night.lock_holder is self._process:
            self._night.lock_holder = None


class SimGovernor(GovernorServer):
    """The real server, with the part that is under test."""

    def __init__(self, night: Night, process: Process, run: str) -> None:
        books = night.books(process, run)
        super().__init__(night.config(run), books, WallClock(night))
        self._night = night

    def _make(self, ledger: Any, limiter: Limiter) -> Governor:
        governor: Governor = self._night.parts.governor(
            ledger, limiter, self._clock, patience_s=self._strong.give_up_after_s
        )
        return governor

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[LeaseSlot],
        feedback: Sequence[Feedback],
    ) -> None:
        self._night.oracle.settled(items)
        await super().settle(actor, items, released, feedback)


class SimAsker(AskerServer):
    """The real server; its client is the simulated provider."""

    def __init__(
        self, night: Night, process: Process, run: str, governor: Far, in_flight: int
    ) -> None:
        self._night, self._process = night, process
        books = night.books(process, run)
        super().__init__(night.config(run), books, governor, SecretStr("none"), in_flight)

    def make_name(self) -> str:
        return f"{self._night.name()}@{self._process.name}"

    def make_writer(self) -> Any:
        return self._night.parts.journal(
            self._books.storage,
            self._name,
            run=self._books.run,
            linger_s=self._night.plan.linger_s,
        )

    def make_client(self) -> Any:
        return SimClient(self._night, self._process)

    def make_permits(self) -> Permits:
        permits: Permits = self._night.parts.permits(
            self._name, self._governor, clock=lambda: self._night.loop.now
        )
        return permits

    def make_asker(self, client: Any, journal: Any) -> Asker:
        asker: Asker = self._night.parts.asker(
            self._night.maker(self._process.run),
            client,
            self._permits,
            journal,
            clock=self._night.wall,
        )
        return asker


class WatchedPermits(Permits):
    """The real permits; the slot that is given is remembered for the provider's own books."""

    async def slot(self, need: Need) -> Slot:
        slot = await super().slot(need)
        SLOT.set(slot)
        return slot


class SimClient:
    """In place of `StrongClient`."""

    def __init__(self, night: Night, process: Process) -> None:
        self._night, self._process = night, process

    async def send(self, body: Mapping[str, Any]) -> Reply:
        slot = SLOT.get()
        return await self._night.provider.send(self._process, (slot.lease, slot.number), body)

    async def close(self) -> None:
        """Nothing is open."""


class Far:
    """A server in another process; see `actors.py`."""

    def __init__(self, night: Night, caller: Process, process: Process, server: Any) -> None:
        self._night, self._caller = night, caller
        self.process, self.server = process, server

    def seen_from(self, caller: Process) -> Far:
        """The same server for another caller."""
        return Far(self._night, caller, self.process, self.server)

    async def _call(self, method: str, *args: Any) -> Any:
        value = await call(self._night, self.process, getattr(self.server, method), *args)
        if isinstance(value, RayJudgeError):
            raise value
        return value

    async def open(self) -> Any:
        return await self._call("open")

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        permit: Permit = await self._call("acquire", actor, needs)
        self._night.oracle.permitted(self._caller, permit.lease_id, needs[: permit.slots])
        return permit

    async def settle(self, *args: Any) -> None:
        """Sometimes delivered twice, as `Governor.settle` allows."""
        if self._night.rng.random() < self._night.plan.p_duplicate:
            await self._call("settle", *args)
        await self._call("settle", *args)

    async def pause(self, reason: str) -> None:
        await self._call("pause", reason)

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = await self._call("state")
        return state

    async def ask(self, *args: Any) -> Any:
        return await self._call("ask", *args)

    async def close(self) -> None:
        await self._call("close")

    def kill(self) -> None:
        """Ray's kill arrives a moment later."""
        self._night.kill_soon(self.process)


class SimProcesses:
    """See `courier.Processes`."""

    def __init__(self, night: Night, driver: Process, run: str) -> None:
        self._night, self._driver, self._run = night, driver, run

    async def governor(self) -> Far:
        process = self._night.born("governor", self._driver)
        server = SimGovernor(self._night, process, self._run)
        return Far(self._night, self._driver, process, server)

    async def asker(self, governor: Far, in_flight: int) -> Far:
        night = self._night
        process = night.born("asker", self._driver)
        server = SimAsker(night, process, self._run, governor.seen_from(process), in_flight)
        asker = Far(night, self._driver, process, server)
        await asker.open()
        return asker
