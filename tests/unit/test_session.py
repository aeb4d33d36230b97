"""Which questions a session asks, and when it is over: real books, and processes that are played.

No thread, socket or clock of the machine decides anything: time passes when somebody sleeps.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from typing import Any

import pytest

from ray_judge.errors import EscalationError, InputError, PausedError, RunLockedError, StorageError
from ray_judge.escalation.answers import failed_answer
from ray_judge.escalation.books.books import Books, Claim
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.online.courier import AT_ASKER, PER_UNIT, OnlineCourier
from ray_judge.escalation.processes import ProcessDied
from ray_judge.escalation.questions import Question
from ray_judge.escalation.session import BARREN_SESSIONS, ENOUGH, IDLE_S, LONG_LOST_S, Session
from ray_judge.failures import Kind
from ray_judge.records import Answer, Outcome
from tests.fault.batch_night import NightClock

from .memory import MemoryStorage

QUIET_S, CENT = 155.0, Decimal("0.01")


def questions(keys: str | Sequence[str], cost: Decimal = CENT) -> list[Question]:
    return [Question(key, {}, 1, 1, cost) for key in keys]


def answer(key: str, lease: str = "l-1", slot: int = 0) -> Answer:
    return failed_answer(key, Kind.ROW, "why", Decimal(0), (lease, slot), 1.0, final=True)


class LockableBooks(Books):
    """Their lock is this test's: `holders` is who has it at each try; nobody, behind the last."""

    holders: list[str]
    locks = 0

    @contextmanager
    def _hold(self) -> Iterator[None]:
        self.locks += 1
        yield
        self.locks -= 1

    def locked(self) -> Any:
        if self.holders:
            raise RunLockedError(f"another run asks ({self.holders.pop(0)})")
        return self._hold()


class PhaseB:
    """One run: its books, and what the processes of its sessions do.

    `asked`: when each key was asked, in this order, once. `calls`: how often each call was made.
    `errors`: what the next calls of a name raise.
    """

    def __init__(self, *lots: Any, shared: bool = False, cap: str = "1", month: str | None = None):
        self.lots = list(lots)
        self.clock = NightClock(lambda: None, 1e9)
        self.storage = MemoryStorage()
        self.books = LockableBooks(
            self.storage, shared=shared, run="run", cap_usd=Decimal(cap),
            monthly_cap_usd=Decimal(month) if month else None, clock=self.clock.now,
        )  # fmt: skip
        self.books.holders = []
        self.asked: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.errors: dict[str, list[Exception | None]] = {}
        self.said: list[Mapping[str, Any]] = []
        self.dead: Callable[[str], bool] = lambda actor: False
        self.ledger: Ledger

    def call(self, name: str) -> None:
        self.calls[name] += 1
        errors = self.errors.get(name)
        if errors and (error := errors.pop(0)) is not None:
            raise error

    def run(self) -> Session:
        courier = OnlineCourier(
            self, self.clock, self.said.append, concurrency=1, shared=self.books.shared
        )
        session = Session(
            self.books, courier, self, self.clock, self.said.append,
            quiet_s=QUIET_S, patience_s=600, is_dead=self.dead,
        )  # fmt: skip
        self.session = session
        asyncio.run(session.run())
        return session

    def leave(self, keys: str, actor: str = "a@old") -> Ledger:
        """What a process that ends here leaves: these questions are asked, and not answered."""
        ledger, _ = self.books.claim("old")
        ledger.grant(actor, [(key, CENT) for key in keys])
        return ledger

    def keep(self, *answers: Answer) -> None:
        """Let an older process write its answers."""
        writer = self.books.writer(f"{len(self.storage.files)}@old")
        for one in answers:
            writer.append(one)
        writer.sync()

    # --- as the source ---

    def take(self) -> list[Question] | None:
        self.calls["take"] += 1
        lot = self.lots.pop(0) if self.lots else None
        if isinstance(lot, Exception):
            raise lot
        return lot

    def check(self) -> None:
        self.call("check")

    def stop(self) -> None:
        self.calls["stop"] += 1

    # --- as what starts processes ---

    async def governor(self) -> Any:
        return Process(self, "governor")

    async def asker(self, governor: Any, in_flight: int) -> Any:
        self.call("asker")
        return Process(self, "asker")


