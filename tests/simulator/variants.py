"""Money systems that are broken on purpose: the simulator must find each of them out.

Each variant is the real code with one mistake, the kind that reviews let through. `FOUND` are
mistakes that the real code had until this simulator met them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from ray_judge.escalation.books.claims import claim_path

import ray_judge.escalation.books.ledger
from ray_judge.errors import LedgerFenced
from ray_judge.escalation.books.accounts import to_nanos
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.books.ledger import Lease, Ledger
from ray_judge.escalation.client import Kind
from ray_judge.escalation.online.asker import Slot
from ray_judge.escalation.online.governor import Governor, Need, Permit
from ray_judge.escalation.online.limiter import Feedback
from ray_judge.records import Answer
from ray_judge.storage.local import AppendLog

from .disk import SimStorage, _DiskLog
from .hosts import SLOT, RememberingAsker, WatchedPurse
from .night import Parts

MODULE: Any = ray_judge.escalation.books.ledger

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
        """See `Storage.log`."""
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
        """See `Ledger.settle`."""
        held = self._accounts.leases.get(lease)
        if held is None or slot not in held.slots:
            names = held.accounts if held else [self._run, self._month]
            for account in names:
                self._accounts.settled[account] -= to_nanos(cost_usd)
            return False
        return super().settle(lease, slot, cost_usd)


class FloatMoney(Ledger):
    """Dollars as floats, kept to the cent's ten-thousandth."""

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        """See `Ledger.settle`."""
        return super().settle(lease, slot, Decimal(str(round(float(cost_usd), 6))))


class RoundedDown(Ledger):
    """Costs rounded to the nano-dollar below: each bill is a little more than its cost."""

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        """See `Ledger.settle`."""
        return super().settle(lease, slot, max(Decimal(0), cost_usd - Decimal("1e-9")))


class PerActorCap(Ledger):
    """The "global" cap of so many libraries: each actor's own."""

    _actor = ""

    def propose(self, actor: str, max_costs_usd: Sequence[Decimal]) -> Lease:
        """See `Ledger.propose`."""
        self._actor = actor
        return super().propose(actor, max_costs_usd)

    def fitting(self, max_costs_usd: Sequence[Decimal]) -> int:
        """See `Ledger.fitting`."""
        return len(max_costs_usd)

    def _room(self, account: str) -> int:
        others = sum(h.amount for h in self._accounts.leases.values() if h.actor != self._actor)
        return super()._room(account) + others


class LostFencing(Ledger):
    """Never looks for a newer owner."""

    def commit(self) -> None:
        """See `Ledger.commit`."""
        self._check_owner()
        self._log.sync()


class FenceBeforeSync(Ledger):
    """Looks for a newer owner first and writes then: the newer one reads in between."""

    def commit(self) -> None:
        """See `Ledger.commit`."""
        self._check_owner()
        self._fenced = True
        if self._storage.exists(claim_path(self._path, self.epoch + 1)):
            raise LedgerFenced("a newer owner holds this ledger", epoch=self.epoch)
        self._log.sync()
        self._fenced = False


class ReadBeforeClaim(Ledger):
    """Reads what older owners granted, and claims the ledger after that."""

    @classmethod
    def open(cls, storage: Any, path: str = "ledger", **options: Any) -> Ledger:
        """See `Ledger.open`."""
        early = MODULE.recover(storage, path, 10**9)
        real = MODULE.recover
        MODULE.recover = lambda *_: early
        try:
            return super().open(storage, path, **options)
        finally:
            MODULE.recover = real


class ForgetsOpenLeases(Ledger):
    """Recovery takes what is settled and gives back all the rest."""

    @classmethod
    def open(cls, storage: Any, path: str = "ledger", **options: Any) -> Ledger:
        """See `Ledger.open`."""
        accounts = MODULE.recover(storage, path, 10**9)
        proven = dict.fromkeys(accounts.open_slots(), Decimal(0))
        options["journal_costs"] = {**proven, **options["journal_costs"]}
        return super().open(storage, path, **options)


class ForgetsSettled(Ledger):
    """Each owner begins a new account."""

    @classmethod
    def open(cls, storage: Any, path: str = "ledger", **options: Any) -> Ledger:
        """See `Ledger.open`."""
        ledger = super().open(storage, path, **options)
        ledger._accounts.settled.clear()
        return ledger


