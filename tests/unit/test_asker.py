"""Lease, send, journal, settle: against a real server, with the governor's part played by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import RunConfig, parse
from ray_judge.errors import EscalationError, PausedError, ProviderDown, StorageError
from ray_judge.escalation.books.journal import Journal, JournalWriter, load_journal
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.asker import LOST_TRIES, TRIES, Asker, Purse
from ray_judge.escalation.online.governor import PROVIDER_DOWN, Need, Permit
from ray_judge.escalation.online.limiter import Feedback, Signal
from ray_judge.escalation.pricing import price_of
from ray_judge.escalation.question import StrongQuestion
from ray_judge.records import Answer, Example, Outcome
from ray_judge.storage.local import open_storage
from tests.provider import RunningServer

pytestmark = pytest.mark.timeout(60)


class Till:
    """A treasurer with so much money, that notes what it is told."""

    def __init__(self, money: str = "1", paused: str | None = None, account: str = "run:x") -> None:
        self.left = Decimal(money)
        self.account = account
        self.reason = paused
        self.leases = 0
        self.open: dict[tuple[str, int], Decimal] = {}
        self.settled: dict[tuple[str, int], Decimal] = {}
        self.released: list[tuple[str, int]] = []
        self.told: list[Feedback] = []
        self.calls: list[int] = []

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        await asyncio.sleep(0)
        self.calls.append(len(needs))
        if self.reason:
            return Permit("", 0, paused=self.reason)
        slots = 0
        for need in needs:
            if need.max_cost_usd > self.left:
                break
            self.left -= need.max_cost_usd
            self.open[f"l-{self.leases}", slots] = need.max_cost_usd
            slots += 1
        if not slots:
            return Permit("", 0, denied=True, account=self.account)
        self.leases += 1
        return Permit(f"l-{self.leases - 1}", slots, (0.0,) * slots)

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None:
        assert len(items) == len(feedback)
        for lease, slot, cost in items:
            assert cost <= self.open.pop((lease, slot))  # KeyError: settled twice, or never held
            self.settled[lease, slot] = cost
        for slot_ in released:
            self.open.pop(slot_)
            self.released.append(slot_)
        self.told.extend(feedback)

    async def pause(self, reason: str) -> None:
        self.reason = reason


class Night:
    """What one `ask_all` came to."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self.slept: list[float] = []
        self.journal: Journal


def config(server: RunningServer, **strong: Any) -> RunConfig:
    return parse(
        {
            "input": "i",
            "output": "o",
            "judge": {"model": "m"},
            "route": {"fraction": 1},
            "strong": {
                "model": "gpt-4o",  # the server's default prices
                "max_cost_usd": 1,
                "base_url": server.base_url,
                "timeout_s": 30,
                **strong,
            },
        }
    )


def ask_all(
    server: RunningServer, till: Till, folder: Path, texts: Sequence[str], **strong: Any
) -> Night:
    """Ask one question per text, all at once, without waiting between tries."""
    unusable = strong.pop("unusable", 0)
    run, night = config(server, **strong), Night()
    question, storage = StrongQuestion(run), open_storage(str(folder))

    async def sleep(seconds: float) -> None:
        night.slept.append(seconds)

    async def go() -> None:
        journal = JournalWriter(storage, writer_id="a")
        client = StrongClient(run.strong, server.api_key)
        purse = Purse("a", till)
        asker = Asker(run.strong, question, price_of("gpt-4o"), client, purse, journal, sleep=sleep)
        bodies = [question.body(Example(text, ("x", "y"))) for text in texts]
        keys = [question.keys(Example(text, ("x", "y")))[0] for text in texts]
        asked = [asker.ask(key, body, unusable) for key, body in zip(keys, bodies, strict=True)]
        night.outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await purse.flush()
        journal.close()
        await client.close()

    asyncio.run(go())
    night.journal = load_journal(storage)
    assert not till.open, "every slot is settled or released"
    assert till.settled == {k: v for k, v in till.settled.items() if k in till.settled}
    return night


