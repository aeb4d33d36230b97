"""Money systems that are broken on purpose: the simulator must find each of them out.

Each variant is the real code with one mistake, the kind that reviews let through; those marked
FOUND were in the real code until the simulator met them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar
from unittest import mock

from ray_judge.errors import LedgerFenced, Stopped
from ray_judge.escalation import answers
from ray_judge.escalation.batch.courier import BatchCourier
from ray_judge.escalation.batch.first_questions import FirstQuestions
from ray_judge.escalation.books.accounts import Accounts, month_of, to_nanos, to_usd
from ray_judge.escalation.books.batches import BatchRecord, Stage
from ray_judge.escalation.books.books import Claim
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.books.ledger import Ledger, claim_path, recover
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.courier import OnlineCourier
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.online.limiter import Feedback
from ray_judge.escalation.online.permits import Need, Permit, Slot
from ray_judge.escalation.session import Session
from ray_judge.failures import Kind, RequestFailed
from ray_judge.records import Answer, Usage
from ray_judge.storage.local import AppendLog

from .disk import DiskLog, SimStorage
from .hosts import SimBooks, WatchedPermits
from .night import Parts
from .oracle import Oracle
from .plan import MONTH_END, Plan
from .provider import SLOT, Request

VARIANTS: dict[str, Parts] = {}
PART_OF = {real: part for part, real in vars(Parts()).items() if isinstance(real, type)}
T = TypeVar("T", bound=type)


def variant(name: str, **others: Any) -> Callable[[T], T]:
    """Put what is decorated among the variants, in place of the real part that it extends."""

    def keep(broken: T) -> T:
        part = next(PART_OF[base] for base in broken.__mro__ if base in PART_OF)
        VARIANTS[name] = Parts(**{part: broken, **others})
        return broken

    return keep


# --- the ledger ---


@variant("lease after call")
class LeaseAfterCall(Governor):
    """Permits go out first; the commit follows when there is time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        async def later(work: Callable[[], None]) -> None:
            asyncio.get_running_loop().call_later(0.05, _quietly, work)

        super().__init__(*args, off_loop=later, **options)


def _quietly(work: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):  # the mistake is made; who cares now
        work()


@variant("no fsync")
class NoFsync(SimStorage):
    """The page cache: bytes reach the disk when the next ones come, or get lost."""

    def log(self, path: str) -> AppendLog:
        log, cached = super().log(path), [b""]

        def put(data: bytes) -> None:
            cached.append(data)
            DiskLog._put(log, cached.pop(0))  # type: ignore[arg-type]

        if isinstance(log, DiskLog) and path.startswith("ledger/"):
            log._put = put  # type: ignore[method-assign]
        return log


@variant("double settle")
class DoubleSettle(Ledger):
    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        changed = super().settle(lease, slot, cost_usd)
        if not changed:
            for account in (self._run, self._month):
                self._accounts.settled[account] -= to_nanos(cost_usd)
        return changed


class EachActorsRoom(Ledger):
    """The "global" cap of so many libraries: each actor's own."""

    actor = ""

    def _room(self, account: str) -> int:
        others = sum(x.amount for x in self._accounts.leases.values() if x.actor != self.actor)
        return super()._room(account) + others


@variant("per-actor cap", ledger=EachActorsRoom)
class AsksForOneActor(Governor):
    def _offer(self, waiter: Any, now: float) -> Any:
        vars(self._ledger)["actor"] = waiter.actor
        return super()._offer(waiter, now)


@variant("fence before sync")
class FenceBeforeSync(Ledger):
    """Looks for a newer owner first and writes then: the newer one reads in between."""

    def commit(self) -> None:
        self._check_owner()
        self._fenced = True
        if self._storage.exists(claim_path(self.epoch + 1)):
            raise LedgerFenced("a newer owner holds this ledger", epoch=self.epoch)
        self._log.sync()
        self._fenced = False


@contextlib.contextmanager
def _lost_long_ago(accounts: Accounts, before: float) -> Iterator[None]:
    """Within it, leases that were lost before this time were so for ever."""
    lost = [(x, x.lost_at) for x in accounts.leases.values() if (x.lost_at or math.inf) < before]
    for lease, _ in lost:
        lease.lost_at = 0.0
    yield
    for lease, at in lost:
        lease.lost_at = at


