"""The ledger: money is promised here, durably, before any request that it pays for is sent.

The promise: for every cap, Σ open slots at their maximum + Σ settled slots at their cost ≤ cap,
at every instant, under any crash, however many owners believe the ledger to be theirs.

Files, in `ledger/`:

    claim-<epoch>      created exclusively by the owner of that epoch; never removed
    <epoch>.log        lines (`lines.py`): first a snapshot of all that came before, then grants
                       (with the question of each slot) and settlements; money in nano-dollars

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

On the storage see `storage/local.py`: local disks, S3 and GCS; no network file system.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Any, NamedTuple

from ray_judge.errors import AlreadyExists, CorruptedError, LedgerFenced, StorageError
from ray_judge.escalation.books.accounts import (
    AS_IT_IS,
    Accounts,
    Excess,
    month_of,
    to_nanos,
    to_usd,
)
from ray_judge.escalation.books.lines import LineLog, log_names, read_listed, read_log
from ray_judge.storage.local import Storage

FOLDER = "ledger"
LeaseSlot = tuple[str, int]
"""Which money a request used: a lease's id, and the number of a slot in it, from 0."""
_NO_CAP = 10**30


class Lease(NamedTuple):
    """Money for the first `slots` of the requests that were asked for, maybe for none.

    Each holds `factor` thousandths of what was asked for: see `Accounts.settle`.
    """

    id: str
    slots: int
    factor: int = AS_IT_IS


class HeldSlot(NamedTuple):
    """An open slot: the question that it pays for, and the most that it may cost."""

    lease: str
    slot: int
    key: str
    max_usd: Decimal