def test_one_lease_for_many_questions(server: RunningServer, tmp_path: Path) -> None:
    till = Till()
    night = ask_all(server, till, tmp_path, [f"q{n}" for n in range(40)])
    assert night.outcomes == [Outcome.RESOLVED] * 40
    assert till.leases < 10 and max(till.calls) <= 16
    spent = sum(till.settled.values(), Decimal(0))
    assert spent == Decimal(server.stats()["total_usd"])
    assert spent == sum((a.cost_usd for a in night.journal.rows), Decimal(0))
    assert night.journal.paid == till.settled  # the journal proves every slot


def test_the_money_runs_out(server: RunningServer, tmp_path: Path) -> None:
    till = Till("0.02")
    night = ask_all(server, till, tmp_path, [f"q{n}" for n in range(30)])
    resolved = night.outcomes.count(Outcome.RESOLVED)
    assert 0 < resolved < 30
    assert night.outcomes.count(Outcome.DENIED_BUDGET) == 30 - resolved
    assert server.stats()["billed"] == len(night.journal.answers) == resolved


def test_a_computed_answer_that_is_no_verdict_is_asked_again_and_paid_again(
    server: RunningServer, tmp_path: Path
) -> None:
    server.configure(faults=[{"kind": "malformed_json", "attempts": [1]}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["q"])
    assert night.outcomes == [Outcome.RESOLVED]
    first, second = night.journal.rows
    assert (first.final, first.outcome) == (False, Outcome.UNPARSEABLE)
    assert (second.final, second.outcome) == (True, Outcome.RESOLVED)
    assert first.cost_usd + second.cost_usd == Decimal(server.stats()["total_usd"])


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("malformed_json", Outcome.UNPARSEABLE), ("wrong_verdict", Outcome.UNPARSEABLE),
     ("cut", Outcome.UNPARSEABLE), ("empty_content", Outcome.UNPARSEABLE),
     ("refusal", Outcome.REFUSED), ("content_filter", Outcome.REFUSED)],
)  # fmt: skip
@pytest.mark.parametrize("reasks", [0, 2])
def test_an_answer_that_stays_unusable(
    server: RunningServer, tmp_path: Path, fault: str, outcome: Outcome, reasks: int
) -> None:
    server.configure(faults=[{"kind": fault, "max_times": 99}])
    night = ask_all(server, Till(), tmp_path, ["q"], reasks=reasks)
    assert night.outcomes == [outcome]
    assert [a.final for a in night.journal.rows] == [False] * reasks + [True]
    assert all(a.verdict is None and a.error for a in night.journal.rows)
    assert server.stats()["billed"] == reasks + 1


@pytest.mark.parametrize(("unusable", "asked"), [(0, 3), (1, 2), (2, 1), (9, 1)])
def test_re_asks_that_an_earlier_session_used_up(
    server: RunningServer, tmp_path: Path, unusable: int, asked: int
) -> None:
    server.configure(faults=[{"kind": "malformed_json", "max_times": 99}])
    night = ask_all(server, Till(), tmp_path, ["q"], reasks=2, unusable=unusable)
    assert night.outcomes == [Outcome.UNPARSEABLE]
    assert server.stats()["billed"] == asked
    assert [a.final for a in night.journal.rows] == [False] * (asked - 1) + [True]