class Process:
    def __init__(self, phase: PhaseB, name: str) -> None:
        self.phase, self.name = phase, name

    async def open(self) -> Claim:
        self.phase.call("open")
        self.phase.ledger, claim = self.phase.books.claim("me")
        return claim

    async def state(self) -> dict[str, Any]:
        self.phase.call("state")
        return {"best_usd": self.phase.ledger.best_usd()}

    async def pause(self, reason: str) -> None:
        self.phase.call("pause")

    async def ask(self, unit: Sequence[Question], in_vain: Any) -> dict[str, Outcome]:
        phase, keys = self.phase, [question.key for question in unit]
        phase.call("ask")
        lease = phase.ledger.grant("me", [(q.key, q.max_cost_usd) for q in unit])
        assert phase.asked.keys().isdisjoint(keys)
        phase.asked |= dict.fromkeys(keys, phase.clock.now())
        phase.keep(*(answer(key, lease.id, n) for n, key in enumerate(keys)))
        for slot in range(lease.slots):
            phase.ledger.settle(lease.id, slot, Decimal(0))
        return dict.fromkeys(keys, Outcome.FAILED)

    async def close(self) -> None:
        self.phase.call(f"close {self.name}")
        if self.name == "governor":
            self.phase.ledger.close()

    def kill(self) -> None:
        self.phase.calls[f"kill {self.name}"] += 1


def test_every_question_is_asked_once_in_the_order_of_the_source() -> None:
    phase = PhaseB(questions("abc"), [], questions("cda"))
    phase.keep(answer("b"))
    phase.run()
    assert "".join(phase.asked) == "acd"
    assert phase.calls["open"] == phase.calls["close governor"] == 1
    phase.lots = [questions("abcd")]
    phase.run()
    assert len(phase.asked) == 3 and phase.calls["open"] == 1, "nothing to ask needs no books"


def test_what_a_living_predecessor_has_in_flight_is_asked_last_when_it_has_come_back() -> None:
    phase = PhaseB(questions("abcd"))
    phase.leave("ab")
    phase.clock.meanwhile = lambda: phase.calls["slept"] or phase.keep(answer("a"))
    phase.run()
    assert "".join(phase.asked) == "cdb", "a's answer came after all"
    assert phase.asked["c"] == 1e9 and phase.asked["b"] >= 1e9 + QUIET_S
    assert any("may be in flight" in str(said.get("waits")) for said in phase.said)


@pytest.mark.parametrize(
    ("dies_after_s", "lost_for_s", "order", "slept"),
    [
        (0, 0, "abcd", (0, 0)),  # dead at once
        (3, 0, "cdab", (3, 5)),  # and in the meantime: it is waited for no longer
        (1e9, LONG_LOST_S + QUIET_S, "abcd", (0, 0)),  # what was lost long ago is not in flight
    ],
)
def test_who_cannot_answer_any_more_is_not_waited_for(
    dies_after_s: float, lost_for_s: float, order: str, slept: tuple[float, float]
) -> None:
    phase = PhaseB(questions("abcd"))
    phase.leave("ab")
    phase.dead = lambda actor: actor == "a@old" and phase.clock.slept >= dies_after_s
    if lost_for_s:
        phase.books.claim("this one gave it up")
        phase.clock.wall += lost_for_s
    phase.run()
    assert "".join(phase.asked) == order and slept[0] <= phase.clock.slept <= slept[1]


@pytest.mark.parametrize("shared", [False, True])
def test_an_actor_is_waited_for_once_however_often_the_books_change_hands(shared: bool) -> None:
    lots = [part for key in "cdef" for part in (*[[]] * 200, questions(key))]
    phase = PhaseB(questions("ab"), *lots, questions("g"), shared=shared)
    phase.leave("ab")
    phase.run()
    assert "".join(phase.asked) == "cdefgab"
    assert (phase.calls["open"] > 2) == shared
    assert phase.asked["a"] <= phase.asked["g"] + QUIET_S + 1


@pytest.mark.parametrize(
    ("holders", "error", "words", "slept"),
    [
        (5, None, "", 10),
        (1000, PausedError, r"runs/another.*give_up_after_s", 600),
        (1000, InputError, "damaged", 4),
    ],
)
def test_a_lock_on_books_is_waited_for(holders: int, error: Any, words: str, slept: float) -> None:
    """Until it is free, with the run's patience, or until the local judge fails meanwhile."""
    phase = PhaseB(questions("a"), shared=True)
    phase.books.holders = ["runs/another"] * holders
    if error is InputError:
        phase.errors["check"] = [None, InputError("the shard is damaged")]
    with pytest.raises(error, match=words) if error else nullcontext():
        phase.run()
    assert phase.clock.slept == slept and "runs/another" in phase.said[0]["waits"]
    assert len(phase.asked) == (not error), "nothing was touched without the lock"
    assert bool(phase.storage.files) == (not error)
    assert phase.books.locks == 0, "it was given back"
    assert phase.calls["stop"] == 1


