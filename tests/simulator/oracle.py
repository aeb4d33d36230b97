"""The promises, checked after every step against the simulator's own books.

Nothing here trusts what the money system says of itself: grants and answers count from the moment
their bytes are durable, bills from the moment the provider computes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ray_judge.escalation.books.accounts import Accounts
from ray_judge.escalation.books.ledger import LeaseSlot, Ledger
from ray_judge.escalation.online.permits import Need
from ray_judge.records import Outcome

from .loop import PROCESS, Process
from .plan import UNITS
from .provider import Request

if TYPE_CHECKING:
    from .night import Night

WINDOW_S = 0.25
"""Answers this old are durable: a crash may cost younger ones."""


class Broken(Exception):
    """A promise was not kept. The night ends with it."""


def units(usd: Decimal) -> int:
    """Whole 1e-13 dollars."""
    return int(usd * UNITS)


class _Grant(NamedTuple):
    """A lease whose record is durable: whose it is, and each slot's question and maximum."""

    actor: str
    keys: list[str]
    maxima: list[int]


class _Exposed(NamedTuple):
    """What a slot may cost yet, or has cost."""

    most: int
    run: str
    process: Process | None


class Oracle:
    """All checks of one night."""

    def __init__(self, night: Night) -> None:
        """Watch the disk for what becomes durable."""
        self._night, self._loop, self._disk = night, night.loop, night.disk
        self._plan = plan = night.plan
        self.broken: Broken | None = None
        self.bills = 0
        self.again = 0
        """Bills for questions that had been billed before."""
        self._cap = units(plan.cap_usd)
        self._monthly = None if plan.monthly_cap_usd is None else units(plan.monthly_cap_usd)
        self._billed = dict.fromkeys(plan.asks, 0)
        self._billed_in: dict[str, int] = {}
        self._exposed: dict[LeaseSlot, _Exposed] = {}
        self._exposure = dict.fromkeys(plan.asks, 0)
        self._granted: dict[str, _Grant] = {}
        self._journaled: set[LeaseSlot] = set()
        self._sent: set[LeaseSlot] = set()
        self._requests: dict[str, list[Request]] = {}
        self._questions = {q.key: q for asked in plan.asks.values() for q in asked}
        self.ledgers: list[tuple[Process, Ledger]] = []
        night.disk.on_durable = self._durable
        night.disk.on_failure = self._storage_failed

    def fail(self, promise: str) -> NoReturn:
        """Record the broken promise, so that no code under test can swallow it, and raise."""
        if self.broken is None:
            self.broken = Broken(promise)
        raise self.broken

    # --- what is durable ---

    def _durable(self, path: str, data: bytes) -> None:
        for line in data.split(b"\n")[:-1]:
            record = json.loads(line.split(b" ", 4)[4])
            if record["t"] == "grant":
                maxima = [int(nanos) * 10_000 for nanos in record["max"]]
                grant = _Grant(record["actor"], record.get("keys", []), maxima)
                self._granted[record["lease"]] = grant
                self._check_ledgers()
            elif record["t"] == "answer":
                self._journaled.add((record["lease"], record["slot"]))

    def _storage_failed(self, path: str) -> None:
        """An asker that can write no journal may lose what a crash may lose, no more."""
        process = PROCESS.get()
        self._night.note(process.name, f"storage failed at {path}")
        if path.startswith("journal/") and process.name.startswith("asker"):
            self.doom(process)

    # --- who may still send ---

    def doom(self, process: Process) -> None:
        """From now on answers that reach this process may be lost."""
        if process.doomed_at is None:
            process.doomed_at, process.slow_s = self._loop.now, self._disk.slow_s

    def died(self, process: Process) -> None:
        """What it had leave for and did not send will never be sent."""
        self.doom(process)
        for slot in [s for s, one in self._exposed.items() if one.process is process]:
            if slot not in self._sent:
                self._uncover(slot)
        self.ledgers = [(owner, ledger) for owner, ledger in self.ledgers if owner is not process]

    def permitted(self, process: Process, lease: str, needs: Sequence[Need]) -> None:
        """A permit reached its asker: each slot may cost its maximum from here on."""
        for number, need in enumerate(needs):
            self._expose((lease, number), units(need.max_cost_usd), process.run, process)
        self._check_exposure(process.run)

    def sent(self, request: Request) -> None:
        """A request leaves an asker."""
        slot, question = request.slot, request.question
        self._night.note(request.run, f"sends {question.key[:6]} under {slot}")
        grant = self._granted.get(slot[0])
        if grant is None or slot[1] >= len(grant.maxima):
            self.fail(f"sent under {slot}, which is not durable")
        if grant.keys[slot[1]] != question.key:
            self.fail(f"sent under {slot}, which is another question's")
        if slot in self._sent:
            self.fail(f"two requests under one slot {slot}")
        if slot not in self._exposed:
            self.fail(f"sent without leave: {slot}")
        self._sent.add(slot)
        if request.process is not None and self._is_unable_to_keep(request.process):
            self.fail(f"sent by a process whose journal cannot be written: {slot}")
        earlier = self._requests.setdefault(question.key, [])
        for before in earlier:
            if not self._excused(before):
                self.fail(f"asked twice: {question.key[:6]} under {before.slot} and {slot}")
        unusable = [r for r in earlier if r.arrived_at is not None and not r.usable and not r.lost]
        if sum(not self._unkept(r) for r in unusable) > self._plan.strong.reasks:
            self.fail(f"re-asked more often than configured: {question.key[:6]}")
        earlier.append(request)

    def _is_unable_to_keep(self, process: Process) -> bool:
        if process.doomed_at is None:
            return False
        slow_s = self._disk.slow_s - process.slow_s
        return self._loop.now > process.doomed_at + WINDOW_S + slow_s

    def batch_created(self, run: str, submission: str, keys: Sequence[str]) -> list[Request]:
        """A batch begins: from here on each of its requests may be billed."""
        actor = f"batch:{submission}"
        leases = [lease for lease, grant in self._granted.items() if grant.actor == actor]
        if len(leases) != 1 or self._granted[leases[0]].keys != list(keys):
            self.fail(f"a batch without a durable lease for just its questions: {submission}")
        lease, requests = leases[0], []
        for number, key in enumerate(keys):
            self._expose((lease, number), self._granted[lease].maxima[number], run, None)
            request = Request(self._questions[key], None, run, (lease, number))
            self.sent(request)
            requests.append(request)
        self._check_exposure(run)
        return requests

    def _excused(self, request: Request) -> bool:
        """Whether the same question may be asked again after this request."""
        if request.lost or (request.arrived_at is not None and not request.usable):
            return True
        return self._unkept(request)

    def _unkept(self, request: Request) -> bool:
        """Whether a death may have cost what came of this request."""
        doomed_at = request.process.doomed_at if request.process else None
        if doomed_at is None:
            return False
        window_s = WINDOW_S + self._disk.slow_s
        return request.arrived_at is None or request.arrived_at > doomed_at - window_s

    def not_billed(self, request: Request) -> None:
        """The provider refused: this slot costs nothing."""
        self._requests[request.question.key].remove(request)
        self._uncover(request.slot)

    def _expose(self, slot: LeaseSlot, most: int, run: str, process: Process | None) -> None:
        self._exposed[slot] = _Exposed(most, run, process)
        self._exposure[run] += most

    def _uncover(self, slot: LeaseSlot) -> None:
        exposed = self._exposed.pop(slot)
        self._exposure[exposed.run] -= exposed.most

    # --- money ---

    def billed_now(self, request: Request) -> None:
        """The provider computed an answer: it is paid for."""
        if request.billed > self._exposed[request.slot].most:
            self.fail(f"the bill of {request.slot} is above its maximum")
        self._uncover(request.slot)
        run, month = request.run, self._month()
        self._exposure[run] += request.billed
        self._billed[run] += request.billed
        self.bills += 1
        self.again += sum(r.billed > 0 for r in self._requests[request.question.key]) > 1
        self._billed_in[month] = self._billed_in.get(month, 0) + request.billed
        if self._billed[run] > self._cap:
            self.fail(f"billed {self._billed[run]}, the cap is {self._cap}")
        if self._monthly is not None and self._billed_in[month] > self._monthly:
            self.fail(f"billed {self._billed_in[month]} in {month}, its cap is {self._monthly}")

    def _check_exposure(self, run: str) -> None:
        """All that is billed and all that still can be, together, fit under the caps."""
        if self._exposure[run] > self._cap:
            self.fail(f"{self._exposure[run]} may be billed in all, the cap is {self._cap}")
        if self._monthly is not None:
            month = self._month()
            open_now = sum(self._exposure.values()) - sum(self._billed.values())
            this_month = open_now + self._billed_in.get(month, 0)
            if this_month > self._monthly:
                self.fail(f"{this_month} may be billed in {month}, its cap is {self._monthly}")

    def _month(self) -> str:
        return f"{datetime.fromtimestamp(self._night.now(), UTC):%Y-%m}"

    def settled(self, items: Sequence[tuple[str, int, Decimal]]) -> None:
        """A settlement reached the governor: the answer that it pays for is durable."""
        for lease, slot, cost in items:
            if cost and (lease, slot) not in self._journaled:
                self.fail(f"settled before it was in the journal: {(lease, slot)}")

    def step(self) -> None:
        """Nobody's own accounts are over the cap: looked at now and then, and at every grant."""
        if self._loop.steps % 16 == 0:
            self._check_ledgers()

    def _check_ledgers(self) -> None:
        for process, ledger in self.ledgers:
            used = ledger._accounts.used(f"run:{process.run}")
            if used * 10_000 > self._cap:
                self.fail(f"a ledger holds {used} nano-dollars")
            if ledger.excess_usd:
                self.fail("a settlement above its slot's maximum")

    def driver_ended(
        self, run: str, outcomes: Mapping[str, Outcome], accounts: Accounts, *, alone: bool
    ) -> None:
        """A run's command ends in good order: what it denied there was really no money for.

        `accounts`: as they are on the disk; they cover every bill. `alone`: nobody else was at
        work on these books meanwhile, who may have proven more, or spent it.
        """
        used = accounts.used(f"run:{run}") * 10_000
        if used < self._billed[run]:
            self.fail(f"the books count {used}, billed {self._billed[run]}")
        months = [name for name in accounts.settled | accounts.held if name.startswith("month:")]
        spent = max((accounts.used(name) * 10_000 for name in months), default=0)
        for key, outcome in outcomes.items():
            most = units(self._questions[key].max_cost_usd)
            if outcome is Outcome.DENIED_BUDGET and alone and 0 < self._cap >= used + most:
                self.fail(f"denied with money left: {key[:6]}")
            if outcome is Outcome.PENDING and alone:
                enough = self._monthly is not None and spent + most <= self._monthly
                if self._monthly is None or (enough and not self.never(key)):
                    self.fail(f"left for the next month with money left: {key[:6]}")

    def never(self, key: str) -> bool:
        """Whether no month will ever have the money for a question."""
        most = units(self._questions[key].max_cost_usd)
        return self._monthly is not None and (self._monthly == 0 or most > self._monthly)

    # --- the end ---

    def run_ended(
        self, run: str, outcomes: Mapping[str, Outcome], verdicts: Mapping[str, Any]
    ) -> None:
        """Every question of a run has its outcome."""
        for question in self._plan.asks[run]:
            outcome = outcomes.get(question.key)
            if outcome is None:
                self.fail(f"no outcome for {question.key[:6]}")
            if outcome is Outcome.RESOLVED and verdicts[question.key] != "A":
                self.fail(f"a wrong verdict for {question.key[:6]}")
            if outcome is Outcome.PENDING and not self.never(question.key):
                self.fail(f"left undone: {question.key[:6]}")
