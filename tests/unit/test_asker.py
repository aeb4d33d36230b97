"""Lease, send, journal, settle: with a scripted server, and the governor's part played by hand."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from ray_judge.errors import EscalationError, PausedError, ProviderDown, RayJudgeError
from ray_judge.escalation.answers import Reply
from ray_judge.escalation.books.journal import InVain
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.limiter import Feedback
from ray_judge.escalation.online.permits import Need, Permit, Permits
from ray_judge.failures import LOST_TRIES, TRIES, Kind, RequestFailed, Signal
from ray_judge.records import Answer, Example, Outcome, Usage

from .test_questions import maker
from .virtual_time import virtual


@dataclass
class FakeGovernor:
    """A governor with so much money, that notes what it is told."""

    left: Decimal = Decimal(1)
    cap: str = "run"
    reason: RayJudgeError | None = None
    send_after_s: float = 0.0
    proven: bool = True
    calls: list[int] = field(default_factory=list)
    open: dict[tuple[str, int], Decimal] = field(default_factory=dict)
    settled: dict[tuple[str, int], Decimal] = field(default_factory=dict)
    told: list[Feedback] = field(default_factory=list)

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        await asyncio.sleep(0)
        if self.reason:
            return Permit("", 0, paused=self.reason)
        self.calls.append(len(needs))
        lease, slots = f"l-{len(self.calls)}", 0
        while slots < len(needs) and needs[slots].max_cost_usd <= self.left:
            self.left -= needs[slots].max_cost_usd
            self.open[lease, slots] = needs[slots].max_cost_usd
            slots += 1
        after = (self.send_after_s,) * slots
        return Permit(lease, slots, after, len(needs) - slots, self.cap, proven=self.proven)

    async def settle(self, actor: str, items: Any, released: Any, feedback: Any) -> None:
        for lease, slot, cost in items:
            assert cost <= self.open.pop((lease, slot))  # KeyError: settled twice, or never held
            self.settled[lease, slot] = cost
        for place in released:
            del self.open[place]
        assert len(items) == len(feedback)
        self.told += feedback

    async def pause(self, why: RayJudgeError) -> None:
        self.reason = why


GOOD = Reply('{"verdict": "A"}', None, "stop", Usage(100, 10), "gpt-4o", "id")


class FakeServer:
    """Gives each question the same steps, one a request; the last one for ever."""

    def __init__(self, *steps: Reply | Kind, status: int | None = 500) -> None:
        self.steps, self.status = steps or (GOOD,), status
        self.requests: Counter[str] = Counter()
        self.sent_at: list[float] = []

    async def send(self, body: Mapping[str, Any]) -> Reply:
        at = self.requests[str(body["messages"])]
        self.requests[str(body["messages"])] += 1
        self.sent_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        step = self.steps[min(at, len(self.steps) - 1)]
        if isinstance(step, Kind):
            raise RequestFailed(step, f"it was {step}", status=self.status, headers={"a": "b"})
        return step


@dataclass
class Night:
    """What one `ask_all` came to; as a journal, it keeps answers in memory."""

    outcomes: list[Any] = field(default_factory=list)
    kept: list[Answer] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    async def put(self, answer: Answer) -> None:
        self.kept.append(answer)


def ask_all(
    governor: FakeGovernor,
    server: FakeServer,
    count: int = 1,
    *,
    in_flight: int = 999,
    unusable: int = 0,
    clock: Callable[[], float] | None = None,
    **strong: Any,
) -> Night:
    asked, night = maker(model="gpt-4o", **strong), Night()

    async def sleep(seconds: float) -> None:
        night.slept.append(seconds)
        await asyncio.sleep(seconds)

    async def go() -> list[Any]:
        permits = Permits("a", governor, clock=clock or asyncio.get_running_loop().time)
        asker = Asker(asked, server, permits, night, sleep=sleep)
        room = asyncio.Semaphore(in_flight)

        async def one(number: int) -> Outcome:
            async with room:
                (question,) = asked.of_example(Example(f"q{number}", ("x", "y")))
                return await asker.ask(question, InVain(unusable))

        outcomes = await asyncio.gather(*map(one, range(count)), return_exceptions=True)
        await asker.keep_doubtful()
        await permits.flush()
        return outcomes

    night.outcomes = virtual(go)()
    proven = {(answer.lease, answer.slot): answer.cost_usd for answer in night.kept}
    free = {place: Decimal(0) for place, cost in governor.settled.items() if cost == 0}
    assert {**free, **proven} == governor.settled, "the journal proves every cost"
    assert not governor.open, "all is settled or released"
    return night


@pytest.mark.parametrize(
    ("cap", "outcome"), [("run", Outcome.DENIED_BUDGET), ("month", Outcome.PENDING)]
)
def test_the_money_runs_out_for_all_in_one_answer(cap: str, outcome: Outcome) -> None:
    governor, server = FakeGovernor(Decimal("0.02"), cap), FakeServer()
    night = ask_all(governor, server, 32)
    resolved = night.outcomes.count(Outcome.RESOLVED)
    assert 0 < resolved < 16 and len(server.sent_at) == resolved == len(night.kept)
    assert night.outcomes.count(outcome) == 32 - resolved
    assert governor.calls == [16, 16]  # one lease for many questions


CUT = Reply('{"verd', None, "length", Usage(100, 300), "gpt-4o", "id")
TORN = Reply('{"verd', None, "stop", Usage(100, 3), "gpt-4o", "id")
REFUSAL = Reply(None, "I would rather not", "stop", Usage(100, 5), "gpt-4o", "id")


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [(TORN, Outcome.UNPARSEABLE), (REFUSAL, Outcome.REFUSED)],
)
@pytest.mark.parametrize(
    ("reasks", "unusable", "asked"), [(0, 0, 1), (2, 0, 3), (2, 1, 2), (2, 2, 1), (2, 9, 1)]
)
def test_an_answer_that_stays_unusable(
    reply: Reply, outcome: Outcome, reasks: int, unusable: int, asked: int
) -> None:
    """`unusable`: what earlier sessions used up of the re-asks."""
    night = ask_all(FakeGovernor(), FakeServer(reply), reasks=reasks, unusable=unusable)
    assert night.outcomes == [outcome]
    assert [answer.final for answer in night.kept] == [False] * (asked - 1) + [True]
    assert all(answer.verdict is None and answer.error for answer in night.kept)
    night = ask_all(FakeGovernor(), FakeServer(reply, GOOD), reasks=reasks, unusable=unusable)
    assert night.outcomes == [Outcome.RESOLVED if asked > 1 else outcome]
    assert len(night.kept) == min(asked, 2)


@pytest.mark.parametrize(
    ("kind", "outcome", "tries", "counts", "signal"),
    [
        (Kind.ROW, Outcome.FAILED, 1, False, Signal.OK),
        (Kind.REFUSED, Outcome.REFUSED, 1, False, Signal.OK),
        (Kind.TRANSIENT, Outcome.FAILED, TRIES, False, Signal.UNAVAILABLE),
        (Kind.BROKEN, Outcome.FAILED, TRIES, True, Signal.UNAVAILABLE),
        (Kind.AMBIGUOUS, Outcome.FAILED, LOST_TRIES, True, Signal.UNAVAILABLE),
    ],
)
def test_a_failure_that_gives_up_the_row(
    kind: Kind, outcome: Outcome, tries: int, counts: bool, signal: Signal
) -> None:
    """A server that did not begin has not billed; what may have been computed counts in full."""
    governor, server = FakeGovernor(), FakeServer(kind)
    night = ask_all(governor, server)
    assert night.outcomes == [outcome] and len(server.sent_at) == tries
    assert [told.signal for told in governor.told] == [signal] * tries
    assert all((cost > 0) is counts for cost in governor.settled.values())
    last = night.kept[-1]
    own = kind in (Kind.ROW, Kind.REFUSED)  # what was the server's fault is asked again some day
    assert (last.final, last.outcome, last.error) == (own, outcome, f"it was {kind}")
    assert len(night.kept) == (tries if counts else 1)
    assert sum(seconds > 0 for seconds in night.slept) == tries - 1 and max([0, *night.slept]) <= 10


@pytest.mark.parametrize(
    ("kind", "status", "times", "signal", "waits"),
    [
        (Kind.RATE_LIMIT, 429, 3 * TRIES, Signal.RATE_LIMITED, True),
        (Kind.TRANSIENT, None, 3 * TRIES, Signal.UNAVAILABLE, True),  # never reached
        (Kind.NO_SCHEMA, 400, 1, Signal.OK, False),
    ],
)
def test_a_failure_that_never_gives_up_a_row(
    kind: Kind, status: int | None, times: int, signal: Signal, waits: bool
) -> None:
    governor, server = FakeGovernor(), FakeServer(*[kind] * times, GOOD, status=status)
    night = ask_all(governor, server)
    assert night.outcomes == [Outcome.RESOLVED] and len(night.kept) == 1
    assert [told.signal for told in governor.told] == [signal] * times + [Signal.OK]
    assert all(told.headers == {"a": "b"} for told in governor.told[:-1])
    assert all(told.sent_at is not None for told in governor.told)
    assert any(night.slept) is waits


class BusyServer(FakeServer):
    """A rate limit meets two questions each time, and others by chance."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.rng, self.share = random.Random(7), share

    async def send(self, body: Mapping[str, Any]) -> Reply:
        too_large = any(text in body["messages"][-1]["content"] for text in ("\nq7\n", "\nq70\n"))
        reply = await super().send(body)
        if too_large or self.rng.random() < self.share:
            raise RequestFailed(Kind.RATE_LIMIT, "HTTP 429", status=429)
        return reply


