"""The ledger: never over the cap, whatever crashes, whoever believes to own it."""

from __future__ import annotations

from decimal import Decimal as D
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ray_judge.errors import ConfigError, CorruptedError, EscalationError, LedgerFenced
from ray_judge.escalation.books.ledger import Lease, Ledger
from ray_judge.escalation.books.lines import decode_log, encode
from ray_judge.storage.local import AppendLog, LocalStorage, Missing

pytestmark = pytest.mark.timeout(120)

NOVEMBER, DECEMBER = 1_795_000_000.0, 1_797_000_000.0


class MemoryLog:
    """What is appended is lost unless synced."""

    def __init__(self, files: dict[str, bytes], path: str) -> None:
        self.files, self.path, self.pending = files, path, b""
        files[path] = b""

    def append(self, data: bytes) -> None:
        self.pending += data

    def sync(self) -> None:
        if self.path in self.files:  # else it was unlinked: nobody will ever read it
            self.files[self.path] += self.pending
        self.pending = b""

    def close(self) -> None:
        self.sync()


class MemoryStorage(LocalStorage):
    """A disk in memory: fast, and its crash loses exactly what was not synced."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__("/memory")
        self.files = {} if files is None else files

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise Missing("none", path=path)
        return self.files[path]

    def create(self, path: str, data: bytes) -> None:
        assert path not in self.files
        self.files[path] = data

    def exists(self, path: str) -> bool:
        return path in self.files

    def list(self, prefix: str) -> list[str]:
        return sorted(p for p in self.files if p.startswith(prefix + "/"))

    def delete(self, path: str) -> None:
        self.files.pop(path, None)

    def log(self, path: str) -> AppendLog:
        return MemoryLog(self.files, path)


def opened(
    storage: LocalStorage, cap: str = "1", *, now: float = NOVEMBER, **more: object
) -> Ledger:
    return Ledger.open(
        storage,
        cap_usd=D(cap),
        owner="test",
        clock=lambda: now,
        **{"journal_costs": {}, **more},  # type: ignore[arg-type]
    )


def total(ledger: Ledger) -> D:
    return ledger.spent_usd + ledger.open_usd


def test_the_longest_prefix_that_fits() -> None:
    ledger = opened(MemoryStorage())
    lease = ledger.grant("a", [D("0.4"), D("0.4"), D("0.4"), D("0.1")])
    assert (lease.slots, lease.amount_usd) == (2, D("0.8"))
    assert ledger.open_usd == D("0.8")


def test_not_now_and_never_are_told_apart() -> None:
    ledger = opened(MemoryStorage())
    first = ledger.grant("a", [D("0.9")])
    later = ledger.grant("b", [D("0.2")])
    assert (later.slots, later.denied, later.account) == (0, False, "run:run")
    assert ledger.grant("b", [D("1.1")]).denied
    ledger.settle(first.id, 0, D("0.85"))
    assert ledger.grant("b", [D("0.2")]).denied
    assert ledger.grant("b", [D("0.15")]).slots == 1


def test_settling_twice_books_once() -> None:
    ledger = opened(MemoryStorage())
    lease = ledger.grant("a", [D("0.4")])
    assert ledger.settle(lease.id, 0, D("0.1"))
    assert not ledger.settle(lease.id, 0, D("0.1"))
    assert not ledger.settle(lease.id, 0, D("0.3"))
    assert total(ledger) == D("0.1")


def test_release_gives_back() -> None:
    ledger = opened(MemoryStorage())
    lease = ledger.grant("a", [D("0.4"), D("0.4")])
    ledger.release(lease.id, [1])
    assert total(ledger) == D("0.4")
    assert ledger.grant("a", [D("0.6")]).slots == 1


def test_a_settlement_above_the_maximum_counts_in_full() -> None:
    ledger = opened(MemoryStorage())
    lease = ledger.grant("a", [D("0.4")])
    ledger.settle(lease.id, 0, D("0.7"))
    assert ledger.overruns == 1
    assert ledger.grant("a", [D("0.4")]).denied
    assert ledger.grant("a", [D("0.3")]).slots == 1


@pytest.mark.parametrize("lease", ["x-1", "", "1", "x-0", "x--1"])
def test_an_unknown_lease_is_an_error(lease: str) -> None:
    ledger = opened(MemoryStorage())
    known = ledger.grant("a", [D("0.1")]).id
    with pytest.raises(EscalationError):
        ledger.settle(lease, 0, D("0.1"))
    with pytest.raises(EscalationError):
        ledger.settle(known[:-1] + "2", 0, D("0.1"))


@pytest.mark.parametrize("cap", [D("NaN"), D("-0.01"), D("Infinity"), D("sNaN"), 1.0, None])
def test_a_cap_that_is_no_amount_is_refused_before_anything_is_written(cap: object) -> None:
    storage = MemoryStorage()
    with pytest.raises(ConfigError):
        Ledger.open(storage, cap_usd=cap, owner="o", journal_costs={})  # type: ignore[arg-type]
    assert storage.files == {}


@pytest.mark.parametrize("cost", [D("NaN"), D(-1), D("Infinity"), 0.5])
def test_costs_that_are_no_amounts_are_refused(cost: object) -> None:
    ledger = opened(MemoryStorage())
    with pytest.raises(ConfigError):
        ledger.grant("a", [cost])  # type: ignore[list-item]
    lease = ledger.grant("a", [D("0.1")])
    with pytest.raises(ConfigError):
        ledger.settle(lease.id, 0, cost)  # type: ignore[arg-type]
    assert total(ledger) == D("0.1")


def test_a_cap_of_zero_grants_nothing_not_even_what_is_free() -> None:
    ledger = opened(MemoryStorage(), "0")
    assert ledger.grant("a", [D(0)]).denied
    assert ledger.grant("a", [D("0.1")]).denied


def test_sums_are_exact_whatever_the_decimal_context() -> None:
    import decimal

    with decimal.localcontext(decimal.Context(prec=3)):
        ledger = opened(MemoryStorage(), "100000")
        lease = ledger.grant("a", [D("0.000000001")] * 3 + [D("99999.999999997")])
        assert lease.slots == 4
        assert ledger.grant("a", [D("0.000000001")]).slots == 0


def test_recovery_counts_what_is_not_proven() -> None:
    storage = MemoryStorage()
    ledger = opened(storage)
    lease = ledger.grant("a", [D("0.2")] * 4)
    ledger.settle(lease.id, 0, D("0.01"))
    ledger.flush()
    ledger.settle(lease.id, 3, D("0.03"))  # not durable
    again = opened(storage, journal_costs={(lease.id, 1): D("0.02"), ("other-1", 0): D(9)})
    assert (again.spent_usd, again.open_usd, again.lost_usd) == (D("0.03"), D("0.4"), D("0.4"))
    assert again.grant("a", [D("0.6")]).denied
    # A survivor may still report what its request cost.
    assert again.settle(lease.id, 3, D("0.03"))
    assert total(again) == D("0.26")


def test_a_lost_lease_may_be_proven_at_a_later_recovery() -> None:
    storage = MemoryStorage()
    lease = opened(storage).grant("a", [D("0.5")])
    assert total(opened(storage)) == D("0.5")
    assert total(opened(storage, journal_costs={(lease.id, 0): D("0.1")})) == D("0.1")
    assert total(opened(storage)) == D("0.1")


def test_clean_close_keeps_every_settlement() -> None:
    storage = MemoryStorage()
    ledger = opened(storage)
    lease = ledger.grant("a", [D("0.2"), D("0.2")])
    ledger.settle(lease.id, 0, D("0.05"))
    ledger.close()
    again = opened(storage)
    assert (again.spent_usd, again.open_usd) == (D("0.05"), D("0.2"))
    with pytest.raises(LedgerFenced):
        ledger.grant("a", [D("0.1")])


def test_the_cap_may_be_raised_and_lowered() -> None:
    storage = MemoryStorage()
    ledger = opened(storage)
    ledger.settle(ledger.grant("a", [D(1)]).id, 0, D("0.9"))
    ledger.close()
    lower = opened(storage, "0.5")
    assert lower.grant("a", [D("0.01")]).denied
    lower.close()
    assert opened(storage, "2").grant("a", [D("1.1")]).slots == 1


def test_a_stale_owner_grants_nothing_more() -> None:
    storage = MemoryStorage()
    old = opened(storage)
    kept = old.grant("a", [D("0.3")])
    new = opened(storage)
    assert new.open_usd == D("0.3")
    with pytest.raises(LedgerFenced):
        old.grant("a", [D("0.1")])
    with pytest.raises(LedgerFenced):
        old.grant("a", [D("0.1")])
    assert new.grant("a", [D("0.7")]).slots == 1
    # What the stale owner wrote late is nobody's: a third owner does not even read it.
    third = opened(storage)
    assert third.open_usd == D(1)
    third.settle(kept.id, 0, D("0.1"))


def test_an_owner_that_died_before_its_snapshot_is_stepped_over() -> None:
    storage = MemoryStorage()
    lease = opened(storage).grant("a", [D("0.3")])
    storage.create("ledger/claim-00000002", b"{}")
    storage.files["ledger/00000002.log"] = b"1 1 0 torn"
    again = opened(storage)
    assert again.epoch == 3
    assert again.open_usd == D("0.3")
    assert again.settle(lease.id, 0, D(0))


def test_runs_and_months_share_one_ledger() -> None:
    storage = MemoryStorage()
    first = opened(storage, "5", run="one", monthly_cap_usd=D(6))
    first.settle(first.grant("a", [D(5)]).id, 0, D(5))
    first.close()
    second = opened(storage, "5", run="two", monthly_cap_usd=D(6))
    refused = second.grant("a", [D(2)])
    assert (refused.denied, refused.account) == (True, "month:2026-11")
    assert second.grant("a", [D(1)]).slots == 1
    second.close()
    third = opened(storage, "5", run="two", monthly_cap_usd=D(6), now=DECEMBER)
    # The lost lease of November may have been billed in December: it counts in both.
    assert third.month_usd() == D(1)
    assert third.grant("a", [D(4)]).slots == 1
    third.close()
    fourth = opened(storage, "50", run="three", monthly_cap_usd=D(6), now=DECEMBER)
    assert fourth.month_usd() == D(5)


def test_a_lease_across_the_end_of_a_month_counts_in_both() -> None:
    now = [NOVEMBER]
    ledger = Ledger.open(
        MemoryStorage(),
        cap_usd=D(10),
        owner="o",
        journal_costs={},
        monthly_cap_usd=D(1),
        clock=lambda: now[0],
    )
    lease = ledger.grant("a", [D("0.6"), D("0.4")])
    ledger.settle(lease.id, 1, D("0.4"))
    now[0] = DECEMBER
    assert ledger.grant("a", [D("0.6")]).slots == 0
    ledger.settle(lease.id, 0, D("0.5"))
    assert ledger.month_usd() == D("0.5")
    assert ledger.grant("a", [D("0.5")]).slots == 1


def test_a_lost_lease_may_be_billed_in_the_month_that_follows() -> None:
    """Lost an hour ago or less: its request may still be on its way (found by the simulator)."""
    end = 1_796_083_200.0  # 2026-12-01 00:00 UTC
    storage = MemoryStorage()
    now = [end - 5.0]

    def reopened() -> Ledger:
        return Ledger.open(
            storage,
            cap_usd=D(10),
            owner="o",
            journal_costs={},
            clock=lambda: now[0],
            monthly_cap_usd=D(1),
        )

    first = reopened()
    assert first.grant("a", [D("0.3")]).slots == 1
    second = reopened()  # the request of that lease is in flight, nobody waits for it
    now[0] = end + 1.0
    assert second.month_usd() == D("0.3")
    assert second.grant("a", [D("0.8")]).slots == 0
    assert reopened().month_usd() == D("0.3")
    now[0] = end + 40 * 86_400.0
    assert reopened().month_usd() == 0


def test_a_lost_lease_follows_into_a_month_in_which_nobody_looked_for_weeks() -> None:
    """A run that paused just before midnight (found by the simulator, seed 10408)."""
    end = 1_796_083_200.0  # 2026-12-01 00:00 UTC
    storage = MemoryStorage()

    def at(now: float) -> Ledger:
        return opened(storage, "10", monthly_cap_usd=D(1), now=now)

    assert at(end - 5.0).grant("a", [D("0.3")]).slots == 1
    at(end - 4.0).close()  # it is lost, and its request may be billed for an hour
    assert at(end + 20 * 86_400.0).month_usd() == D("0.3")
    assert at(end + 40 * 86_400.0).month_usd() == 0


def test_what_the_journal_proves_at_recovery_may_belong_to_the_new_month() -> None:
    """Sent in November, answered in December, never settled (found by the simulator)."""
    storage = MemoryStorage()
    first = opened(storage, "10", monthly_cap_usd=D(1))
    lease = first.grant("a", [D("0.3")])
    second = Ledger.open(
        storage,
        cap_usd=D(10),
        owner="o",
        journal_costs={(lease.id, 0): D("0.2")},
        clock=lambda: DECEMBER,
        monthly_cap_usd=D(1),
    )
    assert second.month_usd() == D("0.2")


def test_an_actors_death_and_return() -> None:
    ledger = opened(MemoryStorage())
    lease = ledger.grant("a", [D("0.5"), D("0.5")])
    ledger.forsake("a", {(lease.id, 0): D("0.1")})
    assert total(ledger) == D("0.6")
    assert ledger.grant("b", [D("0.5")]).denied
    ledger.adopt("a")
    assert not ledger.grant("b", [D("0.5")]).denied


# --- damage -----------------------------------------------------------------------------------


def torn_ledger() -> tuple[bytes, list[Lease], list[int]]:
    """A log of three grants, and its length after each of them."""
    storage = MemoryStorage()
    ledger = opened(storage)
    leases, lengths = [], []
    for at in range(3):
        leases.append(ledger.grant("a", [D("0.1")] * (at + 1)))
        lengths.append(len(storage.files["ledger/00000001.log"]))
    return storage.files["ledger/00000001.log"], leases, lengths


def test_a_log_cut_at_any_byte_loses_no_acknowledged_grant() -> None:
    data, leases, lengths = torn_ledger()
    for cut in range(len(data) + 1):
        storage = MemoryStorage({"ledger/claim-00000001": b"{}", "ledger/00000001.log": data[:cut]})
        again = opened(storage)
        acknowledged = sum(
            x.amount_usd for x, end in zip(leases, lengths, strict=True) if end <= cut
        )
        assert again.open_usd >= acknowledged
        assert total(again) <= D(1)


def test_an_unfinished_page_of_zeros_at_the_end_is_a_torn_tail() -> None:
    lines = [encode(1, 0, {"n": 1}), encode(2, 1, {"n": 2}), encode(3, 2, {"n": 3})]
    torn = lines[0] + lines[1] + b"\0" * 20 + lines[2][20:]
    assert [r["n"] for r in decode_log(torn, "f")] == [1, 2]
    # Lines of the same sync behind a page of zeros: none of them was ever acknowledged.
    unsynced = [encode(2, 1, {"n": 2}), encode(3, 1, {"n": 3}), encode(4, 1, {"n": 4})]
    torn = lines[0] + unsynced[0] + b"\0" * len(unsynced[1]) + unsynced[2]
    assert [r["n"] for r in decode_log(torn, "f")] == [1, 2]


def test_synced_lines_that_are_gone_are_damage() -> None:
    lines = [encode(1, 0, {"n": 1}), encode(2, 1, {"n": 2}), encode(3, 2, {"n": 3})]
    for damaged in (
        lines[0] + lines[2],
        lines[0] + b"\0" * len(lines[1]) + lines[2],
        lines[0] + lines[0],
        lines[1],
    ):
        with pytest.raises(CorruptedError, match="line="):
            decode_log(damaged, "f")


def test_any_flipped_byte_is_never_misread() -> None:
    data, _, _ = torn_ledger()
    whole = decode_log(data, "f")
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]
        try:
            records = decode_log(damaged, "f")
        except CorruptedError:
            continue
        # Only damage to the very last newline can pass for a torn tail.
        assert at == len(data) - 1
        assert records == whole[:-1]


def test_damage_and_newer_versions_are_named() -> None:
    data, _, _ = torn_ledger()
    storage = MemoryStorage({"ledger/claim-00000001": b"{}"})
    lines = data.split(b"\n")
    storage.files["ledger/00000001.log"] = b"\n".join([lines[0], b"junk", *lines[2:]])
    with pytest.raises(CorruptedError, match=r"00000001\.log.*line=2"):
        opened(storage)
    storage.files["ledger/00000001.log"] = b"2 1 0 x {}\n"
    with pytest.raises(CorruptedError, match="newer version"):
        opened(storage)


def test_on_a_real_disk(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    first = opened(storage)
    lease = first.grant("a", [D("0.4")])
    second = opened(storage)
    assert second.open_usd == D("0.4")
    with pytest.raises(LedgerFenced):
        first.grant("a", [D("0.4")])
    second.settle(lease.id, 0, D("0.1"))
    second.close()
    first.close()
    assert opened(storage).spent_usd == D("0.1")


# --- any sequence of events -------------------------------------------------------------------

NANO = D("0.000000001")
MONEY = st.integers(0, 400_000_000).map(lambda n: n * NANO)


class Nights(RuleBasedStateMachine):
    """Owners come, go and wake up; actors spend under acknowledged leases only.

    `billed` is the provider's own count: what was really spent, by anyone, ever.
    """

    @initialize()
    def begin(self) -> None:
        self.storage = MemoryStorage()
        self.cap = D(1)
        self.owners = [opened(self.storage)]
        self.unsent: list[tuple[Lease, int, D]] = []
        self.unsettled: list[tuple[Lease, int, D]] = []
        self.journal: dict[tuple[str, int], D] = {}
        self.billed = D(0)

    @rule(which=st.integers(0, 9), costs=st.lists(MONEY, min_size=1, max_size=4))
    def grant(self, which: int, costs: list[D]) -> None:
        owner = self.owners[which % len(self.owners)]
        try:
            lease = owner.grant("actor", costs)
        except LedgerFenced:
            assert owner is not self.owners[-1]
            return
        assert owner is self.owners[-1] or lease.slots == 0
        self.unsent += [(lease, slot, costs[slot]) for slot in range(lease.slots)]

    @rule(which=st.integers(0, 99), share=st.integers(0, 100), answered=st.booleans())
    def send(self, which: int, share: int, answered: bool) -> None:
        if self.unsent:
            lease, slot, most = self.unsent.pop(which % len(self.unsent))
            cost = (most * share / 100).quantize(NANO)
            self.billed += cost
            if answered:
                self.journal[lease.id, slot] = cost
                self.unsettled.append((lease, slot, cost))

    @rule(which=st.integers(0, 99), again=st.booleans())
    def settle(self, which: int, again: bool) -> None:
        if self.unsettled:
            at = which % len(self.unsettled)
            lease, slot, cost = self.unsettled[at] if again else self.unsettled.pop(at)
            self.owners[-1].settle(lease.id, slot, cost)

    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        if self.unsent:
            lease, slot, _ = self.unsent.pop(which % len(self.unsent))
            self.owners[-1].release(lease.id, [slot])

    @rule(proofs=st.booleans())
    def take_over(self, proofs: bool) -> None:
        self.owners.append(opened(self.storage, journal_costs=self.journal if proofs else {}))

    @rule()
    def close(self) -> None:
        self.owners[-1].close()
        self.owners.append(opened(self.storage))

    @invariant()
    def never_over_the_cap(self) -> None:
        if hasattr(self, "owners"):
            assert self.billed <= total(self.owners[-1]) <= self.cap
            assert self.owners[-1].overruns == 0


Nights.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestNights = Nights.TestCase


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(MONEY, st.booleans()), max_size=30), st.data())
def test_a_crash_at_any_byte_of_a_busy_log(
    events: list[tuple[D, bool]], data: st.DataObject
) -> None:
    storage = MemoryStorage()
    ledger = opened(storage)
    acknowledged: list[tuple[int, D]] = []
    for cost, settle_it in events:
        lease = ledger.grant("a", [cost])
        if lease.slots:
            acknowledged.append((len(storage.files["ledger/00000001.log"]), cost))
            if settle_it:
                ledger.settle(lease.id, 0, cost / 2)
    log = storage.files["ledger/00000001.log"]
    cut = data.draw(st.integers(0, len(log)))
    storage.files["ledger/00000001.log"] = log[:cut]
    again = opened(storage)
    least = sum((cost / 2 for end, cost in acknowledged if end <= cut), D(0))
    assert least <= total(again) + NANO * len(events)
    assert total(again) <= D(1)