@pytest.mark.parametrize(
    "fault", ["content_filter_400", "context_length_exceeded", "invalid_request"]
)
def test_a_question_that_will_never_be_answered(
    server: RunningServer, tmp_path: Path, fault: str
) -> None:
    server.configure(faults=[{"kind": fault, "max_times": 99}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["q"])
    wanted = Outcome.REFUSED if fault == "content_filter_400" else Outcome.FAILED
    assert night.outcomes == [wanted]
    assert list(till.settled.values()) == [0]
    assert server.stats()["requests"] == 1
    assert next(iter(night.journal.answers.values())).outcome is wanted  # and it is not asked again


@pytest.mark.parametrize(
    ("fault", "status", "billed"),
    [("unavailable", "503", False), ("server_error", "500", True),
     ("server_error_billed", "500", True), ("request_timeout", "408", True)],
)  # fmt: skip
def test_a_server_that_keeps_failing_gives_up_the_row(
    server: RunningServer, tmp_path: Path, fault: str, status: str, billed: bool
) -> None:
    """A server that did not begin has not billed; one that failed at work may have."""
    server.configure(faults=[{"kind": fault, "contains": "bad", "max_times": 999}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["bad", "good"])
    assert night.outcomes == [Outcome.FAILED, Outcome.RESOLVED]
    assert server.stats()["by_status"][status] == TRIES
    assert [f.signal for f in till.told].count(Signal.UNAVAILABLE) == TRIES
    spent, total = sum(till.settled.values(), Decimal(0)), Decimal(server.stats()["total_usd"])
    assert spent > total if billed else spent == total
    assert spent == sum((a.cost_usd for a in night.journal.rows), Decimal(0))
    assert len([s for s in night.slept if s > 0]) == TRIES - 1  # the waits grow: see below
    assert max(night.slept) <= 20


def test_a_lost_answer_counts_in_full(server: RunningServer, tmp_path: Path) -> None:
    server.configure(faults=[{"kind": "reset_after", "max_times": 999}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["q"])
    assert night.outcomes == [Outcome.FAILED]
    assert server.stats()["billed"] == LOST_TRIES == len(night.journal.rows)
    (most,) = set(till.settled.values())
    assert most * LOST_TRIES >= Decimal(server.stats()["total_usd"])
    assert {a.cost_usd for a in night.journal.rows} == {most}


def test_rate_limits_are_told_to_the_governor_and_never_give_up_a_row(
    server: RunningServer, tmp_path: Path
) -> None:
    server.configure(faults=[{"kind": "rate_limit", "max_times": 3 * TRIES, "retry_after_s": 2.5}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["q"])
    assert night.outcomes == [Outcome.RESOLVED]
    limited = [f for f in till.told if f.signal is Signal.RATE_LIMITED]
    assert len(limited) == 3 * TRIES
    assert all(float(f.headers["retry-after"]) == 3 or f.headers["retry-after"] for f in limited)
    assert all(f.sent_at is not None for f in limited)
    assert not any(night.slept)  # pacing is the governor's, for all actors at once


def test_an_empty_account_pauses_everybody(server: RunningServer, tmp_path: Path) -> None:
    server.configure(quota_exhausted=True)
    till = Till()
    night = ask_all(server, till, tmp_path, [f"q{n}" for n in range(30)])
    assert all(isinstance(outcome, PausedError) for outcome in night.outcomes)
    assert till.reason is not None and "insufficient_quota" in till.reason
    assert server.stats()["requests"] <= 30 and not night.journal.rows
    assert sum(till.settled.values(), Decimal(0)) == 0


def test_a_wrong_key_ends_everything(server: RunningServer, tmp_path: Path) -> None:
    server.configure(faults=[{"kind": "invalid_api_key", "max_times": 99}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["q"], api_key_env="THE_KEY")
    (error,) = night.outcomes
    assert type(error) is EscalationError and "THE_KEY" in str(error)
    assert till.reason is not None and not night.journal.rows


@pytest.mark.parametrize(
    ("account", "outcome"),
    [("run:x", Outcome.DENIED_BUDGET), ("month:2026-11", Outcome.PENDING)],
)
def test_a_month_that_is_full_leaves_a_question_for_the_next_one(
    server: RunningServer, tmp_path: Path, account: str, outcome: Outcome
) -> None:
    till = Till("0.01", account=account)
    night = ask_all(server, till, tmp_path, [f"q{n}" for n in range(12)])
    asked = night.outcomes.count(Outcome.RESOLVED)
    assert 0 < asked < 12
    assert night.outcomes.count(outcome) == 12 - asked
    assert server.stats()["billed"] == asked == len(night.journal.rows)


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [("the month is full", PausedError, "the month is full"),
     (PROVIDER_DOWN, ProviderDown, "give_up_after_s")],
)  # fmt: skip
def test_a_run_that_rests_sends_nothing(
    server: RunningServer, tmp_path: Path, reason: str, kind: type[Exception], said: str
) -> None:
    night = ask_all(server, Till(paused=reason), tmp_path, ["q1", "q2"])
    assert {type(outcome) for outcome in night.outcomes} == {kind}
    assert said in str(night.outcomes[0]) and night.outcomes[0].exit_code == 4
    assert server.stats()["requests"] == 0


def test_a_server_without_usage_is_counted_upwards(server: RunningServer, tmp_path: Path) -> None:
    server.configure(faults=[{"kind": "missing_usage", "max_times": 1}])
    till = Till()
    night = ask_all(server, till, tmp_path, ["q"])
    (answer,) = night.journal.rows
    assert answer.usage is not None and answer.usage.estimated
    assert answer.cost_usd >= Decimal(server.stats()["total_usd"])
    assert night.outcomes == [Outcome.RESOLVED]


def test_a_server_without_response_format_costs_one_refused_request(
    server: RunningServer, tmp_path: Path
) -> None:
    server.configure(refuse_response_format=True)
    night = ask_all(server, Till(), tmp_path, ["q1", "q2"])
    assert night.outcomes == [Outcome.RESOLVED] * 2
    stats = server.stats()
    assert stats["billed"] == 2 and stats["by_status"]["400"] <= 2


def test_a_permit_for_later_is_waited_for(server: RunningServer, tmp_path: Path) -> None:
    class Slow(Till):
        async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
            permit = await super().acquire(actor, needs)
            return Permit(permit.lease_id, permit.slots, (0.2,) * permit.slots)

    begun = time.time()
    ask_all(server, Slow(), tmp_path, ["q"])
    assert server.bills()[0]["billed_wall"] >= begun + 0.2


def test_whatever_ends_the_governor_is_told_to_everybody(
    server: RunningServer, tmp_path: Path
) -> None:
    class Broken(Till):
        async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
            raise EscalationError("gone")

    night = ask_all(server, Broken(), tmp_path, [f"q{n}" for n in range(20)])
    assert [str(outcome) for outcome in night.outcomes] == ["gone"] * 20


class BrokenJournal:
    """A disk that is full from the third answer on."""

    def __init__(self) -> None:
        self.kept: list[Answer] = []

    async def put(self, answer: Answer) -> None:
        if len(self.kept) == 2:
            raise StorageError("no space left")
        self.kept.append(answer)


def test_a_journal_that_fails_rests_the_run(server: RunningServer) -> None:
    """Found by the simulator: what it cannot keep was paid for, or waited for, for ever."""
    run, till = config(server), Till()
    question = StrongQuestion(run)

    async def go() -> list[Any]:
        client, journal = StrongClient(run.strong, server.api_key), BrokenJournal()
        purse = Purse("a", till)
        asker = Asker(run.strong, question, price_of("gpt-4o"), client, purse, journal)  # type: ignore[arg-type]
        room = asyncio.Semaphore(4)

        async def one(text: str) -> Outcome:
            body = question.body(Example(text, ("x", "y")))
            async with room:
                return await asker.ask(text, body)

        outcomes = await asyncio.gather(*map(one, map(str, range(40))), return_exceptions=True)
        await purse.flush()
        await client.close()
        return outcomes

    outcomes = asyncio.run(go())
    assert till.reason is not None and "no space left" in till.reason
    assert sum(outcome is Outcome.RESOLVED for outcome in outcomes) == 2
    assert all(isinstance(o, Outcome | StorageError | PausedError) for o in outcomes)
    assert server.stats()["billed"] <= 2 + 4  # those in flight, and no more
    assert len(till.open) == server.stats()["billed"] - 2  # they count as spent
