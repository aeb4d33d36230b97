"""The governor in simulated time: real ledger, real limiter, an event loop without waiting."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Mapping
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from ray_judge.errors import ConfigError, LedgerFenced, StorageError
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.online.governor import PROVIDER_DOWN, Governor, Need, Permit
from ray_judge.escalation.online.limiter import Feedback, Limiter, Signal
from ray_judge.storage.local import LocalStorage

pytestmark = pytest.mark.timeout(60)

START = 1_795_000_000.0


class _Skip(selectors.SelectSelector):
    """Instead of waiting, time jumps to the next event."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("deadlock: everyone waits and nothing is due")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is data."""

    def __init__(self) -> None:
        self.skip = _Skip()
        super().__init__(self.skip)

    def time(self) -> float:
        return self.skip.now


class LoopClock:
    def now(self) -> float:
        return START + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


async def inline(work: Callable[[], None]) -> None:
    """A commit that takes 5 ms."""
    await asyncio.sleep(0.005)
    work()


def governor(folder: Path, cap: str = "1", **more: Any) -> Governor:
    rates: Mapping[str, Any] = {
        "requests_per_minute": 60_000,
        "tokens_per_minute": 1e9,
        "concurrency": 64,
        **{k: more.pop(k) for k in list(more) if k in ("requests_per_minute", "concurrency")},
    }
    ledger = Ledger.open(
        LocalStorage(str(folder)),
        cap_usd=D(cap),
        owner="test",
        journal_costs={},
        clock=lambda: START,
    )
    return Governor(ledger, Limiter(**rates), LoopClock(), off_loop=inline, **more)


def needs(*costs: str) -> list[Need]:
    return [Need(D(cost), 100) for cost in costs]


def test_permits_carry_money_and_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path, requests_per_minute=600)
        permit = await gov.acquire("a", needs("0.1", "0.1", "0.1"))
        assert 1 <= permit.slots <= 3
        assert len(permit.send_after_s) == permit.slots
        assert list(permit.send_after_s) == sorted(permit.send_after_s)
        await gov.settle("a", [(permit.lease_id, 0, D("0.02"))])
        state = gov.state()
        assert state["spent_usd"] == D("0.02")
        assert state["open_usd"] == D("0.1") * (permit.slots - 1)
        await gov.close()

    run(scenario)


def test_the_lease_is_durable_before_the_permit_is_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
        permit = await gov.acquire("a", needs("0.1"))
        logs = LocalStorage(str(tmp_path)).list("ledger")
        data = b"".join(LocalStorage(str(tmp_path)).read(p) for p in logs if p.endswith(".log"))
        assert permit.lease_id.encode() in data

    run(scenario)


def test_short_money_waits_for_open_leases_and_then_decides(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
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
        assert (denied.denied, denied.account, denied.slots) == (True, "run:run", 0)
        assert (await gov.acquire("c", needs("0.7"))).slots == 1

    run(scenario)


def test_release_frees_money_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
        first = await gov.acquire("a", needs("0.9"))
        waiting = asyncio.ensure_future(gov.acquire("b", needs("0.9")))
        await asyncio.sleep(1)
        await gov.settle("a", [], released=[(first.lease_id, 0)])
        assert (await waiting).slots == 1

    run(scenario)


def test_a_dead_actors_money_is_spent_unless_proven(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path, concurrency=2)
        first = await gov.acquire("a", needs("0.5", "0.5"))
        assert first.slots == 2
        waiting = asyncio.ensure_future(gov.acquire("b", needs("0.4")))
        await asyncio.sleep(1)
        await gov.actor_died("a", {(first.lease_id, 0): D("0.1")})
        assert (await waiting).slots == 1
        assert gov.state()["lost_usd"] == D("0.5")
        # Its answer comes after all: booked, and nobody's place is given back twice.
        await gov.settle("a", [(first.lease_id, 1, D("0.2"))])
        assert gov.state()["lost_usd"] == 0
        assert gov.state()["in_flight"] == 1

    run(scenario)


def test_actors_are_served_in_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path, cap="1000000", requests_per_minute=600, concurrency=10_000)
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

    run(scenario)


def test_a_pause_answers_everyone_and_can_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
        await gov.acquire("a", needs("0.9"))
        waiting = asyncio.ensure_future(gov.acquire("b", needs("0.5")))
        await asyncio.sleep(1)
        gov.pause("insufficient_quota")
        assert await waiting == Permit("", 0, paused="insufficient_quota")
        assert (await gov.acquire("b", needs("0.1"))).paused == "insufficient_quota"
        gov.resume()
        assert (await gov.acquire("b", needs("0.1"))).slots == 1

    run(scenario)


