"""Money systems that are broken on purpose: the simulator must find each of them out.

Each variant is the real code with one mistake, the kind that reviews let through; those marked
FOUND were in the real code until the simulator met them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import ray_judge.escalation.books.books
from ray_judge.errors import LedgerFenced
from ray_judge.escalation.batch.courier import BatchCourier
from ray_judge.escalation.batch.records import BatchRecord, Stage
from ray_judge.escalation.books.accounts import Accounts, month_of, to_nanos, to_usd
from ray_judge.escalation.books.books import Claim
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.books.ledger import Lease, Ledger, claim_path
from ray_judge.escalation.failures import Kind
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.online.limiter import Feedback
from ray_judge.escalation.online.permits import Need, Permit, Slot
from ray_judge.escalation.questions import Question
from ray_judge.escalation.session import Session
from ray_judge.records import Answer, Outcome
from ray_judge.storage.local import AppendLog

from .disk import SimStorage, _DiskLog
from .hosts import SLOT, SimBooks, WatchedPermits
from .night import Parts
from .oracle import Oracle
from .provider import Request

BOOKS: Any = ray_judge.escalation.books.books

# --- the ledger ---


class LeaseAfterCall(Governor):
    """Permits go out first; the commit follows when there is time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        async def later(work: Callable[[], None]) -> None:
            def quietly() -> None:
                with contextlib.suppress(Exception):  # the mistake is made; who cares now
                    work()

            asyncio.get_running_loop().call_later(0.05, quietly)

        super().__init__(*args, off_loop=later, **options)


class NoFsync(SimStorage):
    """The ledger's log is written and never synced: a crash takes the last seconds with it."""

    def log(self, path: str) -> AppendLog:
        log = super().log(path)
        if isinstance(log, _DiskLog) and path.startswith("ledger/"):
            log._put = _LazyDisk(log)  # type: ignore[method-assign]
        return log


class _LazyDisk:
    """The page cache: bytes reach the disk when the next ones come, or get lost."""

    def __init__(self, log: _DiskLog) -> None:
        self._log, self._cached = log, b""

    def __call__(self, data: bytes) -> None:
        if self._cached:
            _DiskLog._put(self._log, self._cached)
        self._cached = data


class DoubleSettle(Ledger):
    """A settlement that is delivered twice frees the money twice."""

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        changed = super().settle(lease, slot, cost_usd)
        if not changed:
            for account in (self._run, self._month):
                self._accounts.settled[account] -= to_nanos(cost_usd)
        return changed


class FloatMoney(Ledger):
    """Dollars as floats, kept to the cent's ten-thousandth."""

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        return super().settle(lease, slot, Decimal(str(round(float(cost_usd), 6))))


class RoundedDown(Ledger):
    """Costs rounded to the nano-dollar below: each bill is a little more than its cost."""

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        return super().settle(lease, slot, max(Decimal(0), cost_usd - Decimal("1e-9")))


class EachActorsRoom(Ledger):
    """The "global" cap of so many libraries: each actor's own. With `AsksForOneActor`."""

    actor = ""

    def _room(self, account: str) -> int:
        others = sum(x.amount for x in self._accounts.leases.values() if x.actor != self.actor)
        return super()._room(account) + others


class AsksForOneActor(Governor):
    """Tells the ledger whose cap it is."""

    def _offer(self, waiter: Any, now: float) -> Any:
        vars(self._ledger)["actor"] = waiter.actor
        return super()._offer(waiter, now)


class LostFencing(Ledger):
    """Never looks for a newer owner."""

    def commit(self) -> None:
        self._check_owner()
        self._log.sync()


class FenceBeforeSync(Ledger):
    """Looks for a newer owner first and writes then: the newer one reads in between."""

    def commit(self) -> None:
        self._check_owner()
        self._fenced = True
        if self._storage.exists(claim_path(self.epoch + 1)):
            raise LedgerFenced("a newer owner holds this ledger", epoch=self.epoch)
        self._log.sync()
        self._fenced = False


class NoMonthBorder(Ledger):
    """A lease that is open when the month ends is charged to the old month only."""

    def _roll(self) -> None:
        self._month = month_of(self._clock())


@contextlib.contextmanager
def _lost_long_ago(accounts: Accounts, before: float) -> Iterator[None]:
    """Within it, leases that were lost before this time were so for ever."""
    lost = [(x, x.lost_at) for x in accounts.leases.values() if (x.lost_at or math.inf) < before]
    for lease, _ in lost:
        lease.lost_at = 0.0
    yield
    for lease, at in lost:
        lease.lost_at = at


class ForgetsLateBills(Ledger):
    """FOUND: what was in flight at a crash and billed in the next month was in neither's sum."""

    def _roll(self) -> None:
        with _lost_long_ago(self._accounts, math.inf):
            super()._roll()