def _at_midnight(plan: Plan) -> Plan:
    """A month ends while the first questions are asked, answers are late, and much dies."""
    monthly = plan.monthly_cap_usd or plan.cap_usd / 2
    return replace(
        plan,
        start=MONTH_END - 1.0,
        monthly_cap_usd=monthly,
        faults=replace(plan.faults, late=0.3),
        busy=(0.0, 0.0),
        gone_after=None,
        overbills=0.0,
        moderated=frozenset(),
        crashes=4,
        steps_between_crashes=60,
    )


@variant("late bills of a lost lease", plan=_at_midnight)
class ForgetsLateBills(Ledger):
    """FOUND: what was in flight at a crash and billed in the next month was in neither's sum."""

    def _roll(self) -> None:
        with _lost_long_ago(self._accounts, math.inf):
            super()._roll()


def _spent_before_midnight(plan: Plan) -> Plan:
    """What is left waits for a month; who died is known to be dead."""
    plan, start = _at_midnight(plan), MONTH_END - 8.0
    return replace(plan, start=start, monthly_cap_usd=plan.cap_usd / 4, far=False)


@variant("late bills, looked at too late", plan=_spent_before_midnight)
class LooksTooLate(Ledger):
    """FOUND: nobody owned the ledger in the hour around midnight, so that what was lost before it
    and billed behind it was in no sum of the new month, weeks later."""

    def __init__(self, storage: Any, epoch: int, accounts: Accounts, *args: Any) -> None:
        with _lost_long_ago(accounts, args[2]() - 3600.0):
            super().__init__(storage, epoch, accounts, *args)


# --- claiming the books ---


class ChangedBooks(SimBooks):
    """What recovery finds is changed before anybody uses it."""

    def change(self, accounts: Accounts) -> Any:
        """The mistake. What it returns, if it does, is used instead."""

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        def changed(*args: Any) -> Any:
            accounts = recover(*args)
            return self.change(accounts) or accounts

        with mock.patch("ray_judge.escalation.books.books.recover", changed):
            return super().claim(owner, nonce)


@variant("recovery forgets open leases")
class ForgetsOpenLeases(ChangedBooks):
    def change(self, accounts: Accounts) -> None:
        for lease, opened in list(accounts.leases.items()):
            for slot in list(opened.slots):
                accounts.settle(lease, slot, 0)


@variant("recovery forgets the questions")
class ForgetsQuestions(ChangedBooks):
    def change(self, accounts: Accounts) -> None:
        for opened in accounts.leases.values():
            opened.slots.update({slot: ("", most) for slot, (_, most) in opened.slots.items()})


@variant("proven in the old month", plan=_at_midnight)
class ProvenInTheOldMonth(ChangedBooks):
    """FOUND: what the journal proved at a recovery was charged to the month of its lease only."""

    def change(self, accounts: Accounts) -> None:
        for (lease, slot), cost in self.journal().paid(accounts.leases).items():
            accounts.settle(lease, slot, to_nanos(cost))


@variant("recovery reads before it claims")
class ReadsBeforeItClaims(ChangedBooks):
    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        self._early = recover(self.storage)
        return super().claim(owner, nonce)

    def change(self, accounts: Accounts) -> Accounts:
        return self._early


# --- the session ---


@variant("what is in flight is forgotten")
class ForgetsWhatFlies(Session):
    async def recheck(self) -> bool:
        self.aside = {key: q for key, q in self.aside.items() if key in self.batched}
        return False


@variant("no look after the claim")
class NoLookAfterClaim(Session):
    """Goes by the journal as it was before the books were claimed."""

    _was_owner = False

    async def look(self) -> None:
        asked, before = [*self.waiting.values(), *self.aside.values()], self._answered
        await super().look()
        if self._owner and not self._was_owner:
            self._answered = before
            self.put(asked)
        self._was_owner = self._owner


@variant("journal not consulted")
class JournalUnread(Session):
    async def look(self) -> None:
        asked = [*self.waiting.values(), *self.aside.values()]
        await super().look()
        self._answered = set()
        self.put(asked)


# --- batches ---


@variant("a batch created again")
class CreatesAgain(BatchCourier):
    """A creation that was not answered is taken for one that did not happen."""

    async def _find(self, record: BatchRecord) -> bool:
        await self._abandon(record)
        return False


