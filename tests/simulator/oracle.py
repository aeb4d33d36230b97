"""The promises, checked after every step against the simulator's own books.

Nothing here trusts what the money system says of itself: grants and answers count from the moment
their bytes are durable, bills from the moment the provider computes them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ray_judge.escalation.books.accounts import Accounts
from ray_judge.escalation.books.ledger import LeaseSlot, Ledger
from ray_judge.escalation.online.permits import Need
from ray_judge.records import Outcome

from .loop import PROCESS, Process
from .plan import units
from .provider import COUNTED, OF_THE_ROW, SLOT, Request, verdict_of

if TYPE_CHECKING:
    from .night import Night

STOPS_WITHIN_S = 25.0
WINDOW_S = 0.25
"""Answers this old are durable: a crash may cost younger ones."""


class Broken(Exception):
    """A promise was not kept. The night ends with it."""


NANO = 10_000
"""Units in a nano-dollar."""


class _Grant(NamedTuple):
    """A lease whose record is durable: whose it is, and each slot's question and maximum.

    `known`: what had cost more than its lease, and was booked by then. `proven`: a verdict was.
    """

    actor: str
    keys: list[str]
    maxima: list[int]
    factor: int
    owner: Process
    known: frozenset[LeaseSlot]
    proven: bool


class _Told(NamedTuple):
    """An answer that costs more than its lease, as the journal has it: nano-dollars beyond it, and
    the thousandths by which leases are widened after it."""

    run: str
    slot: LeaseSlot
    excess: int
    factor: int


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
        self._sent: dict[LeaseSlot, Request] = {}
        self._told: list[_Told] = []
        self._overruns: list[Request] = []
        """What cost more than its lease."""
        self._final: dict[str, frozenset[Process]] = {}
        """Questions with a durable answer that ends them, and who need not know it: a refusal
        costs nothing, and is kept after its slot is free. Who owned the books by then read them
        before."""
        self._verdicts: dict[Process, int] = {}
        """Owner of the books → how many verdicts were booked under it."""
        self._in_flight: dict[Process, list[Request]] = {}
        self._factors = dict.fromkeys(plan.asks, 1000)
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
                self._granted[record["lease"]] = self._read_grant(record)
                self._check_ledgers()
            elif record["t"] == "answer":
                slot = record["lease"], record["slot"]
                if slot not in self._journaled:
                    self._journaled.add(slot)
                    self._check_answer(self._sent[slot], record)

    def _read_grant(self, record: Mapping[str, Any]) -> _Grant:
        """A grant is as wide as all that its owner has booked asks for."""
        owner, factor = PROCESS.get(), record["factor"]
        ledger = next(one for process, one in reversed(self.ledgers) if process is owner)
        known = [x for x in self._told if _closed(ledger._accounts, x.slot)]
        widest = max((x.factor for x in known if x.run == owner.run), default=1000)
        if factor != widest:
            self.fail(f"a lease is widened to {factor} thousandths, for what asks for {widest}")
        maxima = [int(nanos) * NANO for nanos in record["max"]]
        for key, most in zip(record.get("keys", []), maxima, strict=False):
            if key and most * 1000 < units(self._questions[key].max_cost_usd) * factor:
                self.fail("a lease is narrower than its factor says")
        slots = frozenset(x.slot for x in known)
        proven = self._verdicts.get(owner, 0) > 0
        return _Grant(record["actor"], record.get("keys", []), maxima, factor, owner, slots, proven)

    def _check_answer(self, request: Request, record: Mapping[str, Any]) -> None:
        """What the journal says of a request is what became of it."""
        key, cost = request.question.key, int(Decimal(record["cost_usd"]) * 10**9)
        here = request.arrived_at and not request.lost
        least = request.billed if here else min(request.billed, request.most)
        if request.lost and request.process is None:
            least = 0  # of a batch's lost results the dearest ones count, whichever they were
        if record["key"] != key or record.get("verdict") not in (None, verdict_of(key)):
            self.fail(f"another question's answer: {key[:6]}")
        if cost * NANO < least:
            self.fail(f"booked below its bill: {request.slot}")
        if "input_tokens" in record and not record["estimated"]:
            usage = record["input_tokens"], record["output_tokens"]
            told = request.told
            if told is None or usage != (told.input_tokens, told.output_tokens):
                self.fail(f"another answer's usage, or one that cannot be true: {key[:6]}")
        grant = self._granted[request.slot[0]]
        most = request.most // NANO
        if cost > most:
            factor = -(-cost * grant.factor // max(1, most))
            self._told.append(_Told(request.run, request.slot, cost - most, factor))
        if record["final"]:
            late = frozenset() if cost else frozenset(owner for owner, _ in self.ledgers)
            self._final[key] = self._final.get(key, late) & late
            if "verdict" not in record and not request.ends:
                self._check_end(request)

    def _check_end(self, request: Request) -> None:
        """A question ends without a verdict by its own fault alone."""
        if request.refused is not None and request.refused not in OF_THE_ROW:
            self.fail(f"ended for good by no fault of the question: {request.refused}")
        if not self._has_verdict(request.run):
            self.fail(f"ended for good before any verdict: {request.question.key[:6]}")

    def _has_verdict(self, run: str) -> bool:
        """Whether a usable answer to a question of this run has come."""
        there = (one for one in self._sent.values() if one.run == run and one.usable)
        return any(one.arrived_at and not one.lost for one in there)

    def _storage_failed(self, path: str) -> None:
        """An asker that can write no journal may lose what a crash may lose, no more."""
        process = PROCESS.get()
        self._night.note(process.name, f"storage failed at {path}")
        if path.startswith("journal/") and not path.startswith("journal/batch-"):
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
        self._check_exposure(process.run, lease)

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
        self._sent[slot], request.most = request, grant.maxima[slot[1]]
        if grant.owner not in self._final.get(question.key, (grant.owner,)):
            self.fail(f"asked after its last answer: {question.key[:6]}")
        if request.process is not None:
            self._check_opening(request, grant)
        if request.process is not None and self._is_unable_to_keep(request.process):
            self.fail(f"sent by a process whose journal cannot be written: {slot}")
        earlier = self._requests.setdefault(question.key, [])
        for before in earlier:
            if not self._excused(before):
                self.fail(f"asked twice: {question.key[:6]} under {before.slot} and {slot}")
        unusable = [r for r in earlier if r.arrived_at is not None and not r.usable and not r.lost]
        unusable = [one for one in unusable if one.proven]
        if sum(not self._unkept(r) for r in unusable) > self._plan.strong.reasks:
            self.fail(f"re-asked more often than configured: {question.key[:6]}")
        earlier.append(request)

    def _check_opening(self, request: Request, grant: _Grant) -> None:
        """One question until there is a verdict, sixteen until there are so many."""
        request.proven = SLOT.get().proven
        if grant.proven and not request.proven:
            self.fail("a server that gave a verdict is not believed to")
        verdicts = self._verdicts.get(grant.owner, 0)
        flying = [one for one in self._in_flight.get(grant.owner, []) if one.is_waited_for]
        if len(flying) >= (1 if not verdicts else 16) and verdicts < 16:
            self.fail(f"{len(flying) + 1} in flight after {verdicts} verdicts")
        self._in_flight[grant.owner] = [*flying, request]

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
        if len(keys) > 1 and not self._has_verdict(run):
            self.fail(f"a batch of {len(keys)} before any verdict")
        lease, requests = leases[0], []
        for number, key in enumerate(keys):
            self._expose((lease, number), self._granted[lease].maxima[number], run, None)
            request = Request(self._questions[key], None, run, (lease, number))
            self.sent(request)
            requests.append(request)
        self._check_exposure(run, lease)
        return requests

    def _excused(self, request: Request) -> bool:
        """Whether the same question may be asked again after this request."""
        unusable = request.arrived_at is not None and not request.usable and not request.ends
        if request.lost or unusable:
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
        if request.excess:
            self._overruns.append(request)
            if not self._plan.overbills and not self._plan.faults.outlier:
                self.fail(f"the bill of {request.slot} is above its maximum")
        self._uncover(request.slot)
        run, month = request.run, self._month()
        self._exposure[run] += request.billed
        self._billed[run] += request.billed
        self.bills += 1
        self.again += sum(r.billed > 0 for r in self._requests[request.question.key]) > 1
        self._billed_in[month] = self._billed_in.get(month, 0) + request.billed
        if self._billed[run] - self._excess(run) > self._cap:
            self.fail(f"billed {self._billed[run]}, the cap is {self._cap}")
        if self._monthly is not None and self._billed_in[month] - self._excess() > self._monthly:
            self.fail(f"billed {self._billed_in[month]} in {month}, its cap is {self._monthly}")

    def _excess(self, run: str | None = None, known: Container[LeaseSlot] = ()) -> int:
        """What was billed beyond leases, of one run or all, but for what is known."""
        return sum(
            one.excess for one in self._overruns if run in (None, one.run) and one.slot not in known
        )

    def _check_exposure(self, run: str, lease: str) -> None:
        """All that is billed and all that still can be, together, fit under the caps.

        But for what cost more than its lease: only what the grant's owner could not know of.
        """
        known = self._granted[lease].known if lease in self._granted else ()
        if self._exposure[run] - self._excess(run, known) > self._cap:
            self.fail(f"{self._exposure[run]} may be billed in all, the cap is {self._cap}")
        if self._monthly is not None:
            month = self._month()
            open_now = sum(self._exposure.values()) - sum(self._billed.values())
            this_month = open_now + self._billed_in.get(month, 0) - self._excess()
            if this_month > self._monthly:
                self.fail(f"{this_month} may be billed in {month}, its cap is {self._monthly}")

    def _month(self) -> str:
        return f"{datetime.fromtimestamp(self._night.now(), UTC):%Y-%m}"

    def settled(self, items: Sequence[tuple[str, int, Decimal]]) -> None:
        """A settlement reached the governor: the answer that it pays for is durable."""
        for lease, slot, cost in items:
            if cost and (lease, slot) not in self._journaled:
                self.fail(f"settled before it was in the journal: {(lease, slot)}")
            request = self._sent.get((lease, slot))
            if cost and request and not request.lost and request.refused not in (None, *COUNTED):
                self.fail(f"booked, though the provider said that it did nothing: {(lease, slot)}")

    def booked(self, process: Process, items: Sequence[tuple[str, int, Decimal]]) -> None:
        """The governor has taken a settlement."""
        for lease, slot, _ in items:
            request = self._sent[lease, slot]
            if request.usable and request.arrived_at and not request.is_booked:
                request.is_booked = True
                self._verdicts[process] = self._verdicts.get(process, 0) + 1

    def step(self) -> None:
        """Nobody's own accounts are over the cap: looked at now and then, and at every grant."""
        if self._loop.steps % 16 == 0:
            self._check_ledgers()

    def _check_ledgers(self) -> None:
        for process, ledger in self.ledgers:
            name, accounts = f"run:{process.run}", ledger._accounts
            used = accounts.used(name) - accounts.excess.get(name, 0)
            if used * NANO > self._cap:
                self.fail(f"a ledger holds {used} nano-dollars")

    def driver_ended(
        self, run: str, outcomes: Mapping[str, Outcome], accounts: Accounts, *, alone: bool
    ) -> None:
        """A run's command ends in good order: what it denied there was really no money for.

        `accounts`: as they are on the disk; they cover every bill. `alone`: nobody else was at
        work on these books meanwhile, who may have proven more, or spent it.
        """
        used = accounts.used(f"run:{run}") * NANO
        booked = {x.slot: x for x in self._told if _closed(accounts, x.slot)}
        if used < self._billed[run] - self._excess(run, booked):
            self.fail(f"the books count {used}, billed {self._billed[run]}")
        told = sum(one.excess for one in booked.values() if one.run == run)
        if (excess := accounts.excess.get(f"run:{run}", 0)) != told:
            self.fail(f"the books tell of {excess} beyond the leases, the journal of {told}")
        # What only the journal knows as yet may have been known to whoever denied.
        known = [x for x in self._told if x.run == run]
        unbooked = sum(x.excess for x in known if x.slot not in booked) * NANO
        used += unbooked
        self._factors[run] = max(accounts.factor(f"run:{run}"), *(x.factor for x in known), 0)
        months = [name for name in accounts.settled | accounts.held if name.startswith("month:")]
        spent = max((accounts.used(name) * NANO for name in months), default=0) + unbooked
        for key, outcome in outcomes.items():
            most = self._most(run, key)
            if outcome is Outcome.DENIED_BUDGET and alone and 0 < self._cap >= used + most:
                self.fail(f"denied with money left: {key[:6]}")
            if outcome is Outcome.PENDING and alone:
                enough = self._monthly is not None and spent + most <= self._monthly
                if self._monthly is None or (enough and not self.never(run, key)):
                    self.fail(f"left for the next month with money left: {key[:6]}")

    def _most(self, run: str, key: str) -> int:
        """What a lease for a question takes now."""
        nanos = units(self._questions[key].max_cost_usd) // NANO
        return -(-nanos * self._factors[run] // 1000) * NANO

    def never(self, run: str, key: str) -> bool:
        """Whether no month will ever have the money for a question."""
        enough = self._monthly and self._most(run, key) <= self._monthly
        return self._monthly is not None and not enough

    def stopped(self, driver: Process, accounts: Accounts, since: float) -> None:
        """A run that was told to stop has let go of everything in good order."""
        plan = self._plan
        if plan.crashes or plan.second or plan.p_fail or plan.p_pause or plan.p_slow:
            return
        for lease, opened in accounts.leases.items():
            owner = self._granted[lease].owner
            if driver in (owner, owner.parent) and not opened.actor.startswith("batch:"):
                self.fail(f"stopped, and money is still held by {opened.actor}")
        if driver.run not in plan.batch and self._loop.now > since + STOPS_WITHIN_S:
            self.fail("told to stop, and it goes on")

    # --- the end ---

    def run_ended(
        self, run: str, outcomes: Mapping[str, Outcome], verdicts: Mapping[str, Any]
    ) -> None:
        """Every question of a run has its outcome."""
        for question in self._plan.asks[run]:
            outcome = outcomes.get(question.key)
            if outcome is None:
                self.fail(f"no outcome for {question.key[:6]}")
            if outcome is Outcome.RESOLVED and verdicts[question.key] != verdict_of(question.key):
                self.fail(f"a wrong verdict for {question.key[:6]}")
            if outcome is Outcome.PENDING and not self.never(run, question.key):
                self.fail(f"left undone: {question.key[:6]}")
        overruns = sum(one.run == run for one in self._overruns)
        if self._plan.overbills and self._plan.is_calm and overruns > 1:
            self.fail(f"{overruns} answers cost more than their leases: only the first one may")


def _closed(accounts: Accounts, slot: LeaseSlot) -> bool:
    """Whether a slot was granted and is settled, as these accounts know."""
    series, _, number = slot[0].rpartition("-")
    lease = accounts.leases.get(slot[0])
    granted = int(number) <= accounts.granted.get(series, 0)
    return granted and (lease is None or slot[1] not in lease.slots)