class LooksTooLate(Ledger):
    """FOUND: nobody owned the ledger in the hour around midnight, so that what was lost before it
    and billed behind it was in no sum of the new month, weeks later."""

    def __init__(self, storage: Any, epoch: int, accounts: Accounts, *args: Any) -> None:
        with _lost_long_ago(accounts, args[2]() - 3600.0):
            super().__init__(storage, epoch, accounts, *args)


class DeniesTooSoon(Ledger):
    """Money in open leases is taken for spent: none of it will come back."""

    def best_usd(self) -> dict[str, Decimal]:
        return {
            name.partition(":")[0]: to_usd(room)
            for name in self._names()
            if (room := self._room(name)) < 10**18
        }


class NoKeysInGrants(Ledger):
    """A grant is written without its questions: who comes next does not know what is in flight."""

    def propose(self, actor: str, needs: Sequence[tuple[str, Decimal]]) -> Lease:
        return super().propose(actor, [("", cost) for _, cost in needs])


# --- claiming the books ---


class ChangedBooks(SimBooks):
    """What recovery finds is changed before anybody uses it."""

    def change(self, accounts: Accounts) -> None:
        """The mistake."""

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        real = BOOKS.recover

        def changed(*args: Any) -> Any:
            accounts = real(*args)
            self.change(accounts)
            return accounts

        BOOKS.recover = changed
        try:
            return super().claim(owner, nonce)
        finally:
            BOOKS.recover = real


class ForgetsOpenLeases(ChangedBooks):
    """Recovery takes what is settled and gives back all the rest."""

    def change(self, accounts: Accounts) -> None:
        for lease, opened in list(accounts.leases.items()):
            for slot in list(opened.slots):
                accounts.settle(lease, slot, 0)


class ForgetsSettled(ChangedBooks):
    """Each owner begins a new account."""

    def change(self, accounts: Accounts) -> None:
        accounts.settled.clear()


class ForgetsQuestions(ChangedBooks):
    """Recovery keeps the money of open leases, and forgets what they asked."""

    def change(self, accounts: Accounts) -> None:
        for opened in accounts.leases.values():
            opened.slots.update({slot: ("", most) for slot, (_, most) in opened.slots.items()})


class ProvenInTheOldMonth(ChangedBooks):
    """FOUND: what the journal proved at a recovery was charged to the month of its lease only."""

    def change(self, accounts: Accounts) -> None:
        for (lease, slot), cost in self.journal().paid(accounts.leases).items():
            accounts.settle(lease, slot, to_nanos(cost))


class ReadsBeforeItClaims(SimBooks):
    """Reads what older owners granted, and claims the books after that."""

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        early, real = BOOKS.recover(self.storage), BOOKS.recover
        BOOKS.recover = lambda *_: early
        try:
            return super().claim(owner, nonce)
        finally:
            BOOKS.recover = real


class BatchesAreLost(SimBooks):
    """A pending batch's lease is given up like any other."""

    def _pending_batches(self, accounts: Accounts) -> dict[str, str]:
        return {}


class RecordsBeforeTheClaim(SimBooks):
    """Which batches are pending is read first, and the books are claimed after that."""

    _early: Mapping[str, str] = {}

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Any, Claim]:
        self._early = super()._pending_batches(BOOKS.recover(self.storage))
        return super().claim(owner, nonce)

    def _pending_batches(self, accounts: Accounts) -> dict[str, str]:
        return dict(self._early)


class FoldsLivingLogs(SimBooks):
    """Folds the journal's logs of writers that may be alive."""

    def compact(self, *, may_fold: Callable[[str], bool], token: str | None = None) -> int:
        return super().compact(may_fold=lambda _: True, token=token)


# --- the session ---


class AsksAtOnce(Session):
    """A successor asks what its predecessor's living processes have in flight."""

    def _is_elsewhere(self, key: str) -> bool:
        return key in self.batched


class AsksWhatOthersBatched(Session):
    """What another run's pending batch asks is asked again."""

    def _is_elsewhere(self, key: str) -> bool:
        return key in self._in_flight


class NoLookAfterClaim(Session):
    """Goes by the journal as it was before the books were claimed."""

    _was_owner = False

    async def look(self) -> None:
        asked = [*self.waiting.values(), *self.aside.values()]
        before = self._answered, self.in_vain
        await super().look()
        if self._owner and not self._was_owner:
            self._answered, self.in_vain = before
            self.put(asked)
        self._was_owner = self._owner


class JournalUnread(Session):
    """Asks everything, whatever the journal holds."""

    async def look(self) -> None:
        asked = [*self.waiting.values(), *self.aside.values()]
        await super().look()
        self._answered = set()
        self.put(asked)


