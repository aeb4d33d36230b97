"""Ledger and books: never over the cap, whatever crashes, whoever believes to own them."""

import decimal
import pickle
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from ray_judge.errors import (
    ConfigError,
    CorruptedError,
    EscalationError,
    LedgerFenced,
    RunLockedError,
)
from ray_judge.escalation.books.batches import BatchRecord, Stage, save
from ray_judge.escalation.books.books import Books, InFlight
from ray_judge.escalation.books.ledger import HeldSlot, Lease, Ledger
from ray_judge.escalation.books.lines import decode_log, encode
from ray_judge.records import Answer, Outcome
from ray_judge.storage.local import LocalStorage, Storage

from .memory import MemoryStorage

NOVEMBER, DECEMBER = 1_795_000_000.0, 1_797_000_000.0
END = 1_796_083_200.0
"""2026-12-01 00:00 UTC."""
DAY = 86_400.0


def books(
    storage: Storage, cap: str = "1", run: str = "run", monthly: str | None = None, now: Any = None
) -> Books:
    """`now`: Unix seconds, or what tells them; `monthly`: the cap of a month."""
    clock = now if callable(now) else lambda: now or NOVEMBER
    caps: Any = {"cap_usd": D(cap), "monthly_cap_usd": monthly and D(monthly)}
    return Books(storage, shared=False, run=run, clock=clock, **caps)


def opened(storage: Storage, cap: str = "1", **more: Any) -> Ledger:
    return books(storage, cap, **more).claim("test")[0]


def grant(ledger: Ledger, *costs: str | D, actor: str = "a") -> Lease:
    return ledger.grant(actor, [(f"key{at}", D(cost)) for at, cost in enumerate(costs)])


def prove(storage: Storage, lease: str, slot: int, cost: D) -> None:
    """An asker's answer is in the journal, whether or not the ledger hears of it."""
    writer = books(storage).writer(f"w-{lease}-{slot}")
    used = None, None, None, lease, slot, 1.0
    writer.append(Answer(f"key{slot}", Outcome.RESOLVED, "A", cost, *used))
    writer.sync()


def total(ledger: Ledger) -> D:
    return ledger.spent_usd + ledger.open_usd


def test_the_longest_prefix_that_fits_each_slot_settled_once_and_in_full() -> None:
    ledger = opened(MemoryStorage())
    lease = grant(ledger, "0.4", "0.4", "0.4", "0.1")
    assert (lease.slots, ledger.open_usd) == (2, D("0.8"))
    assert ledger.held("a") == [HeldSlot(lease.id, n, f"key{n}", D("0.4")) for n in (0, 1)]
    assert ledger.settle(lease.id, 0, D("0.1"))
    assert not ledger.settle(lease.id, 0, D("0.1")) and not ledger.settle(lease.id, 0, D("0.3"))
    ledger.release(lease.id, [1])
    for unknown in ("x-1", "", "1", "x-0", "x--1", lease.id[:-1] + "2"):
        with pytest.raises(EscalationError):
            ledger.settle(unknown, 0, D("0.1"))
    assert (total(ledger), ledger.excess.usd) == (D("0.1"), 0)


def test_an_answer_beyond_its_lease_widens_those_to_come() -> None:
    """What is gone is booked in full; later owners know of it, too."""
    storage = MemoryStorage()
    ledger = opened(storage)
    first, second = grant(ledger, "0.1"), grant(ledger, "0.01")
    ledger.settle(first.id, 0, D("0.25"))
    assert (ledger.spent_usd, ledger.excess.usd, first.factor) == (D("0.25"), D("0.15"), 1000)
    ledger.settle(second.id, 0, D("0.02"))  # granted before: twice its own maximum
    ledger.commit()
    for owner in (ledger, opened(storage)):
        assert owner.best_usd() == {"run": D("0.292")}  # $0.73 are left, at 2.5 for 1
        assert owner.fitting([D("0.146")] * 9) == 2
    lease = grant(owner, "0.1")
    assert (lease.factor, owner.open_usd) == (2500, D("0.25"))
    assert owner.held("a")[0].max_usd == D("0.25")
    owner.settle(lease.id, 0, D("0.5"))  # twice the widened one
    assert grant(owner, "0.01").factor == 5000 and owner.excess.usd == D("0.41")