@pytest.mark.parametrize(("share", "most"), [(0.0, 8), (0.25, 24), (0.6, 80)])
def test_a_question_too_large_for_a_limit_on_a_busy_server(share: float, most: int) -> None:
    server = BusyServer(share)
    night = ask_all(FakeGovernor(Decimal(99)), server, 1000, in_flight=8)
    failed = [number for number, outcome in enumerate(night.outcomes) if outcome == "failed"]
    assert failed == [7, 70] and night.outcomes.count(Outcome.RESOLVED) == 998
    assert all(answer.final for answer in night.kept)
    assert max(server.requests.values()) <= most


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [(Kind.BILLING, PausedError, "wants money"), (Kind.PARAMETER, EscalationError, "THE_KEY")],
)
def test_a_failure_that_ends_the_run(kind: Kind, error: type[Exception], said: str) -> None:
    governor, server = FakeGovernor(proven=False), FakeServer(kind)
    night = ask_all(governor, server, 30, api_key_env="THE_KEY", in_flight=4)
    assert error in {type(outcome) for outcome in night.outcomes}
    assert all(isinstance(outcome, error | PausedError) for outcome in night.outcomes)
    assert said in str(governor.reason)
    assert len(server.sent_at) <= 4 and not night.kept and not sum(governor.settled.values())


