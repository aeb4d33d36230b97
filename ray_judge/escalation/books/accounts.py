"""The arithmetic of the ledger: who holds how much of which cap. Pure: no clock, no storage.

Money inside is whole nano-dollars (`int`): sums are exact whatever the decimal context of the
process. It is `Decimal` dollars everywhere else.

An *account* is something that a cap applies to: `run:<name>` or `month:2026-11`. A lease is
charged to several accounts at once and must fit into each. A *slot* is the money for one request
that asks one question: open (counted at its maximum) until it is settled (counted at its cost).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, NamedTuple

from ray_judge.errors import ConfigError, EscalationError

_NANO = Decimal(10) ** 9
_EXACT = Context(prec=60)
_MOST_USD = Decimal(10) ** 9
"""A sum beyond this is a mistake of units; it is also what `decimal128(18, 9)` can hold."""
AS_IT_IS = 1000
"""A factor of leases, in thousandths: what a request can cost by its limits, and no more."""
_SUMS = ("settled", "held", "granted", "excess", "overruns", "factors")
BILLED_LATE_S = 3600.0
"""A request whose actor is lost may be billed this much later: longer than any client waits."""


def to_nanos(amount: Decimal, *, up: bool = True) -> int:
    """Whole nano-dollars of `amount` USD, rounded up (costs) or down (caps).

    Raises `ConfigError` for NaN, infinite, negative and absurdly large amounts, and for floats,
    which have lost the exact amount already.
    """
    if not isinstance(amount, Decimal):
        raise ConfigError(f"money must be Decimal, not {type(amount).__name__}", amount=amount)
    if not amount.is_finite() or amount < 0 or amount >= _MOST_USD:
        raise ConfigError("not an amount of money in US dollars", amount=amount)
    scaled = _EXACT.multiply(amount, _NANO)
    return int(scaled.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))


def to_usd(nanos: int) -> Decimal:
    """The same amount as `Decimal` dollars with nine decimals, exact."""
    return Decimal(nanos).scaleb(-9, _EXACT)


def month_of(now: float) -> str:
    """The account of the UTC month in which `now` (Unix seconds) lies."""
    return f"month:{datetime.fromtimestamp(now, UTC):%Y-%m}"


def month_begins(account: str) -> float:
    """Unix seconds at which the month of such an account begins."""
    return datetime.strptime(f"{account} +0000", "month:%Y-%m %z").timestamp()


@dataclass(slots=True)
class OpenLease:
    """What of a lease is not settled.

    `slots`: number of each open slot → (key of its question, maximum in nano-dollars). `lost_at`:
    when its actor was given up (Unix seconds); None while it is believed to be at work. `factor`:
    by how many thousandths the maxima were widened. `amount`: nano-dollars held by the open slots;
    a batch has too many to be added up at each look.
    """

    actor: str
    accounts: list[str]
    slots: dict[int, tuple[str, int]]
    factor: int = AS_IT_IS
    lost_at: float | None = None
    amount: int = field(init=False)

    def __post_init__(self) -> None:
        self.amount = sum(most for _, most in self.slots.values())


class Excess(NamedTuple):
    """What answers to a run cost beyond their leases, and how many did: none keep to limits."""

    usd: Decimal = Decimal(0)
    answers: int = 0
    factor: int = AS_IT_IS

    @property
    def said(self) -> str | None:
        """One sentence for people; None where every answer kept to its limits."""
        if not self.answers:
            return None
        return (
            f"The strong judge's server billed ${self.usd:.6f} beyond what the limits of "
            f"{self.answers:,} of its answers allow (up to {self.factor / AS_IT_IS:.1f} times as "
            "much): leases are as much larger since then, and no more than that can have been "
            "spent above the cap"
        )


@dataclass(slots=True)
class Accounts:
    """Balances of every account and every open lease.

    `settled` and `held`: nano-dollars per account. `granted`: how many leases each lease series
    (one per epoch of the ledger) has seen, so that a known lease whose slot is no longer open is
    recognised as settled, without a list of all settled slots. `excess`: nano-dollars per account
    that answers cost beyond their leases; `overruns`: how many did. `factors`: thousandths by which
    the leases of an account are widened, after what its dearest answers cost.
    """

    settled: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    leases: dict[str, OpenLease] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)
    excess: dict[str, int] = field(default_factory=dict)
    overruns: dict[str, int] = field(default_factory=dict)
    factors: dict[str, int] = field(default_factory=dict)

    def used(self, account: str) -> int:
        """Nano-dollars of the account that are settled or held."""
        return self.settled.get(account, 0) + self.held.get(account, 0)

    def returnable(self, account: str, actors: Collection[str]) -> int:
        """Nano-dollars held by leases of these actors: at best all of it comes back."""
        leases = self.leases.values()
        return sum(x.amount for x in leases if x.actor in actors and account in x.accounts)

    def factor(self, account: str) -> int:
        return self.factors.get(account, AS_IT_IS)

    def excess_of(self, account: str) -> Excess:
        usd, answers = to_usd(self.excess.get(account, 0)), self.overruns.get(account, 0)
        return Excess(usd, answers, self.factor(account))

    def grant(
        self,
        lease: str,
        actor: str,
        slots: Sequence[tuple[str, int]],
        accounts: Sequence[str],
        factor: int = AS_IT_IS,
    ) -> None:
        """Open a lease of (key, maximum) slots; the caller has checked that it fits."""
        series, _, number = lease.rpartition("-")
        self.granted[series] = max(self.granted.get(series, 0), int(number))
        opened = OpenLease(actor, list(accounts), dict(enumerate(slots)), factor)
        self.leases[lease] = opened
        for account in opened.accounts:
            self.held[account] = self.held.get(account, 0) + opened.amount

    def settle(self, lease: str, slot: int, cost: int) -> bool:
        """Turn an open slot into `cost` spent. False when it was settled before: nothing changes.

        A cost above the maximum (the provider does not keep to the limits of the request) is booked
        in full: the money is gone, so less is left to grant. It widens the leases to come. Raises
        `EscalationError` for a lease that was never granted.
        """
        opened = self.leases.get(lease)
        if opened is None or slot not in opened.slots:
            series, _, number = lease.rpartition("-")
            if not number.isdigit() or not 1 <= int(number) <= self.granted.get(series, 0):
                raise EscalationError("this ledger never granted that lease", lease=lease)
            return False
        _, most = opened.slots.pop(slot)
        opened.amount -= most
        widened = -(-cost * opened.factor // max(most, 1))
        for account in opened.accounts:
            self.held[account] -= most
            self.settled[account] = self.settled.get(account, 0) + cost
            if cost > most:
                self.excess[account] = self.excess.get(account, 0) + cost - most
                self.overruns[account] = self.overruns.get(account, 0) + 1
                self.factors[account] = max(self.factor(account), widened)
        if not opened.slots:
            del self.leases[lease]
        return True

    def charge_also(self, account: str) -> None:
        """Charge open leases to one more month, which began while they were open.

        Whether their requests are billed to the old month or the new is not known, so both count:
        leases that are not lost, and those lost so shortly before it began that a request may have
        been on its way then. When that is looked at does not matter: it may be weeks later.
        """
        begun = month_begins(account)
        for opened in self.leases.values():
            recent = opened.lost_at is None or opened.lost_at > begun - BILLED_LATE_S
            if recent and account not in opened.accounts:
                opened.accounts.append(account)
                self.held[account] = self.held.get(account, 0) + opened.amount

    def take_over(self, now: float, pending: Collection[str]) -> None:
        """A new owner begins: only actors in `pending` live on; what others hold is lost."""
        for opened in self.leases.values():
            if opened.actor in pending:
                opened.lost_at = None
            elif opened.lost_at is None:
                opened.lost_at = now

    def to_json(self) -> dict[str, Any]:
        leases = {
            name: [x.actor, x.accounts, x.factor, x.lost_at, x.slots]
            for name, x in self.leases.items()
        }
        return {**{name: getattr(self, name) for name in _SUMS}, "leases": leases}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Accounts:
        leases = {}
        for name, (actor, accounts, factor, lost_at, slots) in state["leases"].items():
            numbered = {int(number): (key, most) for number, (key, most) in slots.items()}
            leases[name] = OpenLease(actor, accounts, numbered, factor, lost_at)
        return cls(**{name: state[name] for name in _SUMS}, leases=leases)