class Ledger:
    """One owner's view of the ledger; `Books.claim` makes it. Single-threaded."""

    def __init__(
        self,
        storage: Storage,
        epoch: int,
        accounts: Accounts,
        caps: Mapping[str, int],
        run: str,
        clock: Callable[[], float],
        series: str,
    ) -> None:
        """Begin the log of `epoch` with a snapshot of `accounts`, durable with the next commit.

        `caps`: nano-dollars of this run (`run:<name>`) and, where there is such a cap, of each
        `month`, over all runs. `series`: what the names of this owner's leases begin with.
        """
        self.epoch, self._storage, self._accounts = epoch, storage, accounts
        # A cap of zero grants nothing, not even what is free.
        self._caps = {name: cap or -1 for name, cap in caps.items()}
        self._run, self._series, self._count = f"run:{run}", series, 0
        self._at_work: set[str] = set()
        self._clock, self._month, self._fenced = clock, month_of(clock()), False
        # Requests of lost leases may have been billed up to now: this month counts them too, also
        # where the journal proves later what they cost.
        accounts.charge_also(self._month)
        self._log = LineLog(storage.log(f"{FOLDER}/{epoch:08d}.log"))
        self._log.append({"t": "snapshot", **accounts.to_json()})

    # --- granting ---

    def grant(self, actor: str, needs: Sequence[tuple[str, Decimal]]) -> Lease:
        """Grant the longest prefix of `needs` that fits; durable when it returns.

        `needs`: (key of the question, the most that its request can cost in USD).
        """
        lease = self.propose(actor, needs)
        if lease.slots:
            self.commit()
        return lease

    def propose(self, actor: str, needs: Sequence[tuple[str, Decimal]]) -> Lease:
        """As `grant`, but nothing may be sent under the lease before `commit` has returned."""
        self._check_owner()
        self._roll()
        maxima = self._widened([cost for _, cost in needs])
        fitting = self._fitting(maxima)
        if not fitting:
            return Lease("", 0)
        names, keys, maxima = self._names(), [key for key, _ in needs[:fitting]], maxima[:fitting]
        self._count += 1
        self._at_work.add(actor)
        lease, factor = f"{self._series}-{self._count}", self._accounts.factor(self._run)
        self._accounts.grant(lease, actor, [*zip(keys, maxima, strict=True)], names, factor)
        record = {"lease": lease, "actor": actor, "max": maxima, "keys": keys, "to": names}
        self._log.append({"t": "grant", **record, "factor": factor})
        return Lease(lease, fitting, factor)

    def fitting(self, max_costs_usd: Sequence[Decimal]) -> int:
        """How many of the first of these a grant would cover now; changes nothing."""
        self._roll()
        return self._fitting(self._widened(max_costs_usd))

    def _widened(self, max_costs_usd: Sequence[Decimal]) -> list[int]:
        factor = self._accounts.factor(self._run)
        return [-(-to_nanos(cost) * factor // AS_IT_IS) for cost in max_costs_usd]

    def best_usd(self) -> dict[str, Decimal]:
        """The most that this owner could ever grant to one request, if all came back that may.

        By cap: `run`, and `month` where there is such a cap. Below zero: not even what is free.
        In dollars as a request asks for them: what it is widened by is taken off.
        """
        self._roll()
        best = {}
        for name in self._names():
            if (room := self._room(name)) < _NO_CAP:
                nanos = room + self._accounts.returnable(name, self._at_work)
                asked = nanos * AS_IT_IS // self._accounts.factor(self._run)
                best[name.partition(":")[0]] = to_usd(asked)
        return best

    def commit(self) -> None:
        """Make every proposed grant durable, then make sure that no newer owner exists: see above.

        Raises `LedgerFenced` or `StorageError`, after which this object grants nothing more.
        """
        self._check_owner()
        self._fenced = True  # until the steps below have succeeded
        self._log.sync()
        if self._storage.exists(claim_path(self.epoch + 1)):
            raise LedgerFenced("a newer owner holds this ledger", epoch=self.epoch)
        self._fenced = False

    def _check_owner(self) -> None:
        if self._fenced:
            raise LedgerFenced("this owner lost the ledger or its storage", epoch=self.epoch)

    def _names(self) -> list[str]:
        return [self._run, self._month]

    def _room(self, account: str) -> int:
        cap = self._caps.get("month" if account.startswith("month:") else account)
        return _NO_CAP if cap is None else cap - self._accounts.used(account)

    def _fitting(self, maxima: Sequence[int]) -> int:
        room = min(map(self._room, self._names()))
        return sum(total <= room for total in accumulate(maxima))

    def _roll(self) -> None:
        """When a UTC month begins, charge the leases that are open across the border to it too."""
        month = month_of(self._clock())
        if month != self._month:
            self._log.append({"t": "month", "to": month})
            self._accounts.charge_also(month)
            self._month = month

    def expect(self, actor: str) -> None:
        """What this actor of an earlier owner holds may come back: it is at work for this one."""
        self._at_work.add(actor)

    # --- settling ---

    def settle(self, lease: str, slot: int, cost_usd: Decimal) -> bool:
        """As `Accounts.settle`; durable with the next `commit`, in order."""
        cost = to_nanos(cost_usd)
        self._roll()
        changed = self._accounts.settle(lease, slot, cost)
        if changed:
            self._log.append({"t": "settle", "lease": lease, "slot": slot, "cost": cost})
        return changed

    def release(self, lease: str, slots: Sequence[int]) -> None:
        """Give back slots under which no request was or ever will be sent."""
        for slot in slots:
            self.settle(lease, slot, Decimal(0))

    def close(self) -> None:
        """Write a final snapshot and let go. The claim stays: the next owner takes the next."""
        fenced, self._fenced = self._fenced, True
        if not fenced:
            self._log.append({"t": "snapshot", **self._accounts.to_json()})
        # Nobody reads the log of an owner that was fenced.
        with contextlib.suppress(StorageError) if fenced else contextlib.nullcontext():
            self._log.close()

    # --- looking ---

    @property
    def spent_usd(self) -> Decimal:
        return to_usd(self._accounts.settled.get(self._run, 0))

    @property
    def open_usd(self) -> Decimal:
        """Promised under this run's name and not settled, lost leases included."""
        return to_usd(self._accounts.held.get(self._run, 0))

    @property
    def lost_usd(self) -> Decimal:
        """The part of `open_usd` whose actors are lost: counted as spent."""
        return self.open_usd - to_usd(self._accounts.returnable(self._run, self._at_work))

    @property
    def cap_usd(self) -> Decimal:
        return to_usd(max(0, self._caps[self._run]))

    @property
    def excess(self) -> Excess:
        return self._accounts.excess_of(self._run)

    def month_usd(self) -> Decimal:
        """Settled and open in the current UTC month, over all runs."""
        self._roll()
        return to_usd(self._accounts.used(self._month))

    def held(self, actor: str) -> list[HeldSlot]:
        """The slots that an actor has not settled."""
        return [
            HeldSlot(lease, slot, key, to_usd(most))
            for lease, opened in self._accounts.leases.items()
            if opened.actor == actor
            for slot, (key, most) in opened.slots.items()
        ]


# --- files ---


def claim_path(epoch: int) -> str:
    return f"{FOLDER}/claim-{epoch:08d}"


def _epoch_of(log: str) -> int:
    stem = log.removeprefix(f"{FOLDER}/").removesuffix(".log")
    if not stem.isdigit():
        raise CorruptedError("a file that is not the ledger's", file=log)
    return int(stem)


def create_claim(storage: Storage, owner: str, nonce: str, now: float) -> int:
    """Create the first free claim and give its epoch. `nonce` must be unique to this call."""
    claims = [p.rsplit("-", 1)[-1] for p in storage.list(FOLDER) if "/claim-" in p]
    epoch = max((int(text) for text in claims if text.isdigit()), default=0)
    data = json.dumps({"owner": owner, "nonce": nonce, "at": round(now, 3)}).encode()
    while True:
        epoch += 1
        try:
            storage.create(claim_path(epoch), data)
        except AlreadyExists:
            # Taken, unless it is our own claim whose confirmation was lost on the way.
            if storage.read(claim_path(epoch)) != data:
                continue
        return epoch


def recover(storage: Storage, before: int = sys.maxsize) -> Accounts:
    """The state that all epochs `before` this one have acknowledged. Raises `CorruptedError`.

    Where a newer owner has removed their logs meanwhile, nothing can be acknowledged on it.
    """

    def read(paths: Sequence[str]) -> Accounts:
        logs = log_names(paths)
        for log in sorted(logs, key=_epoch_of, reverse=True):
            # A log without records: its owner died before its snapshot, and acknowledged nothing.
            if _epoch_of(log) < before and (records := read_log(storage, log, logs[log])):
                return _replay(records, log)
        return Accounts()

    return read_listed(storage, FOLDER, read)


def _replay(records: Sequence[Mapping[str, Any]], log: str) -> Accounts:
    accounts = Accounts()
    for line, record in enumerate(records, start=1):
        kind = record.get("t")
        if line == 1 and kind != "snapshot":
            raise CorruptedError("the log does not begin with a snapshot", file=log)
        if kind == "snapshot":
            accounts = Accounts.from_json(record)
        elif kind == "grant":
            slots = [*zip(record["keys"], record["max"], strict=True)]
            accounts.grant(record["lease"], record["actor"], slots, record["to"], record["factor"])
        elif kind == "settle":
            accounts.settle(record["lease"], record["slot"], record["cost"])
        elif kind == "month":
            accounts.charge_also(record["to"])
        else:
            raise CorruptedError(f"an unknown kind of record: {kind}", file=log, line=line)
    return accounts


def forget_older(storage: Storage, epoch: int) -> None:
    """Remove logs that the durable snapshot of this epoch replaces."""
    for log, parts in log_names(storage.list(FOLDER)).items():
        if _epoch_of(log) < epoch:
            for part in reversed(parts):
                storage.delete(part)