@pytest.mark.parametrize("why", [PausedError("quota"), ProviderDown("HTTP 503")])
def test_a_run_that_rests_sends_nothing(why: RayJudgeError) -> None:
    server = FakeServer()
    night = ask_all(FakeGovernor(reason=why), server, 2)
    assert night.outcomes == [why, why] and len(server.sent_at) == 0


@pytest.mark.parametrize("usage", [None, Usage(50, 10)])
def test_a_server_without_usage_gives_no_tokens_back(usage: Usage | None) -> None:
    governor = FakeGovernor()
    ask_all(governor, FakeServer(replace(GOOD, usage=usage)))
    assert (governor.told[0].spare_tokens > 0) is (usage is not None)


@pytest.mark.parametrize(
    ("asleep_at", "granted_at", "leases"),
    [
        (300.0, 600.0, 1),  # a long wait is no sleep, and it is long awake again
        (599.9, 600.0, 2),  # the permit may have lain there all the time
        (600.1, 600.0, 2),  # between the permit and its request
    ],
)
def test_old_permits_send_nothing(asleep_at: float, granted_at: float, leases: int) -> None:
    """Where a process was asleep, another owner may have claimed the ledger meanwhile."""
    asleep_s = 0.0

    def sleep() -> None:
        nonlocal asleep_s
        asleep_s = 3600.0

    class Slow(FakeGovernor):
        async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
            if not self.calls:
                asyncio.get_running_loop().call_later(asleep_at, sleep)
                await asyncio.sleep(granted_at)
            return await super().acquire(actor, needs)

    governor, server = Slow(send_after_s=0.4), FakeServer()
    clock = lambda: asyncio.get_running_loop().time() + asleep_s
    assert ask_all(governor, server, clock=clock).outcomes == [Outcome.RESOLVED]
    assert (len(governor.calls), len(governor.settled)) == (leases, 1)
    assert server.sent_at == [pytest.approx(granted_at + 0.4 * leases)]