@pytest.mark.parametrize("amount", [D("NaN"), D("-0.01"), D("Infinity"), D("sNaN"), 1.0, None])
def test_what_is_no_amount_of_money_is_refused(amount: Any) -> None:
    with pytest.raises(ConfigError, match="money"):
        Books(MemoryStorage(), shared=False, run="run", cap_usd=amount)
    ledger = opened(MemoryStorage())
    lease = grant(ledger, "0.1")
    with pytest.raises(ConfigError):
        ledger.grant("a", [("key", amount)])
    with pytest.raises(ConfigError):
        ledger.settle(lease.id, 0, amount)
    assert total(ledger) == D("0.1")


@pytest.mark.parametrize("caps", [{"cap": "0"}, {"monthly": "0"}])
def test_a_cap_of_zero_grants_nothing_not_even_what_is_free(caps: dict[str, str]) -> None:
    ledger = opened(MemoryStorage(), **caps)
    assert grant(ledger, "0").slots == grant(ledger, "0.1").slots == 0
    assert ledger.fitting([D(0)]) == 0
    assert min(ledger.best_usd().values()) < 0
    assert ledger.cap_usd == D(caps.get("cap", "1"))


def test_sums_are_exact_whatever_the_decimal_context() -> None:
    with decimal.localcontext(decimal.Context(prec=3)):
        ledger = opened(MemoryStorage(), "100000")
        assert grant(ledger, *["0.000000001"] * 3, "99999.999999997").slots == 4
        assert grant(ledger, "0.000000001").slots == 0


def test_a_clean_close_keeps_every_settlement_and_the_cap_may_change() -> None:
    storage = MemoryStorage()
    ledger = opened(storage)
    ledger.settle(grant(ledger, "0.7", "0.2").id, 0, D("0.65"))
    ledger.close()
    assert books(storage).recorded() == (D("0.65"), D("0.2"))
    with pytest.raises(LedgerFenced):
        grant(ledger, "0.1")
    assert grant(opened(storage, "0.5"), "0").slots == 0
    assert grant(opened(storage, "2"), "1.1").slots == 1


def test_a_stale_owner_grants_nothing_more(tmp_path: Path) -> None:
    """On a real disk; whatever interleaving: the simulator."""
    storage = LocalStorage(str(tmp_path))
    old = opened(storage)
    kept = grant(old, "0.3")
    new = opened(storage)
    for _ in range(2):
        with pytest.raises(LedgerFenced):
            grant(old, "0.1")
    assert grant(new, "0.7").slots == 1
    old.close()  # what it writes late is nobody's: the next owner does not even read it
    third = opened(storage)
    assert third.open_usd == D(1) and third.settle(kept.id, 0, D("0.1"))
    new.close()
    third.close()


def test_an_owner_that_died_before_its_snapshot_is_stepped_over() -> None:
    storage = MemoryStorage()
    lease = grant(opened(storage), "0.3")
    storage.create("ledger/claim-00000002", b"{}")
    storage.files["ledger/00000002.log"] = b"1 1 0 torn"
    again = opened(storage)
    assert (again.epoch, again.open_usd) == (3, D("0.3"))
    assert again.settle(lease.id, 0, D(0))


