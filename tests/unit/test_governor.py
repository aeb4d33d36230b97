"""The governor in simulated time: real ledger, real limiter, an event loop without waiting."""

import asyncio
import random
from collections.abc import Callable
from decimal import Decimal as D
from typing import Any

import pytest

from ray_judge.errors import (
    ConfigError,
    EscalationError,
    LedgerFenced,
    PausedError,
    ProviderDown,
    StorageError,
)
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.online.governor import Governor, WallClock
from ray_judge.escalation.online.limiter import FIRST, Feedback, Limiter
from ray_judge.escalation.online.permits import Need, Permit
from ray_judge.failures import Signal

from .memory import MemoryStorage
from .test_ledger import END, books
from .test_limiter import START, Provider
from .virtual_time import virtual


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


class LoopClock(WallClock):
    def now(self) -> float:
        return START + asyncio.get_running_loop().time()


async def inline(work: Callable[[], None]) -> None:
    """A commit that takes 5 ms."""
    await asyncio.sleep(0.005)
    work()


def governor(of: Books, **more: Any) -> Governor:
    rates = {"requests_per_minute": 60_000, "concurrency": 64, "usable": FIRST}
    rates |= {name: more.pop(name) for name in rates if name in more}
    ledger, _ = of.claim("test")
    options = {"off_loop": inline, **more}
    return Governor(ledger, Limiter(**rates, tokens_per_minute=1e9), LoopClock(), **options)


def needs(*costs: str) -> list[Need]:
    return [Need(f"q{number}", D(cost), 100) for number, cost in enumerate(costs)]


@virtual
async def test_permits_carry_money_and_times(storage: MemoryStorage) -> None:
    gov = governor(books(storage), requests_per_minute=600)
    permit = await gov.acquire("a", needs("0.1", "0.1", "0.1"))
    assert 1 <= permit.slots == len(permit.send_after_s) <= 3
    assert list(permit.send_after_s) == sorted(permit.send_after_s)
    assert permit.lease_id.encode() in storage.files["ledger/00000001.log"], "durable before"
    for _ in range(2):
        await gov.settle("a", [(permit.lease_id, 0, D("0.02"))])
        assert gov.state()["in_flight"] == permit.slots - 1
    assert gov.state()["spent_usd"] == D("0.02")
    assert gov.state()["open_usd"] == D("0.1") * (permit.slots - 1)


@virtual
async def test_short_money_waits_for_open_leases_and_then_decides(storage: MemoryStorage) -> None:
    gov = governor(books(storage))
    first = await gov.acquire("a", needs("0.9"))
    waiting = asyncio.ensure_future(gov.acquire("b", needs("0.5")))
    hopeless = asyncio.ensure_future(gov.acquire("c", needs("0.95")))
    await asyncio.sleep(100)
    assert not waiting.done()
    await gov.settle("a", [(first.lease_id, 0, D("0.1"))])
    granted = await waiting
    assert granted.slots == 1
    await gov.settle("b", [(granted.lease_id, 0, D("0.2"))])
    denied = await hopeless
    assert (denied.denied, denied.cap, denied.slots) == (1, "run", 0)
    assert (await gov.acquire("c", needs("0.7"))).slots == 1


@virtual
async def test_what_can_never_be_had_is_denied_in_one_answer(storage: MemoryStorage) -> None:
    gov = governor(books(storage, "1", monthly="0.5"))
    first = await gov.acquire("a", needs("0.3", "0.6", "0.7", "2", "0.1"))
    assert (first.slots, first.denied, first.cap) == (1, 2, "month")
    second = await gov.acquire("a", needs(*["2"] * 40))
    assert (second.slots, second.denied, second.cap) == (0, 40, "run")
    assert gov.state()["best_usd"] == {"run": D(1), "month": D("0.5")}
    await gov.settle("a", [(first.lease_id, 0, D("0.2"))])
    assert gov.state()["best_usd"] == {"run": D("0.8"), "month": D("0.3")}