class ForgetsWhatFlies(Session):
    """What may be in flight is not asked, and never looked at again."""

    async def recheck(self) -> bool:
        self.aside = {key: q for key, q in self.aside.items() if key in self.batched}
        return False


class ReasksBeginAnew(Session):
    """How often a question was asked in vain is forgotten with each session."""

    async def look(self) -> None:
        await super().look()
        self.in_vain = {}


class IdenticalRowsAsked(Session):
    """Identical rows are asked each."""

    def _unknown(self, questions: Iterable[Question]) -> list[Question]:
        return list(questions)

    def put(self, questions: Iterable[Question]) -> None:
        for number, question in enumerate(questions):
            if question.key not in self._answered and question.key not in self.outcomes:
                self.waiting[f"{question.key} {number}"] = question


class DeniesForEver(Session):
    """What this month's cap has no money for is denied as if it were the run's own cap."""

    def deny(self, best_usd: Mapping[str, Decimal]) -> None:
        super().deny({"run": min(best_usd.values())})


class LeavesTooMuch(Session):
    """What the run's own cap has no money for waits for a month that will not bring any."""

    def deny(self, best_usd: Mapping[str, Decimal]) -> None:
        super().deny(best_usd)
        denied = [key for key, what in self.outcomes.items() if what is Outcome.DENIED_BUDGET]
        self.outcomes.update(dict.fromkeys(denied, Outcome.PENDING))


# --- batches ---


class CreatesAgain(BatchCourier):
    """A creation that was not answered is taken for one that did not happen."""

    async def _find(self, record: BatchRecord) -> bool:
        await self._abandon(record)
        return False


class ForgetsBatches(BatchCourier):
    """What was submitted before a restart is abandoned."""

    async def open(self) -> Claim:
        claim = await super().open()
        for record in list(self._pending.values()):
            await self._abandon(record)
        return claim


class CreationNotOnRecord(BatchCourier):
    """A batch is created before its record says that it may be."""

    async def _step(self, record: BatchRecord, stage: Stage, **found: Any) -> BatchRecord:
        if stage is Stage.CREATING:
            stage = Stage.INTENT
        return await super()._step(record, stage, **found)


class LooksOnce(BatchCourier):
    """A batch that the list does not show at the first look was never created."""

    async def _find(self, record: BatchRecord) -> bool:
        self._provider.find = self._provider._listed  # type: ignore[method-assign]
        return await super()._find(record)


class BookedBeforeKept(BatchCourier):
    """The answers of a batch are booked first and kept then."""

    def _keep(self, answers: Sequence[Any]) -> None:
        asyncio.get_running_loop().call_later(0.05, super()._keep, answers)


class MissingIsFree(BatchCourier):
    """A request of a batch that is in neither of its files was not billed, surely."""

    async def _read(self, session: Session, record: BatchRecord, view: Any) -> None:
        real = self._results.read
        self._results.read = _with(real, billed=0)  # type: ignore[method-assign]
        await super()._read(session, record, view)


# --- the asker ---


class SettleBeforeJournal(Asker):
    """Books an answer first and keeps it then."""

    async def _keep(self, answer: Answer) -> None:
        async def keep() -> None:
            await asyncio.sleep(0.02)
            await JournalWriter.put(self._journal, answer)

        self._kept = asyncio.ensure_future(keep())


