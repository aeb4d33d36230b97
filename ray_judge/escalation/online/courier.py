"""The online courier: one governor and its askers bring questions to the provider, one by one.

It is free of Ray: `Processes` starts the processes (`actors.py` with Ray, the simulator its own).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

from ray_judge.errors import PausedError, RayJudgeError
from ray_judge.escalation.books.books import Claim
from ray_judge.escalation.online.governor import Clock
from ray_judge.escalation.processes import ProcessDied
from ray_judge.escalation.questions import Question
from ray_judge.escalation.session import IDLE_S, POLL_S, Report, Session
from ray_judge.records import Outcome

PER_UNIT = 256
"""Questions in one call to an asker."""
PER_ASKER = 64
"""Requests in flight that one asker process serves."""
MOST_ASKERS = 8
AT_ASKER = 2
"""Units that each asker holds: the next one starts while the last one's tail ends."""


class Processes(Protocol):
    """What starts processes, here or elsewhere in the cluster.

    Each is called as the server that runs in it, and has `kill`. A call raises ProcessDied where
    the process has ended.
    """

    async def governor(self) -> Any:
        """Start a `GovernorServer`."""

    async def asker(self, governor: Any, in_flight: int) -> Any:
        """Start an `AskerServer`, opened."""


class OnlineCourier:
    """Asks the questions of a session, units of them at a time."""

    poll_s = POLL_S

    def __init__(
        self,
        processes: Processes,
        clock: Clock,
        report: Report,
        *,
        concurrency: int,
        shared: bool,
        per_unit: int = PER_UNIT,
        askers: int | None = None,
    ) -> None:
        """Start nothing yet. `shared`: other runs wait for the books."""
        self._processes, self._clock, self._report = processes, clock, report
        self._concurrency, self._shared, self._per_unit = concurrency, shared, per_unit
        self._count = askers or max(1, min(MOST_ASKERS, -(-concurrency // PER_ASKER)))
        self._governor: Any = None
        self._askers: list[Any] = []
        self._running: dict[asyncio.Task[dict[str, Outcome]], tuple[int, list[Question]]] = {}
        self._failure: RayJudgeError | None = None

    # --- what the session calls ---

    async def open(self) -> Claim:
        """Start the governor, which claims the books, and meanwhile the askers."""
        self._governor = await self._processes.governor()
        count = min(self._count, self._concurrency)
        share, rest = divmod(self._concurrency, count)
        claiming = asyncio.ensure_future(self._governor.open())
        started = await asyncio.gather(
            *(self._processes.asker(self._governor, share + (n < rest)) for n in range(count)),
            return_exceptions=True,
        )
        self._askers = [asker for asker in started if not isinstance(asker, BaseException)]
        claim: Claim = await claiming
        for error in started:
            if isinstance(error, BaseException):
                raise error
        return claim

    async def close(self) -> None:
        """End the askers' logs, then the ledger's; the first error is told at the end."""
        errors: list[RayJudgeError] = []
        if self._governor is not None:
            with contextlib.suppress(ProcessDied):
                self._report(await self._governor.state())
        for process in self._all():
            try:
                await process.close()
            except RayJudgeError as error:
                errors.append(error)
        await self.kill()
        if errors:
            raise errors[0]

    async def kill(self) -> None:
        """Make sure that nobody of this session can send any more."""
        for process in self._all():
            process.kill()
        self._askers, self._governor, self._failure = [], None, None
        for task in self._running:
            task.cancel()
        self._running.clear()

    def _all(self) -> list[Any]:
        return [*self._askers, self._governor] if self._governor is not None else []

    async def carry(self, session: Session) -> None:
        """Ask until nothing is left.

        After a failure nothing new is handed out, but what is in flight is waited for: an answer
        that was paid for is in the journal before anybody is sent home.
        """
        idle_since = self._clock.now()
        while await self._step(session):
            if session.waiting or self._running:
                idle_since = self._clock.now()
            elif self._shared and self._clock.now() - idle_since > IDLE_S:
                await session.release()
        if self._failure is not None:
            raise self._failure

    async def _step(self, session: Session) -> bool:
        """Take, submit, collect; False when nothing is left to do."""
        more = self._failure is None
        if self._failure is None:
            try:
                more = await session.take()
                await self._submit(session)
            except RayJudgeError as error:
                await self._fail(error)
        if self._running:
            done, _ = await asyncio.wait(
                self._running, timeout=self.poll_s, return_when=asyncio.FIRST_COMPLETED
            )
            await self._collect(session, done)
            return True
        if self._failure is not None:
            return False
        if not session.waiting and (more or await session.recheck()):
            await self._clock.sleep(self.poll_s)
            return True
        return bool(session.waiting)

    async def _submit(self, session: Session) -> None:
        """Hand out what the askers have room for; deny what no money can be had for."""
        if session.waiting:
            await session.own()
        if self._governor is None:
            return
        figures = await self._governor.state()
        session.deny(figures["best_usd"])
        self._report({**figures, **session.figures()})
        load = [0] * len(self._askers)
        for number, _ in self._running.values():
            load[number] += 1
        while session.waiting and min(load) < AT_ASKER:
            number = load.index(min(load))
            unit = session.pop(self._per_unit)
            asked = self._askers[number].ask(
                unit, {q.key: session.in_vain[q.key] for q in unit if q.key in session.in_vain}
            )
            self._running[asyncio.ensure_future(asked)] = number, unit
            load[number] += 1

    async def _collect(self, session: Session, done: Any) -> None:
        for task in [task for task in self._running if task in done]:  # a set has no order
            _, unit = self._running.pop(task)
            try:
                session.settle(task.result())
            except RayJudgeError as error:
                session.put(unit)
                await self._fail(error)

    async def _fail(self, failure: RayJudgeError) -> None:
        """Keep the failure that explains the others, and let nobody send anything new."""
        known = self._failure
        if known is None:
            self._failure = failure
            if self._governor is not None:
                with contextlib.suppress(ProcessDied):  # dead, it lets nobody send either
                    await self._governor.pause(failure)
        elif isinstance(known, PausedError) and not isinstance(failure, PausedError | ProcessDied):
            self._failure = failure