@pytest.mark.parametrize(
    ("spent_in", "costs"),
    [("old", ["0.1"]), ("old", ["0.04", "0.1"]), ("new", ["0.1"]), ("new", ["0.04", "0.04"])],
)
@pytest.mark.parametrize("look", ["best_usd", "fitting", "reserve"])
@virtual
async def test_a_month_that_begins_between_two_looks_leaks_nothing(
    storage: MemoryStorage, spent_in: str, costs: list[str], look: str
) -> None:
    """`spent_in`: the month that has only 0.05 left (the new one, if a clock was fast)."""
    now = START if spent_in == "old" else END

    of = books(storage, "100", monthly="1", now=lambda: now)
    ledger, _ = of.claim("test")
    ledger.settle(ledger.grant("a", [("q", D("0.95"))]).id, 0, D("0.95"))
    ledger.close()
    now = START
    gov = governor(of)
    owner: Any = gov._limiter if look == "reserve" else gov._ledger
    real, calls = getattr(owner, look), 0

    def looked(*args: Any) -> Any:
        nonlocal now, calls
        result, calls = real(*args), calls + 1
        if calls > (look == "fitting"):  # `acquire` itself looks whether they are amounts
            now = END
        return result

    setattr(owner, look, looked)
    wanted = needs(*costs)
    while wanted:
        permit = await gov.acquire("a", wanted)
        assert permit.slots or (permit.denied and permit.cap == "month")
        assert gov.state()["in_flight"] == permit.slots
        await gov.settle("a", [(permit.lease_id, n, D(0)) for n in range(permit.slots)])
        assert (gov.state()["open_usd"], gov.state()["in_flight"]) == (0, 0)
        wanted = wanted[permit.slots + permit.denied :]


@pytest.mark.parametrize("commit_s", [0.002, 0.08])
@virtual
async def test_actors_use_the_rate_and_take_turns(storage: MemoryStorage, commit_s: float) -> None:
    """5,000 requests/min over two minutes, whoever of them asks as often as twenty others.

    At least 98 % of it, and at most 0.1 % answered 429, though requests are late by up to 50 ms.
    """
    rng, sent = random.Random(1), list[float]()

    async def slow(work: Callable[[], None]) -> None:
        await asyncio.sleep(commit_s)
        work()

    rates = {"requests_per_minute": 5000, "concurrency": 10_000}
    gov = governor(books(storage, "1000000"), off_loop=slow, **rates)
    served = {"greedy": 0, "modest": 0}

    async def actor(name: str) -> None:
        while asyncio.get_running_loop().time() < 120:
            permit = await gov.acquire(name, needs(*["0.1"] * 16))
            now = asyncio.get_running_loop().time()
            served[name] += permit.slots
            sent.extend(now + after_s + rng.uniform(0, 0.05) for after_s in permit.send_after_s)
            await asyncio.sleep(max(permit.send_after_s) + 0.5)
            items = [(permit.lease_id, slot, D("0.1")) for slot in range(permit.slots)]
            await gov.settle(name, items)

    await asyncio.gather(*(actor(name) for name in ["greedy"] * 20 + ["modest"] * 8))
    provider = Provider(5000, 1e9, 1.0)
    for at in sorted(at for at in sent if at <= 120):
        provider.answer(0, START + at)
    assert provider.taken >= 0.98 * 10_000
    assert provider.refused <= 0.001 * provider.taken
    assert served["modest"] >= 0.3 * served["greedy"]
    assert (gov.state()["open_usd"], gov.state()["in_flight"]) == (0, 0)


@virtual
async def test_a_pause_and_the_end_answer_everyone(storage: MemoryStorage) -> None:
    gov = governor(books(storage))
    granted = asyncio.ensure_future(gov.acquire("a", needs("0.9")))
    await asyncio.sleep(0.001)  # its commit is on the way
    waiting = asyncio.ensure_future(gov.acquire("b", needs("0.5")))
    await asyncio.sleep(1)
    gov.pause(why := PausedError("insufficient_quota"))
    assert await waiting == Permit("", 0, paused=why)
    assert (await gov.acquire("b", needs("0.1"))).paused is why
    assert (await granted).slots == 1
    another = governor(books(MemoryStorage()))
    await another.acquire("a", needs("0.9"))
    waiting = asyncio.ensure_future(another.acquire("b", needs("0.9")))
    await asyncio.sleep(1)
    await another.close()
    assert str((await waiting).paused) == "the run is ending"