def test_a_provider_that_stays_down_pauses_the_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path, cap="1000", patience_s=120.0)
        begun = asyncio.get_running_loop().time()
        while True:
            permit = await gov.acquire("a", needs("0.001"))
            if permit.paused:
                break
            item = (permit.lease_id, 0, D(0))
            await gov.settle("a", [item], feedback=[Feedback(Signal.UNAVAILABLE)])
        assert permit.paused == PROVIDER_DOWN
        assert 120 < asyncio.get_running_loop().time() - begun < 300

    run(scenario)


def test_a_lost_ledger_is_heard_by_everyone(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
        first = await gov.acquire("a", needs("0.9"))
        Ledger.open(LocalStorage(str(tmp_path)), cap_usd=D(1), owner="2", journal_costs={})
        results = await asyncio.gather(
            gov.acquire("a", needs("0.05")), gov.acquire("b", needs("0.05")), return_exceptions=True
        )
        assert all(isinstance(result, LedgerFenced) for result in results)
        with pytest.raises(LedgerFenced):
            await gov.acquire("a", needs("0.05"))
        with pytest.raises(LedgerFenced):
            await gov.settle("a", [(first.lease_id, 0, D("0.1"))])
        await gov.close()

    run(scenario)


def test_storage_that_fails_grants_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)

        async def fail(work: Callable[[], None]) -> None:
            raise StorageError("disk full")

        gov._off_loop = fail
        with pytest.raises(StorageError):
            await gov.acquire("a", needs("0.05"))

    run(scenario)


def test_a_need_that_is_no_amount_is_its_callers_error_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
        with pytest.raises(ConfigError):
            await gov.acquire("a", [Need(D("NaN"), 1)])
        assert (await gov.acquire("b", needs("0.05"))).slots == 1

    run(scenario)


def test_a_cancelled_acquire_gives_its_lease_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path)
        asking = asyncio.ensure_future(gov.acquire("a", needs("0.9")))
        await asyncio.sleep(0.001)  # proposed; its commit is on the way
        asking.cancel()
        await asyncio.sleep(1)
        assert gov.state()["open_usd"] == 0
        assert gov.state()["in_flight"] == 0
        waiting = asyncio.ensure_future(gov.acquire("a", needs("0.9")))
        first = await waiting
        blocked = asyncio.ensure_future(gov.acquire("b", needs("0.9")))
        await asyncio.sleep(1)
        blocked.cancel()
        await asyncio.sleep(0)
        await gov.settle("a", [], released=[(first.lease_id, 0)])
        assert (await gov.acquire("c", needs("0.9"))).slots == 1

    run(scenario)


def test_a_new_portion_is_heard_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        gov = governor(tmp_path, requests_per_minute=6)
        loop = asyncio.get_running_loop()
        gov.set_portion(0.0)
        first = asyncio.ensure_future(gov.acquire("a", needs("0.1")))
        await asyncio.sleep(100)
        assert not first.done(), "nobody may go"
        assert gov.wants() == 1.0
        gov.set_portion(0.1)
        assert (await first).slots == 1
        assert loop.time() == pytest.approx(100, abs=0.1)
        second = asyncio.ensure_future(gov.acquire("a", needs("0.1")))
        await asyncio.sleep(10)
        assert not second.done(), "one in 100 s is a tenth of the rate"
        gov.set_portion(1.0)
        assert (await second).slots == 1
        assert loop.time() == pytest.approx(119, abs=2), "what is left of it goes ten times as fast"

    run(scenario)


@pytest.mark.parametrize("commit_s", [0.002, 0.08])
def test_eight_actors_use_the_allowed_rate(tmp_path: Path, commit_s: float) -> None:
    """5,000 requests/min over two minutes: at least 98 % of it, at most 0.1 % answered 429."""

    async def slow(work: Callable[[], None]) -> None:
        await asyncio.sleep(commit_s)
        work()

    async def scenario() -> None:
        gov = governor(tmp_path, cap="1000000", requests_per_minute=5000, concurrency=512)
        gov._off_loop = slow
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
        assert gov.state()["in_flight"] == 0
        assert gov.state()["open_usd"] == 0

    run(scenario)