@pytest.mark.parametrize(
    ("stage", "pending"),
    [("intent", True), ("submitted", True), ("read", False), ("abandoned", False), (None, False)],
)
def test_a_batch_keeps_its_lease_while_its_record_lives(stage: str | None, pending: bool) -> None:
    storage = MemoryStorage({})
    if stage is not None:
        save(storage, BatchRecord("b1", "r", requests=1, tokens=1, at=0, stage=Stage(stage)))
    grant(opened(storage), "0.2", actor="batch:b1")
    for at in (1, 2):  # also through another owner's snapshot
        ledger, claim = books(storage, now=NOVEMBER + at).claim("later")
        # The batch may be another run's: only who reads it sees its money come back.
        assert (ledger.lost_usd, ledger.best_usd()["run"]) == (D("0.2"), D("0.8"))
        if pending:
            ledger.expect("batch:b1")
            assert (ledger.lost_usd, ledger.best_usd()["run"]) == (D(0), D(1))
        assert claim.batched == ({"key0": "b1"} if pending else {})
        lost = {} if pending else {"key0": InFlight("batch:b1", NOVEMBER + 1)}
        assert claim.in_flight == lost
    storage.files["batches/b1.json"] = b"{"
    with pytest.raises(CorruptedError, match=r"batches/b1\.json"):
        opened(storage)


def test_a_claim_names_every_question_that_may_be_in_flight() -> None:
    storage = MemoryStorage()
    first, claim = books(storage).claim("first")
    assert (claim.epoch, claim.at, claim.in_flight, claim.batched) == (1, NOVEMBER, {}, {})
    lease = grant(first, *["0.1"] * 4, actor="asker1")  # key0 … key3
    first.release(lease.id, [0])
    first.commit()
    prove(storage, lease.id, 1, D("0.05"))
    prove(storage, "other-1", 0, D(9))
    second, claim = books(storage, now=NOVEMBER + 60).claim("second")
    # What the journal proves is spent, and what nobody proves counts in full.
    assert (second.spent_usd, second.open_usd, second.lost_usd) == (D("0.05"), D("0.2"), D("0.2"))
    assert second.best_usd() == {"run": D("0.75")}
    early = InFlight("asker1", NOVEMBER + 60)
    assert claim.in_flight == {"key2": early, "key3": early}
    second.grant("asker2", [("key3", D("0.1"))])  # asked again, and lost again
    second.close()
    claim = books(storage, now=NOVEMBER + 90).claim("third")[1]
    assert claim.in_flight == {"key2": early, "key3": InFlight("asker2", NOVEMBER + 90)}
    assert pickle.loads(pickle.dumps(claim)) == claim
    prove(storage, lease.id, 2, D("0.01"))  # of a lease that was lost at an earlier claim
    fourth, claim = books(storage, now=NOVEMBER + 90).claim("fourth")
    assert (fourth.spent_usd, [*claim.in_flight]) == (D("0.06"), ["key3"])


