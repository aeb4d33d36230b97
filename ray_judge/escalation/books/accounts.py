"""The arithmetic of the ledger: who holds how much of which cap. Pure: no clock, no storage.

Money inside is whole nano-dollars (`int`): sums are exact whatever the decimal context of the
process. It is `Decimal` dollars everywhere else.

An *account* is something that a cap applies to: `run:<name>` or `month:2026-11`. A lease is
charged to several accounts at once and must fit into each. A *slot* is the money for one request:
open (counted at its maximum) until it is settled (counted at its cost).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation
from typing import Any

from ray_judge.errors import ConfigError, EscalationError

_NANO = Decimal(10) ** 9
_EXACT = Context(prec=60)
_MOST_USD = Decimal(10) ** 9
"""A sum beyond this is a mistake of units; it is also what `decimal128(18, 9)` can hold."""


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


def parse_usd(text: str) -> int:
    """Nano-dollars of a decimal string as the logs hold it."""
    try:
        return to_nanos(Decimal(text))
    except InvalidOperation as error:
        raise ConfigError("not a decimal number", amount=text) from error


def month_of(now: float) -> str:
    """The account of the UTC month in which `now` (Unix seconds) lies."""
    return f"month:{datetime.fromtimestamp(now, UTC):%Y-%m}"


def month_begins(account: str) -> float:
    """Unix seconds at which the month of such an account begins."""
    return datetime.strptime(f"{account} +0000", "month:%Y-%m %z").timestamp()


def comes_back(account: str | None) -> bool:
    """Whether what this account is short of is there again when the next UTC month begins."""
    return account is not None and account.startswith("month:")


BILLED_LATE_S = 3600.0
"""A request whose asker is gone may be billed this much later: longer than any client waits."""


@dataclass(slots=True)
class Held:
    """An open lease: `slots` maps the number of each open slot to its maximum in nano-dollars.

    `lost_at`: when its actor was given up (Unix seconds); None while it is believed to be at work.
    """

    actor: str
    accounts: list[str]
    slots: dict[int, int]
    lost_at: float | None = None

    @property
    def live(self) -> bool:
        """Whether its actor is at work, so that the money may come back."""
        return self.lost_at is None

    @property
    def amount(self) -> int:
        """Nano-dollars held by the open slots."""
        return sum(self.slots.values())


@dataclass(slots=True)
class Accounts:
    """Balances of every account and every open lease.

    `settled` and `held`: nano-dollars per account. `granted`: how many leases each lease series
    (one per epoch of the ledger) has seen, so that a known lease whose slot is no longer open is
    recognised as settled, without a list of all settled slots.
    """

    settled: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Held] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)
    overruns: int = 0

    def used(self, account: str) -> int:
        """Nano-dollars of the account that are settled or held."""
        return self.settled.get(account, 0) + self.held.get(account, 0)

    def returnable(self, account: str) -> int:
        """Nano-dollars held by live leases: at best all of it comes back."""
        return sum(h.amount for h in self.leases.values() if h.live and account in h.accounts)

    def open_slots(self, actor: str | None = None) -> list[tuple[str, int]]:
        """(lease, slot) of everything that the actor, or anyone, has not settled."""
        held = [(k, h) for k, h in self.leases.items() if actor is None or h.actor == actor]
        return [(lease, slot) for lease, h in held for slot in h.slots]

    def grant(self, lease: str, actor: str, maxima: Iterable[int], accounts: list[str]) -> None:
        """Open a lease; the caller has checked that it fits."""
        series, _, number = lease.rpartition("-")
        held = Held(actor, list(accounts), dict(enumerate(maxima)))
        self.granted[series] = max(self.granted.get(series, 0), int(number))
        self.leases[lease] = held
        for account in held.accounts:
            self.held[account] = self.held.get(account, 0) + held.amount

    def settle(self, lease: str, slot: int, cost: int) -> bool:
        """Turn an open slot into `cost` spent. False when it was settled before: nothing changes.

        A cost above the maximum (the provider counted more than the bound allows) is booked in
        full and counted in `overruns`: the money is gone, so less is left to grant.
        """
        held = self.leases.get(lease)
        if held is None or slot not in held.slots:
            self._known(lease)
            return False
        maximum = held.slots.pop(slot)
        self.overruns += cost > maximum
        for account in held.accounts:
            self.held[account] -= maximum
            self.settled[account] = self.settled.get(account, 0) + cost
        if not held.slots:
            del self.leases[lease]
        return True

    def _known(self, lease: str) -> None:
        series, _, number = lease.rpartition("-")
        if not number.isdigit() or not 1 <= int(number) <= self.granted.get(series, 0):
            raise EscalationError("this ledger never granted that lease", lease=lease)

    def charge_also(self, account: str) -> None:
        """Charge open leases to one more month, which began while they were open.

        Whether their requests are billed to the old month or the new is not known, so both count:
        live leases, and those lost so shortly before it began that a request may have been on
        its way then. When that is looked at does not matter: it may be weeks later.
        """
        begun = month_begins(account)
        for held in self.leases.values():
            recent = held.lost_at is None or held.lost_at > begun - BILLED_LATE_S
            if recent and account not in held.accounts:
                held.accounts.append(account)
                self.held[account] = self.held.get(account, 0) + held.amount

    def orphan(self, now: float, actor: str | None = None) -> None:
        """The actor (or everyone) is gone: its open slots count as spent, at their maximum."""
        for held in self.leases.values():
            if held.live and (actor is None or held.actor == actor):
                held.lost_at = now

    def adopt(self, actor: str) -> None:
        """The actor is alive after all and will settle its leases."""
        for held in self.leases.values():
            if held.actor == actor:
                held.lost_at = None

    def to_json(self) -> dict[str, Any]:
        """The whole state, money as decimal strings."""
        return {
            "settled": {name: str(to_usd(nanos)) for name, nanos in self.settled.items()},
            "leases": [
                {
                    "lease": lease,
                    "actor": h.actor,
                    "to": h.accounts,
                    "lost": h.lost_at,
                    "max": {str(slot): str(to_usd(nanos)) for slot, nanos in h.slots.items()},
                }
                for lease, h in self.leases.items()
            ],
            "granted": self.granted,
            "overruns": self.overruns,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Accounts:
        """The state that `to_json` gave."""
        accounts = cls(overruns=int(state["overruns"]))
        accounts.settled = {name: parse_usd(text) for name, text in state["settled"].items()}
        for item in state["leases"]:
            slots = {int(slot): parse_usd(text) for slot, text in item["max"].items()}
            held = Held(item["actor"], list(item["to"]), slots, item["lost"])
            accounts.leases[item["lease"]] = held
            for name in held.accounts:
                accounts.held[name] = accounts.held.get(name, 0) + held.amount
        accounts.granted = {series: int(count) for series, count in state["granted"].items()}
        return accounts
