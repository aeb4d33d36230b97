"""The promises, checked after every step against the simulator's own books.

Nothing here trusts what the money system says of itself: grants and answers count from the moment
their bytes are durable, bills from the moment the provider computes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ray_judge.escalation.books.accounts import Accounts
from ray_judge.escalation.books.ledger import LeaseSlot, Ledger
from ray_judge.escalation.online.governor import Need
from ray_judge.records import Outcome

from .disk import Disk
from .loop import Process, SimLoop
from .plan import UNITS, Plan, Question, set_of
from .provider import Request

WINDOW_S = 0.25
"""Answers this old are durable: a crash may cost younger ones."""


class Broken(Exception):
    """A promise was not kept. The night ends with it."""


def units(usd: Decimal) -> int:
    """Whole 1e-13 dollars."""
    return int(usd * UNITS)


@dataclass(frozen=True)
class LastWord:
    """What a governor knew when its session came to its end: spent or lost, 1e-13 dollars."""

    known: int
    superseded: bool
    """Another owner of the ledger was there, and may know of more."""


class Oracle:
    """All checks of one night."""

    def __init__(self, plan: Plan, loop: SimLoop, disk: Disk, note: Callable[..., None]) -> None:
        """Watch `disk` for what becomes durable."""
        self._plan = plan
        self._loop = loop
        self._disk = disk
        self._note = note
        self.broken: Broken | None = None
        self.billed = 0
        self.bills = 0
        self.again = 0
        """Bills for questions that had been billed before."""
        self._cap = units(plan.cap_usd)
        self._monthly = None if plan.monthly_cap_usd is None else units(plan.monthly_cap_usd)
        self._billed_in: dict[str, int] = {}
        self._granted: set[LeaseSlot] = set()
        self._journaled: set[LeaseSlot] = set()
        self._exposed: dict[LeaseSlot, tuple[int, Process]] = {}
        self._exposure = 0
        self._sent: set[LeaseSlot] = set()
        self._requests: dict[str, list[Request]] = {}
        self.ledgers: list[tuple[Process, Ledger]] = []
        disk.on_durable = self._durable
        disk.on_failure = self._storage_failed

    def fail(self, promise: str) -> None:
        """Record the broken promise, so that no code under test can swallow it, and raise."""
        if self.broken is None:
            self.broken = Broken(promise)
        raise self.broken

    # --- what is durable ---

    def _durable(self, path: str, data: bytes) -> None:
        for line in data.split(b"\n")[:-1]:
            record = json.loads(line.split(b" ", 4)[4])
            if record["t"] == "grant":
                slots = range(len(record["max"]))
                self._granted.update((record["lease"], slot) for slot in slots)
            elif record["t"] == "answer":
                self._journaled.add((record["lease"], record["slot"]))

    def _storage_failed(self, process: Process, path: str) -> None:
        """An asker that can write no journal may lose what a crash may lose, no more."""
        self._note(process.name, f"storage failed at {path}")
        if path.startswith("journal/") and process.name.startswith("asker"):
            self.doom(process)

    # --- who may still send ---

    def doom(self, process: Process) -> None:
        """From now on answers that reach this process may be lost."""
        if process.doomed_at is None:
            process.doomed_at = self._loop.now

    def died(self, process: Process) -> None:
        """What it had leave for and did not send will never be sent."""
        self.doom(process)
        for slot in [s for s, (_, owner) in self._exposed.items() if owner is process]:
            if slot not in self._sent:
                self._uncover(slot)
        self.ledgers = [(owner, ledger) for owner, ledger in self.ledgers if owner is not process]

    def permitted(self, process: Process, lease: str, needs: Sequence[Need]) -> None:
        """A permit reached its asker: each slot may cost its maximum from here on."""
        for number, need in enumerate(needs):
            self._exposed[lease, number] = (units(need.max_cost_usd), process)
            self._exposure += units(need.max_cost_usd)
        self._check_exposure()

    def sent(self, request: Request) -> None:
        """A request leaves an asker."""
        slot, question = request.slot, request.question
        self._note(request.process.name, f"sends {question.key[:6]} under {slot}")
        if slot not in self._granted:
            self.fail(f"sent under {slot}, which is not durable")
        if slot in self._sent:
            self.fail(f"two requests under one slot {slot}")
        if slot not in self._exposed:
            self.fail(f"sent without leave: {slot}")
        self._sent.add(slot)
        earlier = self._requests.setdefault(question.key, [])
        if request.process.doomed_at is None:
            for before in earlier:
                if not self._excused(before):
                    self.fail(f"asked twice: {question.key[:6]} under {before.slot} and {slot}")
            unusable = [r for r in earlier if r.arrived_at is not None and not r.usable]
            if sum(not self._unkept(r) for r in unusable) > self._plan.strong.reasks:
                self.fail(f"re-asked more often than configured: {question.key[:6]}")
        earlier.append(request)

    def _excused(self, request: Request) -> bool:
        """Whether the same question may be asked again after this request."""
        if request.lost or (request.arrived_at is not None and not request.usable):
            return True
        return self._unkept(request)

    def _unkept(self, request: Request) -> bool:
        """Whether a death may have cost what came of this request."""
        doomed_at = request.process.doomed_at
        if doomed_at is None:
            return False
        window_s = WINDOW_S + self._disk.slow_s
        return request.arrived_at is None or request.arrived_at > doomed_at - window_s

    def not_billed(self, request: Request) -> None:
        """The provider refused: this slot costs nothing."""
        self._requests[request.question.key].remove(request)
        self._uncover(request.slot)

    def _uncover(self, slot: LeaseSlot) -> None:
        self._exposure -= self._exposed.pop(slot)[0]

    # --- money ---

    def billed_now(self, request: Request) -> None:
        """The provider computed an answer: it is paid for."""
        if request.billed > self._exposed[request.slot][0]:
            self.fail(f"the bill of {request.slot} is above its maximum")
        self._uncover(request.slot)
        self._exposure += request.billed
        self.billed += request.billed
        self.bills += 1
        self.again += sum(r.billed > 0 for r in self._requests[request.question.key]) > 1
        month = self._month()
        self._billed_in[month] = self._billed_in.get(month, 0) + request.billed
        if self.billed > self._cap:
            self.fail(f"billed {self.billed}, the cap is {self._cap}")
        if self._monthly is not None and self._billed_in[month] > self._monthly:
            self.fail(f"billed {self._billed_in[month]} in {month}, its cap is {self._monthly}")

    def _check_exposure(self) -> None:
        """All that is billed and all that still can be, together, fit under the cap."""
        if self._exposure > self._cap:
            self.fail(f"{self._exposure} may be billed in all, the cap is {self._cap}")
        if self._monthly is not None:
            month = self._month()
            this_month = self._exposure - self.billed + self._billed_in.get(month, 0)
            if this_month > self._monthly:
                self.fail(f"{this_month} may be billed in {month}, its cap is {self._monthly}")

    def _month(self) -> str:
        return f"{datetime.fromtimestamp(self._plan.start + self._loop.now, UTC):%Y-%m}"

    def settled(self, items: Sequence[tuple[str, int, Decimal]]) -> None:
        """A settlement reached the governor: the answer that it pays for is durable."""
        for lease, slot, cost in items:
            if cost and (lease, slot) not in self._journaled:
                self.fail(f"settled before it was in the journal: {(lease, slot)}")

    def step(self) -> None:
        """After every step: nobody's own accounts are over the cap."""
        for _, ledger in self.ledgers:
            accounts = ledger._accounts
            if accounts.used("run:run") * 10_000 > self._cap:
                self.fail(f"a ledger holds {accounts.used('run:run')} nano-dollars")

    def session_ended(self, state: Mapping[str, Any], *, superseded: bool) -> LastWord:
        """The governor's last word covers every bill, unless a later owner may know of more."""
        known = units(state["spent_usd"] + state["lost_usd"])
        if known < self.billed and not superseded:
            self.fail(f"reported {state['spent_usd']} + {state['lost_usd']}, billed {self.billed}")
        if state["overruns"] and not superseded:
            self.fail("a settlement above its slot's maximum")
        return LastWord(known, superseded)

    def month_full(
        self, outcomes: Mapping[str, Outcome], accounts: Accounts, last: LastWord
    ) -> None:
        """A run leaves questions for the next month: this one's money must really be gone."""
        months = [name for name in accounts.settled | accounts.held if name.startswith("month:")]
        used = max((accounts.used(name) * 10_000 for name in months), default=0)
        for question in self._pending(outcomes):
            room = (self._monthly or 0) - used
            if self._monthly is None or (
                room >= units(question.max_cost_usd)
                and not self._never(question)
                and not last.superseded
            ):
                self.fail(f"left for the next month with money left: {question.key[:6]}")

    def for_ever(self, outcomes: Mapping[str, Outcome]) -> bool:
        """Whether no month will ever have the money for what was left."""
        return all(map(self._never, self._pending(outcomes)))

    def _pending(self, outcomes: Mapping[str, Outcome]) -> list[Question]:
        left = {key for key, outcome in outcomes.items() if outcome is Outcome.PENDING}
        return [question for question in set_of(self._plan.questions) if question.key in left]

    def _never(self, question: Question) -> bool:
        if self._monthly is None:
            return False
        return self._monthly == 0 or units(question.max_cost_usd) > self._monthly

    # --- the end ---

    def night_ended(
        self,
        outcomes: Mapping[str, Outcome],
        verdicts: Mapping[str, Any],
        used: Callable[[], int],
        last: LastWord | None,
    ) -> None:
        """Every question has its outcome, and denied means that the money was really gone."""
        left = self._cap - used() * 10_000
        if left + used() * 10_000 - self.billed < 0 or used() * 10_000 < self.billed:
            self.fail("the ledger on disk counts less than was billed")
        if last is not None and last.superseded:
            # What an asker of the owner before journals after its successor's recovery is proven
            # for the next session only: until then it counts in full, and others are denied.
            left = min(left, self._cap - last.known)
        for question in set_of(self._plan.questions):
            outcome = outcomes.get(question.key)
            if outcome is None:
                self.fail(f"no outcome for {question.key[:6]}")
            if outcome is Outcome.RESOLVED and verdicts[question.key] != "A":
                self.fail(f"a wrong verdict for {question.key[:6]}")
            short = left < units(question.max_cost_usd) or self._cap == 0
            if outcome is Outcome.DENIED_BUDGET and not short:
                self.fail(f"denied with money left: {question.key[:6]}")
            if outcome is Outcome.PENDING and not self._never(question):
                self.fail(f"left undone: {question.key[:6]}")
