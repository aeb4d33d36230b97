"""The books of a run, or of the runs that share `strong.books`: ledger and journal in one place.

    <place>/ledger/       every dollar that was promised, and for which question (`ledger.py`)
    <place>/journal/      every answer, and what it cost (`journal.py`)
    <place>/batches/      a record of each batch (`batches.py`)
    <place>/asking.lock   held by the one run that asks, where several share the books

The books have one owner at a time. Whoever claims them learns of every question that earlier
owners' processes, or pending batches, may still be asking.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from ray_judge.config import RunConfig
from ray_judge.errors import PausedError
from ray_judge.escalation.books.accounts import Accounts, Excess, to_nanos, to_usd
from ray_judge.escalation.books.batches import ACTOR, BatchRecord, load_record, path_of
from ray_judge.escalation.books.journal import Journal, JournalWriter, compact, load_journal
from ray_judge.escalation.books.ledger import Ledger, create_claim, forget_older, recover
from ray_judge.storage.local import Missing, Storage, open_storage
from ray_judge.storage.lock import locked

STORE_LINGER_S = 0.1
"""Answers wait so long for company on an object store: every sync is a request to pay for."""


class InFlight(NamedTuple):
    """Who asked a question whose answer is not known, and when that actor was given up."""

    actor: str
    lost_at: float
    """Unix seconds, by the clock of the owner that claimed the books then."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the new owner of the books learns, read after its claim.

    `at`: when the claim was made, Unix seconds: earlier owners have let nothing out since.
    `in_flight`: question key → its latest open slot, of an actor that is no pending batch.
    `batched`: question key → id of the pending batch that asks it. `proven`: the journal has a
    verdict that this run paid for.
    """

    epoch: int
    at: float
    in_flight: Mapping[str, InFlight]
    batched: Mapping[str, str]
    proven: bool = False


class Books:
    """Ledger and journal: one place, one owner, one lock. It pickles."""

    owner_type: type[Ledger] = Ledger
    """What `claim` makes."""

    def __init__(
        self,
        storage: Storage,
        *,
        shared: bool,
        run: str,
        cap_usd: Decimal,
        monthly_cap_usd: Decimal | None = None,
        limit: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Touch nothing yet. Raises ConfigError for a cap that is no amount of money.

        `run`: under which name dollars are kept; `cap_usd` caps all that was ever spent under it,
        `monthly_cap_usd` each UTC month over all runs. `limit`: output tokens of a request.
        `clock`: Unix seconds.
        """
        self.storage, self.shared, self.run, self._limit = storage, shared, run, limit
        self.cap_usd, self.monthly_cap_usd, self._clock = cap_usd, monthly_cap_usd, clock
        self._caps = {f"run:{run}": to_nanos(cap_usd, up=False)}
        if monthly_cap_usd is not None:
            self._caps["month"] = to_nanos(monthly_cap_usd, up=False)

    @classmethod
    def of(cls, config: RunConfig, clock: Callable[[], float] = time.time) -> Books:
        """The books that a configuration names: `strong.books`, or the run directory."""
        strong = config.strong
        return cls(
            open_storage(strong.books or config.output),
            shared=strong.books is not None,
            run=config.output if strong.books else "run",
            cap_usd=strong.max_cost_usd,
            monthly_cap_usd=strong.max_cost_usd_per_month,
            limit=strong.max_output_tokens,
            clock=clock,
        )

    # --- owning ---

    def claim(self, owner: str, nonce: str | None = None) -> tuple[Ledger, Claim]:
        """Become the owner: claim, recover, read the journal, give up lost actors, commit.

        What the journal proves is settled; every other open slot counts as spent at its maximum,
        except those of pending batches, which live on. `owner` is for people; `nonce` must be
        unique to this call. Raises `LedgerFenced` (another owner came in the meantime),
        `CorruptedError`, `StorageError`.
        """
        series = nonce or secrets.token_hex(6)
        epoch, at = create_claim(self.storage, owner, series, self._clock()), self._clock()
        accounts = recover(self.storage, epoch)
        journal = self.journal()
        paid = journal.paid(accounts.leases)
        batches = self._pending_batches(accounts)
        accounts.take_over(at, batches)
        ledger = self.owner_type(
            self.storage, epoch, accounts, self._caps, self.run, self._clock, series
        )
        for (lease, slot), cost_usd in paid.items():
            ledger.settle(lease, slot, cost_usd)
        ledger.commit()
        forget_older(self.storage, epoch)
        claim = _read_claim(epoch, at, accounts, batches)
        return ledger, replace(claim, proven=journal.usable(self.run) > 0)

    def _pending_batches(self, accounts: Accounts) -> dict[str, str]:
        """Actor → id of each batch with a lease whose record is there and not over."""
        actors = dict.fromkeys(lease.actor for lease in accounts.leases.values())
        batches = {name: name.removeprefix(ACTOR) for name in actors if name.startswith(ACTOR)}
        records = {name: self._record_of(batch) for name, batch in batches.items()}
        return {name: found.id for name, found in records.items() if found and not found.over}

    def _record_of(self, batch: str) -> BatchRecord | None:
        """None where it was deleted: then the batch's lease counts as spent."""
        try:
            return load_record(self.storage, path_of(batch))
        except Missing:
            return None

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of shared books, or raise RunLockedError naming who does."""
        if not self.shared:
            return nullcontext()
        return locked(self.storage.uri, "asking.lock", "set of books (strong.books)", self.run)

    # --- the journal, and looking at the ledger without owning it ---

    def journal(self) -> Journal:
        return load_journal(self.storage, self._limit)

    def writer(self, writer_id: str) -> JournalWriter:
        linger_s = STORE_LINGER_S if "://" in self.storage.uri else 0.0
        return JournalWriter(self.storage, writer_id, run=self.run, linger_s=linger_s)

    def recorded(self) -> tuple[Decimal, Decimal]:
        """(settled, promised and not settled) of this run, US dollars; both count against the cap.

        When no owner is at work the second is money that a crash left unproven.
        """
        accounts, name = recover(self.storage), f"run:{self.run}"
        return to_usd(accounts.settled.get(name, 0)), to_usd(accounts.held.get(name, 0))

    def excess(self) -> Excess:
        """What answers to this run cost beyond their leases."""
        return recover(self.storage).excess_of(f"run:{self.run}")

    def compact(self, *, may_fold: Callable[[str], bool], token: str | None = None) -> int:
        """See `journal.compact`."""
        return compact(self.storage, may_fold, token)

    # --- sentences ---

    def month_is_full(self, left: int) -> PausedError:
        return PausedError(
            f"this month's cap of ${self.monthly_cap_usd} "
            f"(strong.max_cost_usd_per_month, UTC) leaves no money for {left} questions: "
            "everything is kept, run again next month, or raise it",
            books=self.storage.uri if self.shared else None,
        )

    def asked_elsewhere(self, batched: Mapping[str, str]) -> PausedError:
        """Only questions are left that pending batches ask: key → id of the batch."""
        batches = sorted(set(batched.values()))[:3]
        records = [self._record_of(batch) for batch in batches]
        runs = sorted({record.run for record in records if record} or {"nobody"})
        return PausedError(
            f"{len(batched)} questions are asked by pending batches of {', '.join(runs)}, which "
            "shares these books: everything else is done and kept. Run again when they are read; "
            "where that run is gone for good, delete its batch's record, and they are asked here",
            file=", ".join(f"{self.storage.uri}/{path_of(batch)}" for batch in batches),
        )


def _read_claim(epoch: int, at: float, accounts: Accounts, batches: Mapping[str, str]) -> Claim:
    in_flight: dict[str, InFlight] = {}
    batched: dict[str, str] = {}
    for lease in sorted(accounts.leases.values(), key=lambda lease: lease.lost_at or 0.0):
        for key, _ in lease.slots.values():
            if lease.lost_at is None:
                batched[key] = batches[lease.actor]
            else:
                in_flight[key] = InFlight(lease.actor, lease.lost_at)
    return Claim(epoch, at, in_flight, batched)