@pytest.mark.parametrize("shared", [False, True])
def test_shared_books_are_let_go_while_there_is_nothing_to_ask(shared: bool) -> None:
    phase, free = PhaseB(questions("a"), *[[]] * 50, questions("b"), shared=shared), []
    phase.clock.meanwhile = lambda: free.append(phase.books.locks == 0)
    phase.run()
    assert "".join(phase.asked) == "ab"
    assert phase.calls["open"] == (2 if shared else 1)
    busy = free.index(True) if shared else len(free)
    assert 0.25 * busy >= (IDLE_S if shared else 12), "not at once, and never where nobody waits"


@pytest.mark.parametrize(
    "rows", [100_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_denials_cost_no_call_a_row(rows: int) -> None:
    """Each question is made, looked at and forgotten: no process hears of it."""
    per_lot = 4_000
    dear = [Question(f"k{n}", None, 1, 1, Decimal(2)) for n in range(rows)]
    phase = PhaseB(questions("a"), *(dear[n : n + per_lot] for n in range(0, rows, per_lot)))
    session = phase.run()
    assert session.denied == rows and [*phase.asked] == ["a"]
    assert phase.calls["ask"] == 1 and phase.calls["open"] == 1
    assert phase.calls["state"] <= rows // min(per_lot, ENOUGH) + 3
    assert phase.calls["take"] == rows // per_lot + 2
    assert len(phase.storage.files) < 10


def test_a_cap_of_zero_starts_no_process() -> None:
    phase = PhaseB(questions("abc", Decimal(0)), cap="0")
    assert phase.run().denied == 3
    assert not phase.calls["open"] and not phase.storage.files


def test_what_the_month_has_no_money_for_is_not_denied() -> None:
    phase = PhaseB(questions("a") + questions("bc", Decimal(2)), cap="10", month="1")
    with pytest.raises(PausedError, match=r"month's cap of \$1 .* no money for 2 questions"):
        phase.run()
    assert [*phase.asked] == ["a"] and phase.session.denied == 0
    assert phase.calls["close governor"] == 1


def test_a_source_that_fails_ends_the_session_in_good_order() -> None:
    """What was asked by then is answered, booked and on file."""
    phase = PhaseB(questions("ab"), [], InputError("the shard is damaged"))
    with pytest.raises(InputError, match="damaged"):
        phase.run()
    assert phase.books.journal().answered == {"a", "b"}
    assert phase.books.recorded()[1] == 0
    assert [phase.calls[f"close {name}"] for name in ("asker", "governor")] == [1, 1]
    assert phase.calls["pause"] == phase.calls["stop"] == 1


@pytest.mark.parametrize("call", ["ask", "state", "open", "asker"])
def test_the_death_of_a_process_begins_the_session_again(call: str) -> None:
    """As after a crash of the whole run; also where the governor cannot be told any more."""
    phase = PhaseB(questions("abc"))
    phase.errors = {name: [ProcessDied(f"{name} died")] for name in (call, "pause")}
    phase.run()
    assert sorted(phase.asked) == ["a", "b", "c"]
    assert phase.calls["kill governor"] == 2 == phase.calls["open"]


def test_processes_that_keep_dying_end_the_run() -> None:
    phase = PhaseB(questions("abc"))
    phase.errors["ask"] = [ProcessDied("an asker died")] * 99
    with pytest.raises(EscalationError, match="keep dying: an asker died"):
        phase.run()
    assert phase.calls["ask"] == BARREN_SESSIONS + 1
    phase = PhaseB(*[part for key in "abcdef" for part in (questions(key), [])])
    phase.errors["ask"] = [None, ProcessDied("an asker died")] * 5
    phase.run()
    assert len(phase.asked) == 6, "each session got further"


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([PausedError("the account is empty")], PausedError),
        ([PausedError("resting"), EscalationError("a wrong key")], EscalationError),
        ([EscalationError("a wrong key"), PausedError("resting")], EscalationError),
    ],
)
def test_what_explains_most_is_told(errors: list[Exception], told: type) -> None:
    """Whatever is in flight is waited for; nothing new is handed out."""
    units = AT_ASKER * PER_UNIT
    phase = PhaseB(questions([f"k{n}" for n in range(10 * units)]))
    phase.errors = {"ask": list(errors), "close governor": [StorageError("and the disk is full")]}
    with pytest.raises(told) as said:
        phase.run()
    assert type(said.value) is told
    assert phase.calls["ask"] == AT_ASKER and phase.calls["pause"] == 1
    assert phase.calls["close asker"] == 1