def test_shared_books_have_one_lock_and_travel(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    ours, theirs = (
        Books(storage, shared=True, run=run, cap_usd=D(1)) for run in ("/runs/a", "/runs/b")
    )
    with ours.locked():
        with pytest.raises(RunLockedError, match="/runs/a"), theirs.locked():
            pass
        with books(storage).locked():  # books of one run: its own lock is enough
            pass
    with pickle.loads(pickle.dumps(theirs)).locked():
        pass


def test_runs_and_months_share_one_ledger() -> None:
    storage = MemoryStorage()
    first = opened(storage, "5", run="one", monthly="6")
    first.settle(grant(first, "5").id, 0, D(5))
    first.close()
    second = opened(storage, "5", run="two", monthly="6")
    assert second.best_usd() == {"run": D(5), "month": D(1)}
    assert grant(second, "2").slots == 0
    assert grant(second, "1").slots == 1
    second.close()
    third = opened(storage, "5", run="two", monthly="6", now=DECEMBER)
    # The lost lease of November may have been billed in December: it counts in both.
    assert third.month_usd() == D(1)
    assert grant(third, "4").slots == 1
    third.close()
    assert opened(storage, "50", run="three", monthly="6", now=DECEMBER).month_usd() == D(5)


def test_a_lease_that_is_open_across_the_end_of_a_month_counts_in_both() -> None:
    now = END - 5.0
    ledger = opened(MemoryStorage(), "10", monthly="1", now=lambda: now)
    lease = grant(ledger, "0.6", "0.4")
    ledger.settle(lease.id, 1, D("0.4"))
    now = END
    assert grant(ledger, "0.6").slots == 0
    ledger.settle(lease.id, 0, D("0.5"))
    assert ledger.month_usd() == D("0.5")
    assert grant(ledger, "0.5").slots == 1


@pytest.mark.parametrize(
    ("lost", "looked", "proven", "december"),
    [
        *((END - 4, looked, None, "0.3") for looked in (END + 1, END + 20 * DAY)),
        (END - 4, END + 1, "0.2", "0.2"),  # sent in November, answered in December
        (END - 4000, END + 1, None, "0"),
    ],
)
def test_a_lost_lease_may_be_billed_within_the_hour(
    lost: float, looked: float, proven: str | None, december: str
) -> None:
    """When that is looked at does not matter, nor whether an owner saw the month begin."""
    storage, now = MemoryStorage(), lost
    lease = grant(opened(storage, "10", monthly="1", now=now), "0.3")
    heir = opened(storage, "10", monthly="1", now=lambda: now)
    if proven:
        prove(storage, lease.id, 0, D(proven))
    now = looked
    later = opened(storage, "10", monthly="1", now=now)
    assert later.month_usd() == D(december)
    assert proven or heir.month_usd() == D(december)
    assert grant(later, D("1.01") - D(december)).slots == 0
    assert opened(storage, "10", monthly="1", now=END + 40 * DAY).month_usd() == 0


LOG = "ledger/00000001.log"
FIRST, SECOND, THIRD = (encode(number, number - 1, {"n": number}) for number in (1, 2, 3))
UNSYNCED = [encode(number, 1, {"n": number}) for number in (3, 4)]


@pytest.mark.parametrize(
    ("log", "read"),
    [
        (FIRST + SECOND + THIRD[:-1], 2),
        (FIRST + SECOND + b"\0" * 20 + THIRD[20:], 2),
        # Lines of the same sync behind a page of zeros: none of them was ever acknowledged.
        (FIRST + SECOND + b"\0" * len(UNSYNCED[0]) + UNSYNCED[1], 2),
        # Lines that had been synced are gone, or one is there twice.
        *((log, None) for log in (FIRST + THIRD, FIRST + b"\0" * len(SECOND) + THIRD)),
        *((log, None) for log in (FIRST + FIRST, SECOND)),
    ],
)
def test_what_was_not_synced_is_dropped_all_else_is_damage(log: bytes, read: int | None) -> None:
    if read is None:
        with pytest.raises(CorruptedError, match="line="):
            decode_log(log, "f")
    else:
        assert [record["n"] for record in decode_log(log, "f")] == [1, 2][:read]


def test_a_log_that_is_cut_or_has_a_flipped_byte_is_never_misread() -> None:
    storage = MemoryStorage()
    ledger, kept = opened(storage), []
    for at in range(4):
        lease = grant(ledger, *["0.1"] * (at + 1))
        kept.append((len(storage.files[LOG]), total(ledger)))
        ledger.settle(lease.id, 0, D("0.01"))
    data = storage.files[LOG]
    for cut in range(len(data) + 1):
        again = opened(MemoryStorage({"ledger/claim-00000001": b"{}", LOG: data[:cut]}))
        least = max((money for end, money in kept if end <= cut), default=D(0))
        assert least - D("0.09") <= total(again) <= 1 and total(again) >= again.spent_usd
    for at in range(len(data) - 1):  # damage to the very last newline can pass for a torn tail
        with pytest.raises(CorruptedError):
            decode_log(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :], "f")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({LOG: encode(1, 0, {"t": "snapshot"}) + b"junk\n"}, r"00000001\.log.*line=2"),
        ({LOG: encode(1, 0, {"t": "grant"})}, "does not begin with a snapshot"),
        ({LOG: b"2 1 0 x {}\n"}, "newer version"),
        ({f"{LOG}.00000002": encode(2, 1, {})}, r"is gone.*log\.00000001"),
    ],
)
def test_damage_and_newer_versions_are_named(files: dict[str, bytes], named: str) -> None:
    with pytest.raises(CorruptedError, match=named):
        opened(MemoryStorage({"ledger/claim-00000001": b"{}", **files}))