@pytest.mark.parametrize(
    ("signal", "headers"),
    [
        (Signal.UNAVAILABLE, {}), (Signal.RATE_LIMITED, {}),
        (Signal.RATE_LIMITED, {"retry-after": "3600"}),
    ],
)  # fmt: skip
@virtual
async def test_a_provider_that_stays_down_pauses_the_run(
    storage: MemoryStorage, signal: Signal, headers: dict[str, str]
) -> None:
    """The time in which nothing was asked does not count."""
    gov = governor(books(storage, "1000"), patience_s=120.0)
    told = Feedback(signal, headers, why="HTTP 5xx: no")

    async def ask() -> Permit:
        permit = await gov.acquire("a", needs("0.001"))
        if not permit.paused:
            await gov.settle("a", [(permit.lease_id, 0, D(0))], feedback=[told])
        return permit

    await ask()
    await asyncio.sleep(4000)
    assert not (await ask()).paused
    await gov.settle("a", [], feedback=[])
    begun = asyncio.get_running_loop().time()
    while not (permit := await ask()).paused:
        pass
    assert isinstance(permit.paused, ProviderDown)
    assert str(permit.paused).startswith("the strong judge's server gave no answer for 120 s")
    assert "HTTP 5xx: no" in str(permit.paused)
    assert asyncio.get_running_loop().time() - begun < 300


@pytest.mark.parametrize(
    ("signal", "error"), [(Signal.OK, EscalationError), (Signal.UNAVAILABLE, ProviderDown)]
)
@virtual
async def test_first_answers_that_cannot_be_used_end_the_run(
    storage: MemoryStorage, signal: Signal, error: type[Exception]
) -> None:
    """They are asked one by one, and all who wait are told why."""
    gov = governor(books(storage, "1000"), usable=0)
    for number in range(FIRST):
        permit = await gov.acquire("a", needs("0.001", "0.001"))
        assert (permit.slots, permit.proven) == (1, False)
        waiting = asyncio.ensure_future(gov.acquire("b", needs("0.001")))
        await asyncio.sleep(10)
        assert not waiting.done()
        waiting.cancel()
        told = Feedback(signal, usable=False, why=f"cut {number}")
        await gov.settle("a", [(permit.lease_id, 0, D("0.001"))], feedback=[told])
    permit = await gov.acquire("a", needs("0.001"))
    assert type(permit.paused) is error and "15" in str(permit.paused)


@virtual
async def test_a_cancelled_acquire_gives_its_lease_back(storage: MemoryStorage) -> None:
    gov = governor(books(storage))
    asking = asyncio.ensure_future(gov.acquire("a", needs("0.9")))
    await asyncio.sleep(0.001)  # proposed; its commit is on the way
    asking.cancel()
    await asyncio.sleep(1)
    assert (gov.state()["open_usd"], gov.state()["in_flight"]) == (0, 0)
    first = await gov.acquire("a", needs("0.9"))
    blocked = asyncio.ensure_future(gov.acquire("b", needs("0.9")))
    waiting = asyncio.ensure_future(gov.acquire("c", needs("0.9")))
    await asyncio.sleep(1)
    blocked.cancel()
    await asyncio.sleep(0)
    await gov.settle("a", [], released=[(first.lease_id, 0)])
    assert (await waiting).slots == 1, "what is released is granted at once"


@pytest.mark.parametrize("error", [LedgerFenced, StorageError])
@virtual
async def test_all_hear_of_a_lost_ledger(storage: MemoryStorage, error: type[Exception]) -> None:
    async def commit(work: Callable[[], None]) -> None:
        if error is StorageError and gov.state()["open_usd"] > 1:
            raise StorageError("disk full")
        work()

    gov = governor(books(storage, "9"), off_loop=commit)
    with pytest.raises(ConfigError, match="money"):  # its caller's error alone
        await gov.acquire("a", [Need("q", D("NaN"), 1)])
    first = await gov.acquire("a", needs("0.9"))
    if error is LedgerFenced:
        books(storage).claim("another")
    asking = [gov.acquire(actor, needs("0.9")) for actor in "ab"]
    assert [type(told) for told in await asyncio.gather(*asking, return_exceptions=True)] == [
        error, error,
    ]  # fmt: skip
    for late in (gov.acquire("a", needs("0.9")), gov.settle("a", [(first.lease_id, 0, D(0))])):
        with pytest.raises(error):
            await late
