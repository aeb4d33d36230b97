"""The governor in simulated time: real ledger, real limiter, an event loop without waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from ray_judge.errors import ConfigError, LedgerFenced, StorageError
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.online.limiter import Feedback, Limiter, Signal
from ray_judge.escalation.online.permits import PROVIDER_DOWN, Need, Permit
from ray_judge.storage.local import LocalStorage

from .virtual_time import virtual

pytestmark = pytest.mark.timeout(60)

START = 1_795_000_000.0
DECEMBER = 1_796_083_200.0


class LoopClock:
    def now(self) -> float:
        return START + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def inline(work: Callable[[], None]) -> None:
    """A commit that takes 5 ms."""
    await asyncio.sleep(0.005)
    work()


def books(folder: Path, cap: str = "1", month: str | None = None, **more: Any) -> Books:
    caps: Any = {"cap_usd": D(cap), "monthly_cap_usd": month and D(month)}
    options = {"shared": False, "run": "run", "clock": lambda: START, **caps, **more}
    return Books(LocalStorage(str(folder)), **options)


def governor(of: Books, **more: Any) -> Governor:
    rates = {"requests_per_minute": 60_000, "concurrency": 64}
    rates |= {name: more.pop(name) for name in rates if name in more}
    ledger, _ = of.claim("test")
    options = {"off_loop": inline, **more}
    return Governor(ledger, Limiter(**rates, tokens_per_minute=1e9), LoopClock(), **options)


def needs(*costs: str) -> list[Need]:
    return [Need(f"q{number}", D(cost), 100) for number, cost in enumerate(costs)]


@virtual
async def test_permits_carry_money_and_times(tmp_path: Path) -> None:
    gov = governor(books(tmp_path), requests_per_minute=600)
    permit = await gov.acquire("a", needs("0.1", "0.1", "0.1"))
    assert 1 <= permit.slots <= 3
    assert len(permit.send_after_s) == permit.slots
    assert list(permit.send_after_s) == sorted(permit.send_after_s)
    await gov.settle("a", [(permit.lease_id, 0, D("0.02"))])
    assert gov.state()["spent_usd"] == D("0.02")
    assert gov.state()["open_usd"] == D("0.1") * (permit.slots - 1)


@virtual
async def test_the_lease_is_durable_before_the_permit_is_answered(tmp_path: Path) -> None:
    gov, storage = governor(books(tmp_path)), LocalStorage(str(tmp_path))
    permit = await gov.acquire("a", needs("0.1"))
    data = b"".join(storage.read(name) for name in storage.list("ledger") if ".log" in name)
    assert permit.lease_id.encode() in data and b'"q0"' in data


@virtual
async def test_short_money_waits_for_open_leases_and_then_decides(tmp_path: Path) -> None:
    gov = governor(books(tmp_path))
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
async def test_what_can_never_be_had_is_denied_in_one_answer(tmp_path: Path) -> None:
    gov = governor(books(tmp_path, "1", month="0.5"))
    first = await gov.acquire("a", needs("0.3", "0.6", "0.7", "2", "0.1"))
    assert (first.slots, first.denied, first.cap) == (1, 2, "month")
    second = await gov.acquire("a", needs(*["2"] * 40))
    assert (second.slots, second.denied, second.cap) == (0, 40, "run")
    assert gov.state()["best_usd"] == {"run": D(1), "month": D("0.5")}
    await gov.settle("a", [(first.lease_id, 0, D("0.2"))])
    assert gov.state()["best_usd"] == {"run": D("0.8"), "month": D("0.3")}


@pytest.mark.parametrize("cost", ["0", "0.1"])
@virtual
async def test_a_cap_of_zero_grants_nothing(tmp_path: Path, cost: str) -> None:
    permit = await governor(books(tmp_path, "0")).acquire("a", needs(cost, cost))
    assert (permit.slots, permit.denied, permit.cap) == (0, 2, "run")


@pytest.mark.parametrize(
    ("spent_in", "costs"),
    [("old", ["0.1"]), ("old", ["0.04", "0.1"]), ("new", ["0.1"]), ("new", ["0.04", "0.04"])],
)
@pytest.mark.parametrize("look", ["best_usd", "fitting", "reserve"])
@virtual
async def test_a_month_that_begins_between_two_looks_leaks_nothing(
    tmp_path: Path, spent_in: str, costs: list[str], look: str
) -> None:
    """`spent_in`: the month that has only 0.05 left (the new one, if a clock was fast)."""
    now = START if spent_in == "old" else DECEMBER

    of = books(tmp_path, "100", month="1", clock=lambda: now)
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
            now = DECEMBER
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


@virtual
async def test_actors_are_served_in_turn(tmp_path: Path) -> None:
    gov = governor(books(tmp_path, "1000000"), requests_per_minute=600, concurrency=10_000)
    served = {"greedy": 0, "modest": 0}

    async def actor(name: str, batch: int) -> None:
        while True:
            permit = await gov.acquire(name, needs(*["0.1"] * batch))
            served[name] += permit.slots
            items = [(permit.lease_id, slot, D("0.1")) for slot in range(permit.slots)]
            await gov.settle(name, items)

    tasks = [asyncio.ensure_future(actor("greedy", 16)) for _ in range(20)]
    tasks.append(asyncio.ensure_future(actor("modest", 16)))
    await asyncio.sleep(60)
    assert served["modest"] >= 0.3 * served["greedy"]


@virtual
async def test_a_pause_answers_everyone(tmp_path: Path) -> None:
    gov = governor(books(tmp_path))
    await gov.acquire("a", needs("0.9"))
    waiting = asyncio.ensure_future(gov.acquire("b", needs("0.5")))
    await asyncio.sleep(1)
    gov.pause("insufficient_quota")
    assert await waiting == Permit("", 0, paused="insufficient_quota")
    assert (await gov.acquire("b", needs("0.1"))).paused == "insufficient_quota"


@virtual
async def test_closing_waits_for_a_commit_and_answers_everyone(tmp_path: Path) -> None:
    gov = governor(books(tmp_path))
    granted = asyncio.ensure_future(gov.acquire("a", needs("0.9")))
    await asyncio.sleep(0.001)  # its commit is on the way
    waiting = asyncio.ensure_future(gov.acquire("b", needs("0.5")))
    await asyncio.sleep(0)
    await gov.close()
    assert (await granted).slots == 1
    assert (await waiting).paused == "the run is ending"


@virtual
async def test_a_provider_that_stays_down_pauses_the_run(tmp_path: Path) -> None:
    gov = governor(books(tmp_path, "1000"), patience_s=120.0)
    begun = asyncio.get_running_loop().time()
    while True:
        permit = await gov.acquire("a", needs("0.001"))
        if permit.paused:
            break
        item = (permit.lease_id, 0, D(0))
        await gov.settle("a", [item], feedback=[Feedback(Signal.UNAVAILABLE)])
    assert permit.paused == PROVIDER_DOWN
    assert 120 < asyncio.get_running_loop().time() - begun < 300


@virtual
async def test_a_lost_ledger_is_heard_by_everyone(tmp_path: Path) -> None:
    gov = governor(books(tmp_path))
    first = await gov.acquire("a", needs("0.9"))
    books(tmp_path).claim("another")
    results = await asyncio.gather(
        gov.acquire("a", needs("0.05")), gov.acquire("b", needs("0.05")), return_exceptions=True
    )
    assert all(isinstance(result, LedgerFenced) for result in results)
    with pytest.raises(LedgerFenced):
        await gov.acquire("a", needs("0.05"))
    with pytest.raises(LedgerFenced):
        await gov.settle("a", [(first.lease_id, 0, D("0.1"))])
    await gov.close()


@virtual
async def test_storage_that_fails_grants_nothing(tmp_path: Path) -> None:
    async def fail(work: Callable[[], None]) -> None:
        raise StorageError("disk full")

    with pytest.raises(StorageError):
        await governor(books(tmp_path), off_loop=fail).acquire("a", needs("0.05"))


@virtual
async def test_a_need_that_is_no_amount_is_its_callers_error_alone(tmp_path: Path) -> None:
    gov = governor(books(tmp_path))
    with pytest.raises(ConfigError):
        await gov.acquire("a", [Need("q", D("NaN"), 1)])
    assert (await gov.acquire("b", needs("0.05"))).slots == 1


@virtual
async def test_a_cancelled_acquire_gives_its_lease_back(tmp_path: Path) -> None:
    gov = governor(books(tmp_path))
    asking = asyncio.ensure_future(gov.acquire("a", needs("0.9")))
    await asyncio.sleep(0.001)  # proposed; its commit is on the way
    asking.cancel()
    await asyncio.sleep(1)
    assert (gov.state()["open_usd"], gov.state()["in_flight"]) == (0, 0)
    first = await gov.acquire("a", needs("0.9"))
    blocked = asyncio.ensure_future(gov.acquire("b", needs("0.9")))
    await asyncio.sleep(1)
    blocked.cancel()
    await asyncio.sleep(0)
    await gov.settle("a", [], released=[(first.lease_id, 0)])
    assert (await gov.acquire("c", needs("0.9"))).slots == 1


@pytest.mark.parametrize("commit_s", [0.002, 0.08])
@virtual
async def test_eight_actors_use_the_allowed_rate(tmp_path: Path, commit_s: float) -> None:
    """5,000 requests/min over two minutes: at least 98 % of it, at most 0.1 % answered 429."""

    async def slow(work: Callable[[], None]) -> None:
        await asyncio.sleep(commit_s)
        work()

    gov = governor(
        books(tmp_path, "1000000"), requests_per_minute=5000, concurrency=512, off_loop=slow
    )
    rng = random.Random(1)
    loop = asyncio.get_running_loop()
    rate, size = 5000 / 60, 5000 / 60
    bucket = {"level": size, "at": 0.0, "ok": 0.0, "refused": 0.0}

    async def ask(actor: str, lease: str, slot: int, after_s: float) -> None:
        await asyncio.sleep(after_s + rng.uniform(0, 0.05))
        now = loop.time()
        bucket["level"] = min(size, bucket["level"] + (now - bucket["at"]) * rate)
        bucket["at"] = now
        ok = bucket["level"] >= 1
        bucket["level"] -= ok
        bucket["ok" if ok else "refused"] += now <= 120
        await asyncio.sleep(rng.uniform(0.3, 2.0))
        signal = Signal.OK if ok else Signal.RATE_LIMITED
        await gov.settle(actor, [(lease, slot, D("0.01"))], feedback=[Feedback(signal)])

    async def actor(name: str) -> None:
        while loop.time() < 120:
            permit = await gov.acquire(name, needs(*["0.01"] * 16))
            for slot, after_s in enumerate(permit.send_after_s):
                asking.add(asyncio.ensure_future(ask(name, permit.lease_id, slot, after_s)))

    asking: set[asyncio.Future[None]] = set()
    await asyncio.gather(*(actor(f"actor{n}") for n in range(8)))
    await asyncio.gather(*asking)
    assert bucket["ok"] >= 0.98 * 10_000
    assert bucket["refused"] <= 0.001 * bucket["ok"]
    assert (gov.state()["open_usd"], gov.state()["in_flight"]) == (0, 0)
