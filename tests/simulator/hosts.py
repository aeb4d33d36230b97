"""The processes of a run: the real servers of phase B inside simulated processes.

What Ray does for the real ones, a call that travels and a death that is noticed, is simulated here;
everything else is the code that runs at night.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from ray_judge.errors import RunLockedError
from ray_judge.escalation.books.books import Books, Claim
from ray_judge.escalation.online.permits import Need, Permit, Permits, Slot
from ray_judge.escalation.online.servers import AskerServer, GovernorServer
from ray_judge.escalation.processes import ProcessDied
from ray_judge.escalation.questions import Question, QuestionMaker

from .loop import PROCESS, Process, resolve
from .provider import SLOT

if TYPE_CHECKING:
    from .night import Night


class SimBooks(Books):
    """The real books over the simulated disk. The lock dies with its process; or there is none,
    as on an object store whose lock was taken over while its owner slept."""

    def __init__(self, night: Night, run: str, storage: Any = None) -> None:
        plan = night.plan
        super().__init__(
            storage or night.parts.storage(night.disk),
            shared=len(plan.asks) > 1,
            run=run,
            cap_usd=plan.cap_usd,
            monthly_cap_usd=plan.monthly_cap_usd,
            limit=plan.strong.max_output_tokens,
            clock=night.now,
        )
        self._night, self.owner_type = night, night.parts.ledger

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        ledger, claim = super().claim(owner, nonce or self._night.name())
        self._night.oracle.ledgers.append((PROCESS.get(), ledger))
        return ledger, claim

    @contextmanager
    def locked(self) -> Iterator[None]:
        night, holder = self._night, self._night.lock_holder
        if night.plan.locks and holder is not None and holder.alive:
            raise RunLockedError("another run is asking")
        night.lock_holder = PROCESS.get()
        yield
        if night.lock_holder is PROCESS.get():
            night.lock_holder = None

    def compact(self, *, may_fold: Callable[[str], bool], token: str | None = None) -> int:
        return super().compact(may_fold=may_fold, token=token or self._night.name())


class SimMaker(QuestionMaker):
    """The real reading of answers; the bodies are never dropped."""

    def bodies(self, questions: Iterable[Question], chunks: Any) -> list[Question]:
        return list(questions)


class SimGovernor(GovernorServer):
    """The real server, with the part that is under test."""

    def __init__(self, night: Night, process: Process) -> None:
        super().__init__(night.configs[process.run], night.books(process.run), night)
        self._night, self.governor_type = night, night.parts.governor

    async def settle(
        self, actor: str, items: Sequence[tuple[str, int, Decimal]], *rest: Any
    ) -> None:
        self._night.oracle.settled(items)
        await super().settle(actor, items, *rest)
        self._night.oracle.booked(PROCESS.get(), items)


class SimAsker(AskerServer):
    """The real server; its client is the simulated provider."""

    def __init__(self, night: Night, process: Process, governor: Any, in_flight: int) -> None:
        self._night, self._process = night, process
        config, books = night.configs[process.run], night.books(process.run)
        super().__init__(config, books, governor, SecretStr("none"), in_flight)

    def make_name(self) -> str:
        return self._night.name(self._process)

    def make_writer(self) -> Any:
        storage, run, linger_s = self._books.storage, self._books.run, self._night.plan.linger_s
        return self._night.parts.journal(storage, self._name, run=run, linger_s=linger_s)

    def make_client(self) -> Any:
        return self._night.parts.client(self._night, self._config.strong)

    def make_permits(self) -> Any:
        return self._night.parts.permits(self._name, self._governor, clock=self._night.loop.time)

    def make_asker(self, client: Any, journal: Any) -> Any:
        maker, asker = SimMaker(self._config), self._night.parts.asker
        return asker(maker, client, self._permits, journal, clock=self._night.now)


class Near:
    """A governor in the driver's own process, which a batch run begins with."""

    def __init__(self, night: Night, governor: SimGovernor) -> None:
        self._night, self._governor = night, governor
        self.settle, self.pause = governor.settle, governor.pause

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        permit = await self._governor.acquire(actor, needs)
        self._night.oracle.permitted(PROCESS.get(), permit.lease_id, needs[: permit.slots])
        return permit


class WatchedPermits(Permits):
    """The real permits; the slot that is given is remembered for the provider's own books."""

    async def slot(self, need: Need) -> Slot:
        slot = await super().slot(need)
        SLOT.set(slot)
        return slot


class Far:
    """A server in another process; see `actors.Remote`."""

    def __init__(self, night: Night, process: Process, server: Any) -> None:
        self._night, self._process, self._server = night, process, server

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return partial(self._call, method)

    async def _call(self, method: str, *args: Any) -> Any:
        """A call travels, runs in the other process, and its answer travels back.

        An answer that was on its way when its sender died still arrives.
        """
        night, loop, process = self._night, self._night.loop, self._process
        reply, back = loop.create_future(), contextvars.copy_context()

        def send_back(what: Any) -> None:
            loop.call_later(night.travel_s(), resolve, reply, what, context=back.copy())

        def lost() -> None:
            send_back(ProcessDied(f"{process.name} died"))

        async def work() -> None:
            try:
                what = await getattr(self._server, method)(*args)
            except Exception as error:
                what = error
            process.at_death.remove(lost)
            send_back(what)

        def arrive() -> None:
            if process.alive:
                process.at_death.append(lost)
                loop.spawn(process, work())
            else:
                lost()

        night.later(night.travel_s(), arrive)
        return await reply

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        permit: Permit = await self._call("acquire", actor, needs)
        self._night.oracle.permitted(PROCESS.get(), permit.lease_id, needs[: permit.slots])
        return permit

    async def settle(self, *args: Any) -> None:
        """Sometimes delivered twice, as `Governor.settle` allows."""
        if self._night.rng.random() < self._night.plan.p_duplicate:
            await self._call("settle", *args)
        await self._call("settle", *args)

    def kill(self) -> None:
        """Ray's kill arrives a moment later."""
        self._night.kill_soon(self._process)


class SimProcesses:
    """See `courier.Processes`."""

    def __init__(self, night: Night) -> None:
        self._night = night

    async def governor(self) -> Far:
        process = self._night.born("governor", PROCESS.get())
        return Far(self._night, process, SimGovernor(self._night, process))

    async def asker(self, governor: Far, in_flight: int) -> Far:
        process = self._night.born("asker", PROCESS.get())
        asker = Far(self._night, process, SimAsker(self._night, process, governor, in_flight))
        await asker.open()
        return asker