class ForgetsLateBills(Ledger):
    """FOUND: what was in flight at a crash and billed in the next month was in neither's sum."""

    def _roll(self) -> None:
        lost = {k: h.lost_at for k, h in self._accounts.leases.items() if h.lost_at is not None}
        for lease in lost:
            self._accounts.leases[lease].lost_at = 0.0
        super()._roll()
        for lease, at in lost.items():
            self._accounts.leases[lease].lost_at = at


@contextlib.contextmanager
def _recovering(change: Callable[[Any], None]) -> Iterator[None]:
    """Within it, what recovery finds is changed before anybody uses it."""
    real = MODULE.recover

    def changed(*args: Any) -> Any:
        accounts = real(*args)
        change(accounts)
        return accounts

    MODULE.recover = changed
    try:
        yield
    finally:
        MODULE.recover = real


class ProvenInTheOldMonth(Ledger):
    """FOUND: what the journal proved at a recovery was charged to the month of its lease only."""

    @classmethod
    def open(cls, storage: Any, path: str = "ledger", **options: Any) -> Ledger:
        """See `Ledger.open`."""
        proven = options["journal_costs"]

        def early(accounts: Any) -> None:
            for slot in accounts.open_slots():
                if slot in proven:
                    accounts.settle(*slot, to_nanos(proven[slot]))

        with _recovering(early):
            return super().open(storage, path, **options)


class LooksTooLate(Ledger):
    """FOUND: nobody owned the ledger in the hour around midnight, so that what was lost before it
    and billed behind it was in no sum of the new month, weeks later."""

    @classmethod
    def open(cls, storage: Any, path: str = "ledger", **options: Any) -> Ledger:
        """See `Ledger.open`."""
        now = options["clock"]()

        def forgetful(accounts: Any) -> None:
            for held in accounts.leases.values():
                if held.lost_at is not None and held.lost_at < now - 3600.0:
                    held.lost_at = 0.0

        with _recovering(forgetful):
            return super().open(storage, path, **options)


class NoMonthBorder(Ledger):
    """A lease that is open when the month ends is charged to the old month only."""

    def _roll(self) -> None:
        self._month = MODULE.month_of(self._clock())


# --- the asker ---


class SettleBeforeJournal(RememberingAsker):
    """Books an answer first and keeps it then."""

    async def _keep(self, answer: Answer) -> None:
        async def keep() -> None:
            await asyncio.sleep(0.02)
            await JournalWriter.put(self._journal, answer)

        self._kept = asyncio.ensure_future(keep())


