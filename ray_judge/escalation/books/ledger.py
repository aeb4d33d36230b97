"""The ledger: money is promised here, durably, before any request that it pays for is sent.

The promise: for every cap, Σ open slots at their maximum + Σ settled slots at their cost ≤ cap,
at every instant, under any crash, however many owners believe the ledger to be theirs.

Files, under `path`:

    claim-<epoch>      created exclusively by the owner of that epoch; never removed
    <epoch>.log        lines (`lines.py`): first a snapshot of all that came before, then grants
                       and settlements

Why no interleaving of owners grants over the cap
-------------------------------------------------
Call a grant *acknowledged* when `commit` returned after it. Nobody sends a request under a lease
that was not acknowledged.

1. Owner e creates `claim-e`. The create is exclusive, so an epoch has one owner.
2. Only after that does e read the logs of all older epochs, newest first, down to the first one
   that begins with a sound snapshot.
3. To acknowledge a grant, e makes it durable in `e.log` and *then* looks whether `claim-(e+1)`
   exists; if so it raises `LedgerFenced` and acknowledges nothing. Claims are numbered without
   gaps and never removed, so looking for e+1 finds every newer owner.

Let e acknowledge a grant and let f > e be a later owner. When e looked, `claim-(e+1)` did not
exist; claims are created in order, so neither did `claim-f`. Hence the grant was durable before
`claim-f` was created, hence before f read `e.log`, or before the owner between them, whose
snapshot f reads, did: f counts the grant. So every owner counts every grant that was ever
acknowledged before its own first one, and refuses what does not fit beside them. Grants that were
written but not acknowledged may be counted or not: both are safe, because no request was sent
under them. An owner that wakes up late can still write to its own log; nobody is told of it.

Recovery counts an open slot as spent at its maximum, except where the journal holds the answer
that the slot paid for. That is exact because a slot pays for one request and is never used again.
Settlements are therefore written without waiting: losing one in a crash only makes recovery more
careful. A settlement that freed money for a grant is in front of that grant in the same log, so
the grant cannot survive without it.

On the storage see `storage.py`: local disks, S3 and GCS; no network file system.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate

from ray_judge.errors import ConfigError, LedgerFenced, StorageError
from ray_judge.escalation.books.accounts import Accounts, month_of, to_nanos, to_usd
from ray_judge.escalation.books.claims import claim, claim_path, epoch_of, log_path, recover
from ray_judge.escalation.books.lines import LineLog, log_names
from ray_judge.storage.local import Storage

OWNERS_IN_A_ROW = 3
LeaseSlot = tuple[str, int]
"""A slot: (lease id, number of the slot in the lease, from 0)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Money for the first `slots` of the requests that were asked for.

    With no slot granted, `denied` tells apart "never" (true: not even if everything that is open
    came back for nothing) from "not now" (false: open leases may free enough). `account` is then
    what was short: `run:<name>` or `month:<yyyy-mm>`.
    """

    id: str
    slots: int
    amount_usd: Decimal
    denied: bool = False
    account: str | None = None


class Ledger:
    """One owner's view of the ledger. Single-threaded: one governor serves it."""

    def __init__(
        self,
        storage: Storage,
        path: str,
        epoch: int,
        accounts: Accounts,
        caps: Mapping[str, int],
        run: str,
        clock: Callable[[], float],
        series: str,
    ) -> None:
        """Use `Ledger.open`."""
        self.epoch = epoch
        self._storage = storage
        self._path = path
        self._accounts = accounts
        self._caps = caps
        self._run = f"run:{run}"
        self._clock = clock
        self._series = series
        self._count = 0
        self._month = month_of(clock())
        self._fenced = False
        self._log = LineLog(storage.log(log_path(path, epoch)))
        self._log.append({"t": "snapshot", **accounts.to_json()})

    @classmethod
    def open(
        cls,
        storage: Storage,
        path: str = "ledger",
        *,
        cap_usd: Decimal,
        owner: str,
        journal_costs: Mapping[LeaseSlot, Decimal],
        clock: Callable[[], float] = time.time,
        run: str = "run",
        monthly_cap_usd: Decimal | None = None,
        nonce: str | None = None,
    ) -> Ledger:
        """Take ownership, recover, and make the recovered state durable.

        `cap_usd` caps all that was ever spent under the name `run`; `monthly_cap_usd` caps each
        UTC month over every run in this ledger. `journal_costs`: what the journal proves, by slot.
        `clock` gives Unix seconds. `nonce` must be unique to this call.
        Raises `ConfigError` (a cap that is no amount), `CorruptedError`, `LedgerFenced` (another
        owner came in the meantime), `StorageError`.
        """
        caps = {f"run:{run}": _cap(cap_usd, "cap_usd")}
        if monthly_cap_usd is not None:
            caps["month"] = _cap(monthly_cap_usd, "monthly_cap_usd")
        series = nonce or secrets.token_hex(6)
        epoch = claim(storage, path, owner, series, clock())
        accounts = recover(storage, path, epoch)
        # Requests of the lost leases may have been billed up to now: this month counts them too,
        # also where the journal proves what they cost.
        now = clock()
        accounts.charge_also(month_of(now))
        for lease, slot in accounts.open_slots():
            if (lease, slot) in journal_costs:
                accounts.settle(lease, slot, to_nanos(journal_costs[lease, slot]))
        accounts.orphan(now)
        ledger = cls(storage, path, epoch, accounts, caps, run, clock, series)
        ledger.commit()
        ledger._forget_older()
        return ledger

    # --- granting ---

    def grant(self, actor: str, max_costs_usd: Sequence[Decimal]) -> Lease:
        """Grant the longest prefix of `max_costs_usd` that fits; durable when it returns."""
        lease = self.propose(actor, max_costs_usd)
        if lease.slots:
            self.commit()
        return lease

    def propose(self, actor: str, max_costs_usd: Sequence[Decimal]) -> Lease:
        """As `grant`, but nothing may be sent under the lease before `commit` has returned."""
        self._check_owner()
        self._roll()
        names = [self._run, self._month]
        sums = list(accumulate(to_nanos(cost) for cost in max_costs_usd))
        fitting = self._fitting(sums)
        if not fitting:
            return self._refusal(names, sums[0] if sums else 0)
        maxima = [total - before for before, total in zip([0, *sums], sums[:fitting], strict=False)]
        self._count += 1
        lease = f"{self._series}-{self._count}"
        self._accounts.grant(lease, actor, maxima, names)
        costs = [str(to_usd(m)) for m in maxima]
        self._log.append({"t": "grant", "lease": lease, "actor": actor, "max": costs, "to": names})
        return Lease(lease, fitting, to_usd(sums[fitting - 1]))

    def fitting(self, max_costs_usd: Sequence[Decimal]) -> int:
        """How many of the first of these a grant would cover now; changes nothing."""
        self._roll()
        return self._fitting(list(accumulate(to_nanos(cost) for cost in max_costs_usd)))

    def _fitting(self, sums: Sequence[int]) -> int:
        if any(cap == 0 for cap in self._caps.values()):
            return 0  # a cap of zero grants nothing, not even what is free
        room = min(self._room(self._run), self._room(self._month))
        return sum(total <= room for total in sums)

    def commit(self) -> None:
        """Make every proposed grant durable, then make sure that no newer owner exists.

        The order matters: see the proof above. Raises `LedgerFenced` or `StorageError`, after
        which this object grants nothing more.
        """
        self._check_owner()
        self._fenced = True  # until the steps below have succeeded
        self._log.sync()
        if self._storage.exists(claim_path(self._path, self.epoch + 1)):
            raise LedgerFenced("a newer owner holds this ledger", epoch=self.epoch)
        self._fenced = False

    def _check_owner(self) -> None:
        if self._fenced:
            raise LedgerFenced("this owner lost the ledger or its storage", epoch=self.epoch)

    def _cap_of(self, account: str) -> int | None:
        return self._caps.get("month" if account.startswith("month:") else account)

    def _room(self, account: str) -> int:
        cap = self._cap_of(account)
        return 10**30 if cap is None else cap - self._accounts.used(account)

    def _refusal(self, names: list[str], need: int) -> Lease:
        """Nothing fits: name the account that is shortest, and say whether waiting can help."""
        for name in names:
            best = self._room(name) + self._accounts.returnable(name)
            if self._cap_of(name) == 0 or best < need:
                return Lease("", 0, Decimal(0), denied=True, account=name)
        shortest = min(names, key=self._room)
        return Lease("", 0, Decimal(0), account=shortest)

    def _roll(self) -> None:
        """When a UTC month begins, charge the leases that are open across the border to it too."""
        month = month_of(self._clock())
        if month != self._month:
            now = self._clock()
            self._log.append({"t": "month", "to": month, "at": now})
            self._accounts.charge_also(month)
            self._month = month

    # --- settling ---

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        """The request of this slot cost `cost_usd`. False when the slot was settled before.

        Durable with the next `commit` or `flush`, in order. Raises `EscalationError` for a lease
        that this ledger never granted.
        """
        cost = to_nanos(cost_usd)
        self._roll()
        changed = self._accounts.settle(lease, slot, cost)
        if changed:
            text = str(to_usd(cost))
            self._log.append({"t": "settle", "lease": lease, "slot": slot, "cost": text})
        return changed

    def release(self, lease: str, slots: Sequence[int]) -> None:
        """Give back slots under which no request was or ever will be sent."""
        for slot in slots:
            self.settle(lease, slot, Decimal(0))

    def forsake(self, actor: str, journal_costs: Mapping[LeaseSlot, Decimal]) -> None:
        """The actor died: settle what the journal proves, count the rest of its slots as spent."""
        for lease, slot in self.open_slots(actor):
            if (lease, slot) in journal_costs:
                self.settle(lease, slot, journal_costs[lease, slot])
        now = self._clock()
        self._accounts.orphan(now, actor)
        self._log.append({"t": "orphan", "actor": actor, "at": now})

    def adopt(self, actor: str) -> None:
        """An actor of an earlier epoch is alive: its leases may still be settled and come back."""
        self._roll()
        now = self._clock()
        self._accounts.adopt(actor)
        self._accounts.charge_also(self._month)
        self._log.append({"t": "adopt", "actor": actor, "to": self._month, "at": now})

    def flush(self) -> None:
        """Make settlements durable without waiting for the next grant."""
        if self._log.unsynced:
            self.commit()

    def close(self) -> None:
        """Write a final snapshot and let go. The claim stays: the next owner takes the next."""
        if self._fenced:
            with contextlib.suppress(StorageError):  # nobody reads this log any more
                self._log.close()
            return
        self._fenced = True
        self._log.append({"t": "snapshot", **self._accounts.to_json()})
        self._log.close()

    # --- looking ---

    @property
    def spent_usd(self) -> Decimal:
        """Settled under this run's name, by the usage that the provider reported."""
        return to_usd(self._accounts.settled.get(self._run, 0))

    @property
    def open_usd(self) -> Decimal:
        """Promised under this run's name and not settled, lost leases included."""
        return to_usd(self._accounts.held.get(self._run, 0))

    @property
    def lost_usd(self) -> Decimal:
        """The part of `open_usd` whose actors are gone: counted as spent."""
        return self.open_usd - to_usd(self._accounts.returnable(self._run))

    @property
    def cap_usd(self) -> Decimal:
        """This run's cap."""
        return to_usd(self._caps[self._run])

    @property
    def overruns(self) -> int:
        """How many answers cost more than their slot's maximum: should be zero."""
        return self._accounts.overruns

    def month_usd(self) -> Decimal:
        """Settled and open in the current UTC month, over all runs."""
        self._roll()
        return to_usd(self._accounts.used(self._month))

    def open_slots(self, actor: str) -> list[LeaseSlot]:
        """The slots that the actor has not settled."""
        return self._accounts.open_slots(actor)

    def _forget_older(self) -> None:
        """Remove logs that this owner's durable snapshot replaces."""
        for log, parts in log_names(self._storage.list(self._path)).items():
            if epoch_of(log) < self.epoch:
                for part in reversed(parts):
                    self._storage.delete(part)


def recorded(
    storage: Storage, path: str = "ledger", *, run: str = "run"
) -> tuple[Decimal, Decimal]:
    """Read, without owning anything: (settled, promised and never settled), US dollars.

    Both count against the cap. When no owner is at work the second is money that a crash left
    unproven.
    """
    accounts = _looked_at(storage, path)
    name = f"run:{run}"
    return to_usd(accounts.settled.get(name, 0)), to_usd(accounts.held.get(name, 0))


def _looked_at(storage: Storage, path: str) -> Accounts:
    for _ in range(OWNERS_IN_A_ROW):
        try:
            return recover(storage, path, sys.maxsize)
        except LedgerFenced:
            continue  # a new owner removed what we had listed: list again
    return recover(storage, path, sys.maxsize)


def _cap(amount: Decimal, name: str) -> int:
    try:
        return to_nanos(amount, up=False)
    except ConfigError as error:
        raise ConfigError(f"{name} must be a finite Decimal, zero or more", got=amount) from error
