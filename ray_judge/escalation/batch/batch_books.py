"""The money of batches: the ledger, owned only while there is something to book, and the journal.

A pending batch needs no owner: its lease lies in the ledger, open, under a name of its own, and is
taken up again (`Ledger.adopt`) by whoever opens the ledger next for this run. So a night's wait
keeps no other run from a ledger that they share.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.escalation.books.accounts import comes_back
from ray_judge.escalation.books.journal import Journal, JournalWriter, load_journal
from ray_judge.escalation.books.ledger import LeaseSlot, Ledger, recorded
from ray_judge.escalation.books.places import (
    journal_name,
    journal_storage,
    ledger_name,
    ledger_storage,
)
from ray_judge.escalation.turn import Turn
from ray_judge.records import Answer

AT_ONCE = 1000
"""Answers that are made durable together."""


class BatchBooks:
    """What the batches of one run promise and spend, and the answers that they brought."""

    def __init__(
        self,
        config: RunConfig,
        pending: Callable[[], Iterable[str]],
        clock: Callable[[], float],
        checkpoint: Callable[[str], None],
        turn: Turn,
    ) -> None:
        """Open nothing. `pending` names the leases' owners that are alive (`BatchState.actor`)."""
        self._config = config
        self._pending = pending
        self._clock = clock
        self._checkpoint = checkpoint
        self._turn = turn
        self._ledger: Ledger | None = None
        self._writer: JournalWriter | None = None
        self.left = 0
        """Of the questions that were denied: those for which this month's cap has no money."""

    def journal(self) -> Journal:
        """Everything that is on file now."""
        return load_journal(*journal_storage(self._config))

    def ledger(self) -> Ledger:
        """The ledger, as its owner, in turn with the runs that share it.

        Raises LedgerFenced, PausedError (another run holds it), StorageError, CorruptedError.
        """
        if self._ledger is None:
            self._turn.take()
            strong = self._config.strong
            storage, path = ledger_storage(self._config)
            self._ledger = Ledger.open(
                storage,
                path,
                cap_usd=strong.max_cost_usd,
                owner=f"{self._config.output} batches",
                journal_costs=self.journal().paid,
                clock=self._clock,
                run=ledger_name(self._config),
                monthly_cap_usd=strong.max_cost_usd_per_month,
            )
            for actor in self._pending():
                self._ledger.adopt(actor)
        return self._ledger

    def adopt(self, actor: str) -> None:
        """A batch that another process submitted is alive."""
        if self._ledger is not None:
            self._ledger.adopt(actor)

    def affordable(self, costs: Sequence[Decimal], *, pending: bool) -> tuple[int, int]:
        """Give (denied, end): the first `denied` cannot be had; what comes up to `end` can, now.

        "Cannot" is for ever, or, where `left` counts them, for this month.

        Where nothing can be had now but may be later, when what is `pending` has returned what it
        did not use, `end` equals `denied`.
        """
        ledger = self.ledger()
        denied = 0
        while denied < len(costs):
            probe = [costs[denied]]
            if ledger.fitting(probe):
                return denied, denied + ledger.fitting(costs[denied:])
            refusal = ledger.propose("probe", probe)
            if refusal.slots:  # a month began just now, and there is room again
                ledger.release(refusal.id, [0])
                continue
            if not refusal.denied and pending:
                break
            self.left += comes_back(refusal.account)
            denied += 1
        return denied, denied

    def give_back(self, actor: str) -> None:
        """Release, durably, all that a batch holds of which nothing ran, nor will."""
        ledger = self.ledger()
        for lease, slot in ledger.open_slots(actor):
            ledger.release(lease, [slot])
        ledger.commit()

    def keep(self, answers: Sequence[Answer], known: Mapping[LeaseSlot, Decimal]) -> None:
        """Make answers durable, but for those that an earlier reading of the batch did."""
        new = [answer for answer in answers if (answer.lease, answer.slot) not in known]
        for start in range(0, len(new), AT_ONCE):
            if self._writer is None:
                name = f"batch-{secrets.token_hex(6)}"
                self._writer = JournalWriter(
                    *journal_storage(self._config), writer_id=name, run=journal_name(self._config)
                )
            for answer in new[start : start + AT_ONCE]:
                self._writer.append(answer)
            self._checkpoint("appended")
            self._writer.sync()
            self._checkpoint("journal")

    def settle(
        self,
        lease: str,
        answers: Sequence[Answer],
        free: Sequence[int],
        known: Mapping[LeaseSlot, Decimal],
    ) -> None:
        """Book a batch that was read, durably: what it did not use comes back."""
        ledger = self.ledger()
        for answer in answers:
            cost = known.get((lease, answer.slot), answer.cost_usd)
            ledger.settle(lease, answer.slot, cost)
        ledger.release(lease, free)
        self._checkpoint("booked")
        ledger.commit()
        self._checkpoint("settled")

    def figures(self) -> dict[str, Any]:
        """Dollars spent and promised so far, read without owning anything."""
        storage, path = ledger_storage(self._config)
        settled, held = recorded(storage, path, run=ledger_name(self._config))
        cap = self._config.strong.max_cost_usd
        return {"spent_usd": settled, "open_usd": held, "cap_usd": cap}

    def let_go(self) -> None:
        """Write the ledger's last word and own it no more."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.close()
        self._turn.give_back()

    def close(self) -> None:
        """Let go of everything."""
        self.let_go()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