class AmbiguousIsFree(RememberingAsker):
    """What did not come back was not billed, surely."""

    async def _failed(self, key: str, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        free = replace(slot, need=replace(slot.need, max_cost_usd=Decimal(0)))
        return await super()._failed(key, free, sent_at, failure, tries)


class ServerErrorIsFree(RememberingAsker):
    """A server that answers 500 has not billed, surely."""

    async def _failed(self, key: str, slot: Slot, sent_at: float, failure: Any, tries: Any) -> Any:
        if failure.kind is Kind.BROKEN:
            slot = replace(slot, need=replace(slot.need, max_cost_usd=Decimal(0)))
        return await super()._failed(key, slot, sent_at, failure, tries)


class PaysOnWithoutJournal(RememberingAsker):
    """FOUND: a journal that cannot be written stopped nobody."""

    async def _keep(self, answer: Answer) -> None:
        await self._journal.put(answer)


class ReleasesSentSlots(WatchedPurse):
    """Returns leave that is older than a moment, used or not."""

    async def slot(self, need: Need) -> Slot:
        """See `Purse.slot`."""
        slot = await super().slot(need)
        asyncio.get_running_loop().call_later(0.1, self.give_back, slot)
        return slot


class UsesSlotsTwice(WatchedPurse):
    """A slot whose request failed is as good as new."""

    _last: Slot | None = None

    def settle(self, slot: Slot, cost_usd: Decimal, feedback: Feedback) -> None:
        """See `Purse.settle`."""
        if cost_usd == 0:
            self._last = slot
        else:
            super().settle(slot, cost_usd, feedback)

    async def slot(self, need: Need) -> Slot:
        """See `Purse.slot`."""
        if self._last is not None and self._last.need == need:
            slot, self._last = self._last, None
            SLOT.set(slot)
            return slot
        return await super().slot(need)


class KeepsPermits(WatchedPurse):
    """Takes leave for all that it asked for, whatever was granted."""

    def _hand_out(self, permit: Permit, batch: Any) -> None:
        if permit.slots and permit.slots < len(batch):
            after = permit.send_after_s + permit.send_after_s[-1:] * (len(batch) - permit.slots)
            permit = replace(permit, slots=len(batch), send_after_s=after)
        super()._hand_out(permit, batch)


# --- the journal ---


class LazyJournal(JournalWriter):
    """Says that an answer is kept when it is buffered; syncs every two seconds."""

    _timer: Any = None

    async def put(self, answer: Answer) -> None:
        """See `JournalWriter.put`."""
        self.append(answer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(2.0, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self.sync()


class SlowJournal(JournalWriter):
    """Waits two seconds for company."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "linger_s": 2.0})


def _nothing(journal: Any) -> set[str]:
    return set()


def _all_rows(questions: Any) -> Any:
    return list(questions)


class DeniedForEver(WatchedPurse):
    """What this month's cap has no money for is denied as if it were the run's own cap."""

    def _hand_out(self, permit: Permit, batch: list[tuple[Need, asyncio.Future[Slot]]]) -> None:
        super()._hand_out(replace(permit, account=None), batch)


class LeavesTooMuch(WatchedPurse):
    """What the run's own cap has no money for waits for a month that will not bring any."""

    def _hand_out(self, permit: Permit, batch: list[tuple[Need, asyncio.Future[Slot]]]) -> None:
        account = "month:2026-11" if permit.denied else None
        super()._hand_out(replace(permit, account=account), batch)


VARIANTS: Mapping[str, Parts] = {
    "lease after call": Parts(governor=LeaseAfterCall),
    "no fsync": Parts(storage=NoFsync),
    "double settle": Parts(ledger=DoubleSettle),
    "float money": Parts(ledger=FloatMoney),
    "costs rounded down": Parts(ledger=RoundedDown),
    "per-actor cap": Parts(ledger=PerActorCap),
    "lost fencing": Parts(ledger=LostFencing),
    "fence before sync": Parts(ledger=FenceBeforeSync),
    "recovery reads before it claims": Parts(ledger=ReadBeforeClaim),
    "recovery forgets open leases": Parts(ledger=ForgetsOpenLeases),
    "recovery forgets what was settled": Parts(ledger=ForgetsSettled),
    "month border forgotten": Parts(ledger=NoMonthBorder),
    "journal not consulted": Parts(answered=_nothing),
    "re-asks begin anew": Parts(unusable=lambda journal: {}),
    "identical rows asked each": Parts(distinct=_all_rows),
    "settle before journal": Parts(asker=SettleBeforeJournal),
    "ambiguous time-out is free": Parts(asker=AmbiguousIsFree),
    "server error is free": Parts(asker=ServerErrorIsFree),
    "release of a sent slot": Parts(purse=ReleasesSentSlots),
    "a slot used twice": Parts(purse=UsesSlotsTwice),
    "more sent than granted": Parts(purse=KeepsPermits),
    "journal buffered only": Parts(journal=LazyJournal),
    "journal slower than 250 ms": Parts(journal=SlowJournal),
    "a full month denies for ever": Parts(purse=DeniedForEver),
    "a spent cap waits for next month": Parts(purse=LeavesTooMuch),
}

FOUND: Mapping[str, tuple[int, Parts]] = {
    "a failing journal stops nobody": (5, Parts(asker=PaysOnWithoutJournal)),
    "late bills of a lost lease": (9000, Parts(ledger=ForgetsLateBills)),
    "proven in the old month": (0, Parts(ledger=ProvenInTheOldMonth)),
    "late bills, looked at too late": (10_000, Parts(ledger=LooksTooLate)),
}
"""With the seed that found it. It moves when the plan of a night changes: look from there on."""