class AmbiguousIsFree(Asker):
    """What did not come back was not billed, surely."""

    async def _failed(self, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        free = replace(slot, need=replace(slot.need, max_cost_usd=Decimal(0)))
        return await super()._failed(free, sent_at, failure, tries)


class ServerErrorIsFree(Asker):
    """A server that answers 500 has not billed, surely."""

    async def _failed(self, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        if failure.kind is Kind.BROKEN:
            slot = replace(slot, need=replace(slot.need, max_cost_usd=Decimal(0)))
        return await super()._failed(slot, sent_at, failure, tries)


class PaysOnWithoutJournal(Asker):
    """FOUND: a journal that cannot be written stopped nobody."""

    async def _keep(self, answer: Answer) -> None:
        await self._journal.put(answer)


class ReleasesSentSlots(WatchedPermits):
    """Returns leave that is older than a moment, used or not."""

    async def slot(self, need: Need) -> Slot:
        slot = await super().slot(need)
        asyncio.get_running_loop().call_later(0.1, self.give_back, slot)
        return slot


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


class KeepsPermits(WatchedPermits):
    """Takes leave for all that it asked for, whatever was granted."""

    def _hand_out(self, permit: Permit, batch: Any, since: float) -> None:
        if permit.slots and permit.slots < len(batch):
            after = permit.send_after_s + permit.send_after_s[-1:] * (len(batch) - permit.slots)
            permit = replace(permit, slots=len(batch), send_after_s=after)
        super()._hand_out(permit, batch, since)


# --- the journal ---


class LazyJournal(JournalWriter):
    """Says that an answer is kept when it is buffered; syncs every two seconds."""

    _timer: Any = None

    async def put(self, answer: Answer) -> None:
        self.append(answer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(2.0, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self.sync()


# --- the oracle ---


class ExcusingOracle(Oracle):
    """Excuses whatever a process of another session did: what the simulator must not do."""

    _now: Request

    def sent(self, request: Request) -> None:
        self._now = request
        super().sent(request)

    def _excused(self, request: Request) -> bool:
        before, now = request.process, self._now.process
        other = before is not None and now is not None and before.driver is not now.driver
        return other or super()._excused(request)


def _with(real: Any, **wrong: Any) -> Any:
    """The real part, told something wrong."""
    return lambda *args, **options: real(*args, **{**options, **wrong})


VARIANTS: Mapping[str, Parts] = {
    "lease after call": Parts(governor=LeaseAfterCall),
    "no fsync": Parts(storage=NoFsync),
    "double settle": Parts(ledger=DoubleSettle),
    "float money": Parts(ledger=FloatMoney),
    "costs rounded down": Parts(ledger=RoundedDown),
    "per-actor cap": Parts(ledger=EachActorsRoom, governor=AsksForOneActor),
    "lost fencing": Parts(ledger=LostFencing),
    "fence before sync": Parts(ledger=FenceBeforeSync),
    "month border forgotten": Parts(ledger=NoMonthBorder),
    "a grant without its questions": Parts(ledger=NoKeysInGrants),
    "recovery reads before it claims": Parts(books=ReadsBeforeItClaims),
    "recovery forgets open leases": Parts(books=ForgetsOpenLeases),
    "recovery forgets what was settled": Parts(books=ForgetsSettled),
    "late bills of a lost lease": Parts(ledger=ForgetsLateBills),
    "proven in the old month": Parts(books=ProvenInTheOldMonth),
    "late bills, looked at too late": Parts(ledger=LooksTooLate),
    "denied while money may come back": Parts(ledger=DeniesTooSoon),
    "recovery forgets the questions": Parts(books=ForgetsQuestions),
    "batch records read before the claim": Parts(books=RecordsBeforeTheClaim),
    "pending batches are lost": Parts(books=BatchesAreLost),
    "logs of living writers are folded": Parts(books=FoldsLivingLogs),
    "a successor asks at once": Parts(session=AsksAtOnce),
    "all processes are taken for dead": Parts(session=_with(Session, is_dead=lambda _: True)),
    "no silence is waited for": Parts(session=_with(Session, quiet_s=0.0)),
    "a silence as long as a request": Parts(session=_with(Session, quiet_s=5.0)),
    "what is in flight is forgotten": Parts(session=ForgetsWhatFlies),
    "another run's batch is asked again": Parts(session=AsksWhatOthersBatched),
    "no look after the claim": Parts(session=NoLookAfterClaim),
    "journal not consulted": Parts(session=JournalUnread),
    "re-asks begin anew": Parts(session=ReasksBeginAnew),
    "identical rows asked each": Parts(session=IdenticalRowsAsked),
    "a full month denies for ever": Parts(session=DeniesForEver),
    "a spent cap waits for next month": Parts(session=LeavesTooMuch),
    "a batch created again": Parts(batch=CreatesAgain),
    "batches forgotten at a restart": Parts(batch=ForgetsBatches),
    "a creation is not on record": Parts(batch=CreationNotOnRecord),
    "a batch looked for once": Parts(batch=LooksOnce),
    "a batch booked before it is kept": Parts(batch=BookedBeforeKept),
    "a batch's missing results are free": Parts(batch=MissingIsFree),
    "settle before journal": Parts(asker=SettleBeforeJournal),
    "ambiguous time-out is free": Parts(asker=AmbiguousIsFree),
    "server error is free": Parts(asker=ServerErrorIsFree),
    "a failing journal stops nobody": Parts(asker=PaysOnWithoutJournal),
    "release of a sent slot": Parts(permits=ReleasesSentSlots),
    "a slot used twice": Parts(permits=UsesSlotsTwice),
    "more sent than granted": Parts(permits=KeepsPermits),
    "journal buffered only": Parts(journal=LazyJournal),
    "journal slower than 250 ms": Parts(journal=_with(JournalWriter, linger_s=2.0)),
}

FOUND_FROM: Mapping[str, int] = {}
"""The seed near which a variant is found that takes long; else 0."""