@variant("a batch looked for once")
class LooksOnce(BatchCourier):
    async def _find(self, record: BatchRecord) -> bool:
        self._provider.find = self._provider._listed  # type: ignore[method-assign]
        return await super()._find(record)


@variant("batches forgotten at a restart")
class ForgetsBatches(BatchCourier):
    async def open(self) -> Claim:
        claim = await super().open()
        for record in list(self._pending.values()):
            await self._abandon(record)
        return claim


@variant("a batch's missing results are free")
class MissingIsFree(BatchCourier):
    async def _read(self, session: Session, record: BatchRecord, view: Any) -> None:
        read: Any = self._results.read
        free: Any = lambda *args, **options: read(*args, **{**options, "billed": 0})
        self._results.read = free  # type: ignore[method-assign]
        await super()._read(session, record, view)


# --- the asker ---


@variant("settle before journal")
class SettleBeforeJournal(Asker):
    async def _keep(self, answer: Answer) -> None:
        async def keep() -> None:
            await asyncio.sleep(0.02)
            await self._journal.put(answer)

        self._kept = asyncio.ensure_future(keep())


@variant("ambiguous time-out is free")
class AmbiguousIsFree(Asker):
    free = Kind.AMBIGUOUS

    async def _failed(self, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        if failure.kind is self.free:
            slot = replace(slot, max_cost_usd=Decimal(0))
        return await super()._failed(slot, sent_at, failure, tries)


@variant("server error is free")
class BrokenIsFree(AmbiguousIsFree):
    free = Kind.BROKEN


@variant("release of a sent slot")
class ReleasesSentSlots(WatchedPermits):
    async def slot(self, need: Need) -> Slot:
        slot = await super().slot(need)
        asyncio.get_running_loop().call_later(0.1, self.give_back, slot)
        return slot


@variant("a slot used twice")
class UsesSlotsTwice(WatchedPermits):
    """A slot whose request was refused is as good as new."""

    _last: Slot | None = None

    def settle(self, slot: Slot, cost_usd: Decimal, feedback: Feedback) -> None:
        super().settle(slot, cost_usd, feedback)
        self._last = None if cost_usd else slot

    async def slot(self, need: Need) -> Slot:
        if self._last is not None and self._last.need == need:
            slot, self._last = self._last, None
            SLOT.set(slot)
            return slot
        return await super().slot(need)


@variant("more sent than granted")
class KeepsPermits(WatchedPermits):
    def _hand_out(self, permit: Permit, batch: Any, since: float) -> None:
        if permit.slots and permit.slots < len(batch):
            after = permit.send_after_s + permit.send_after_s[-1:] * (len(batch) - permit.slots)
            permit = replace(permit, slots=len(batch), send_after_s=after)
        super()._hand_out(permit, batch, since)


@variant("journal buffered only")
class LazyJournal(JournalWriter):
    _timer: Any = None

    async def put(self, answer: Answer) -> None:
        self.append(answer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(2.0, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self.sync()


# --- mistakes of one line ---


def but(real: type, **attributes: Any) -> type:
    """The real part with other methods."""
    return type(f"Broken{real.__name__}", (real,), attributes)


def fixed(value: Any) -> Any:
    """An attribute that is this, whatever is said."""
    return property(lambda self: value, lambda self, told: None)


ONE_LINERS: Mapping[str, Any] = {
    "float money": but(
        Ledger,
        settle=lambda self, lease, slot, cost: Ledger.settle(
            self, lease, slot, Decimal(str(round(float(cost), 6)))
        ),
    ),
    "costs rounded down": but(
        Ledger,
        settle=lambda self, lease, slot, cost: Ledger.settle(
            self, lease, slot, max(Decimal(0), cost - Decimal("1e-9"))
        ),
    ),
    "lost fencing": but(Ledger, commit=lambda self: self._log.sync()),
    "month border forgotten": but(
        Ledger, _roll=lambda self: setattr(self, "_month", month_of(self._clock()))
    ),
    "denied while money may come back": but(
        Ledger,
        best_usd=lambda self: {
            name.partition(":")[0]: to_usd(self._room(name)) for name in self._names()
        },
    ),
    "a grant without its questions": but(
        Ledger,
        propose=lambda self, actor, needs: Ledger.propose(
            self, actor, [("", cost) for _, cost in needs]
        ),
    ),
    "recovery forgets what was settled": but(
        ChangedBooks, change=lambda self, accounts: accounts.settled.clear()
    ),
    "pending batches are lost": but(SimBooks, _pending_batches=lambda self, accounts: {}),
    "a successor asks at once": but(Session, _is_elsewhere=lambda self, key: key in self.batched),
    "another run's batch is asked again": but(
        Session, _is_elsewhere=lambda self, key: key in self._in_flight
    ),
    "all processes are taken for dead": but(Session, _is_dead=fixed(lambda _: True)),
    "no silence is waited for": but(Session, _quiet_s=fixed(0.0)),
    "identical rows asked each": but(
        Session,
        _unknown=lambda self, questions: list(questions),
        put=lambda self, questions: self.waiting.update(
            {
                f"{q.key} {number}": q
                for number, q in enumerate(questions)
                if not {q.key} & (self._answered | self.outcomes.keys())
            }
        ),
    ),
    "a full month denies for ever": but(
        Session, deny=lambda self, best: Session.deny(self, {"run": min(best.values())})
    ),
    "a spent cap waits for next month": but(
        Session, deny=lambda self, best: Session.deny(self, {"month": min(best.values())})
    ),
    "re-asks begin anew": but(Session, in_vain=fixed({})),
    "a creation is not on record": but(
        BatchCourier,
        _step=lambda self, record, stage, **found: BatchCourier._step(
            self, record, Stage.INTENT if stage is Stage.CREATING else stage, **found
        ),
    ),
    "a batch booked before it is kept": but(
        BatchCourier,
        _keep=lambda self, answers: asyncio.get_running_loop().call_later(
            0.05, BatchCourier._keep, self, answers
        ),
    ),
    # FOUND: what cannot be kept is paid for again.
    "a failing journal stops nobody": but(
        Asker, _keep=lambda self, answer: self._journal.put(answer)
    ),
    "journal slower than 250 ms": but(JournalWriter, _linger_s=fixed(2.0)),
}
for _name, _broken in ONE_LINERS.items():
    variant(_name)(_broken)
variant(
    "logs of living writers are folded",
    plan=lambda plan: replace(plan, compacts=True, second=True, locks=False),
)(but(SimBooks, compact=lambda self, may_fold: SimBooks.compact(self, may_fold=bool)))

# --- servers as there are ---


@variant("what is beyond a lease is not booked")
class BooksNoMoreThanItsLease(Ledger):
    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        opened = self._accounts.leases.get(lease)
        if opened is not None and slot in opened.slots:
            cost_usd = min(cost_usd, to_usd(opened.slots[slot][1]))
        return super().settle(lease, slot, cost_usd)


@variant("the first moderated row ends the run")
class DeniesForAll(Asker):
    """FOUND: where it was the first one asked, it ended every run again."""

    async def _failed(self, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        if failure.kind is Kind.DENIED and not slot.proven:
            failure.status = 401
        return await super()._failed(slot, sent_at, failure, tries)


@variant("a lost key is each row's fault")
class BlamesTheRow(Asker):
    async def _failed(self, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        if failure.kind is Kind.DENIED:
            failure.status = 403
        return await super()._failed(slot, sent_at, failure, tries)

    async def keep_doubtful(self, answered: float | None = None, *, sound: bool = True) -> None:
        self._doubtful = [(answer, False) for answer, _ in self._doubtful]
        await super().keep_doubtful(answered, sound=sound)


@variant("final before any verdict")
class ProvenFromTheStart(WatchedPermits):
    def _hand_out(self, permit: Permit, batch: Any, since: float) -> None:
        super()._hand_out(replace(permit, proven=True), batch, since)


@variant("told to stop, it drops what is in flight")
class StopsAtOnce(OnlineCourier):
    async def _step(self, session: Session) -> bool:
        if session.stopping:
            raise Stopped("stopped")
        return await super()._step(session)


def asks_the_cut_again(*args: Any, last: bool, **options: Any) -> Answer:
    answer = answers.read_answer(*args, last=last, **options)
    return answer if answer.verdict is not None else replace(answer, final=last)


def believes_any_usage(document: Any) -> Usage | None:
    told = document.get("usage")
    return told and Usage(told["prompt_tokens"], told["completion_tokens"])


def counts_what_is_shown(
    maker: Any, key: str, bound: int, reply: Any, *rest: Any, **more: Any
) -> Any:
    """FOUND: an answer that was cut, or is empty, costs more than its text."""
    if reply.usage is None:
        text = (reply.text or "") + (reply.refusal or "")
        reply = replace(reply, usage=Usage(bound, len(text), estimated=True))
    return answers.read_answer(maker, key, bound, reply, *rest, **more)


def takes_all_for(kind: Kind) -> Callable[..., RequestFailed]:
    return lambda status, error, headers: RequestFailed(kind, "an error inside")


def blames_the_row(self: Any, failure: RequestFailed, sent: Any) -> None:
    """FOUND: one row that is refused in words, too, made all later ones fail by the schema."""
    if failure.kind in (Kind.NO_SCHEMA, Kind.ROW) and failure.status in (400, 422):
        by_schema = "response_format" in sent
        doubts = by_schema and not self._knows_schema
        self.in_words, self._knows_schema = doubts, self._knows_schema or not by_schema
        failure.kind = Kind.NO_SCHEMA if doubts else Kind.ROW


def goes_by_ids(self: Any, name: str | None, body: Any, text: str) -> tuple[bool, bool]:
    question, repeated = id(body["messages"]), name in self._answers
    return name is None or self._answers.setdefault(name, question) == question, repeated


ANSWERS, ONLINE = "ray_judge.escalation.answers", "ray_judge.escalation.online"
CLIENT, ACCOUNTS = "ray_judge.escalation.client", "ray_judge.escalation.books.accounts.Accounts"
OF_SERVERS: Mapping[str, Mapping[str, Any]] = {
    "leases are never widened": {f"{ACCOUNTS}.factor": lambda self, account: 1000},
    "a usage of zero is believed": {
        f"{ANSWERS}._usage": believes_any_usage,
        f"{ANSWERS}.BYTES_PER_TOKEN": math.inf,
    },
    "only what is shown is counted": {f"{ONLINE}.asker.read_answer": counts_what_is_shown},
    "an error inside is a lost answer": {f"{ANSWERS}.failure_of": takes_all_for(Kind.AMBIGUOUS)},
    "an error inside is never billed": {f"{ANSWERS}.failure_of": takes_all_for(Kind.TRANSIENT)},
    "a cut answer is asked again": {f"{ONLINE}.asker.read_answer": asks_the_cut_again},
    "answers are told apart by ids alone": {f"{CLIENT}.SeenIds.look": goes_by_ids},
    "ids are not looked at": {f"{CLIENT}.SeenIds.look": lambda *_: (True, False)},
    "nothing but 429 is waited out": {
        f"{ONLINE}.limiter.Limiter.down_s": lambda self, now: (
            now - (self._circuit.down_since or now)
        )
    },
    "a run begins at full speed": {f"{ONLINE}.limiter.Opening.most": math.inf},
}
VARIANTS.update({name: Parts(patches=patches) for name, patches in OF_SERVERS.items()})
VARIANTS["the schema is never at fault"] = Parts(
    patches={f"{CLIENT}.StrongClient._doubt_schema": blames_the_row},
    plan=lambda plan: replace(plan, schemas=False, faults=replace(plan.faults, row_refused=0.1)),
)
variant("batches begin at full speed")(but(FirstQuestions, proven=fixed(True)))
for _forgotten in ("excess", "factors"):
    variant(f"recovery forgets {_forgotten}")(
        but(
            ChangedBooks,
            change=lambda self, accounts, name=_forgotten: getattr(accounts, name).clear(),
        )
    )

# --- the oracle ---


class ExcusingOracle(Oracle):
    """Excuses whatever a process of another session did: what the simulator must not do."""

    _now: Request

    def sent(self, request: Request) -> None:
        self._now = request
        super().sent(request)

    def _excused(self, request: Request) -> bool:
        before, now = request.process, self._now.process
        other = before is not None and now is not None and before.parent is not now.parent
        return other or super()._excused(request)


FOUND_FROM: Mapping[str, int] = {
    "late bills of a lost lease": 150,
    "journal slower than 250 ms": 160,
    "a batch looked for once": 310,
    "re-asks begin anew": 320,
    "only what is shown is counted": 550,
    "recovery reads before it claims": 590,
    "a creation is not on record": 670,
    "proven in the old month": 900,
}
"""Where to begin with a variant that takes long to find; all are found from 0 within 1,000 too.

`python -m tests.simulator --variants` prints the seeds; they move when the nights change.
"""
