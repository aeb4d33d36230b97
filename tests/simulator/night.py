"""One night: runs that go through crashes and restarts until every question has its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from ray_judge.config import RunConfig
from ray_judge.errors import LedgerFenced, PausedError, ProviderDown, RayJudgeError, Stopped
from ray_judge.escalation.batch.courier import BatchCourier
from ray_judge.escalation.batch.first_questions import FirstQuestions
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.books.ledger import Ledger, recover
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.courier import OnlineCourier
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.online.permits import quiet_s
from ray_judge.escalation.questions import Question
from ray_judge.escalation.session import Session
from ray_judge.records import Outcome
from tests.unit.memory import MemoryStorage

from .batches import Batches
from .disk import Disk, SimStorage
from .hosts import Near, SimAsker, SimBooks, SimGovernor, SimMaker, SimProcesses, WatchedPermits
from .loop import Deadlock, Process, SimLoop
from .oracle import Broken, Oracle
from .plan import Plan, draw, parts
from .provider import Client, Provider

MOST_STEPS = 400_000
MONTH_S = 31 * 86_400.0
MOST_STARTS = 400
"""A night that takes more is one that never ends."""


@dataclass
class Parts:
    """What is under test. A broken variant replaces one of them."""

    session: Any = Session
    online: Any = OnlineCourier
    batch: Any = BatchCourier
    first: Any = FirstQuestions
    books: Any = SimBooks
    ledger: Any = Ledger
    governor: Any = Governor
    journal: Any = JournalWriter
    permits: Any = WatchedPermits
    asker: Any = Asker
    client: Any = Client
    storage: Any = SimStorage
    oracle: Any = Oracle
    plan: Callable[[Plan], Plan] = lambda plan: plan
    patches: Mapping[str, Any] = field(default_factory=dict)
    """What else is replaced, by its dotted name."""


class Report(NamedTuple):
    """What became of a night. `broken` is the promise that was not kept."""

    seed: int
    broken: str | None
    steps: int
    bills: int
    again: int
    crashes: int
    trace: tuple[tuple[float, str, str], ...]

    def digest(self) -> str:
        """Equal for equal nights."""
        return hashlib.sha256(repr(self.trace).encode()).hexdigest()[:16]


def run_night(seed: int, parts: Parts | None = None) -> Report:
    """Run one night to its end, or to the first broken promise."""
    parts = parts or Parts()
    with contextlib.ExitStack() as stack:
        for name, broken in parts.patches.items():
            stack.enter_context(mock.patch(name, broken))
        return Night(seed, parts).run()


def run_nights(seeds: Iterable[int], parts: Parts | None = None) -> Iterator[Report]:
    """Run many. Their garbage is collected now and then: twice as fast as Python's own way."""
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        for number, seed in enumerate(seeds):
            if number % 50 == 49:
                gc.collect()
            yield run_night(seed, parts)
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def run_lot(seeds: Iterable[int]) -> list[Report]:
    """Run many in a process of their own; the traces of good nights stay there."""
    return [r if r.broken else r._replace(trace=()) for r in run_nights(seeds)]


class SimSource:
    """The rows' questions, in lots, as phase A lets them come."""

    def __init__(self, night: Night, run: str) -> None:
        self._night, self._begun = night, night.loop.now
        questions, times = night.plan.asks[run], night.plan.arrivals
        self._lots = [(at, questions[n :: len(times)]) for n, at in enumerate(times)]

    def take(self) -> list[Question] | None:
        if not self._lots:
            return None
        if self._lots[0][0] > self._night.loop.now - self._begun:
            return []
        return list(self._lots.pop(0)[1])

    def check(self) -> None: ...

    def stop(self) -> None: ...


class Night:
    """The world of one night, and the hand of fate in it. It is the clock of all processes."""

    def __init__(self, seed: int, under_test: Parts) -> None:
        """Everything that will happen is decided here."""
        self.seed = seed
        self.parts = under_test
        self.rng = random.Random(seed)
        self.plan = plan = under_test.plan(draw(self.rng))
        random.seed(seed)  # tenacity draws its jitter from there
        self.trace: list[tuple[float, str, str]] = []
        self.loop = SimLoop(self.rng, shuffled=plan.shuffled)  # type: ignore[abstract]
        self.disk = Disk(self.loop, self.rng, plan)
        self.oracle: Oracle = under_test.oracle(self)
        self.provider = Provider(self)
        self.batches = Batches(self)
        self.lock_holder: Process | None = None
        self.loop.on_step = self._step
        self.configs = {run: self._config(run) for run in plan.asks}
        self._names = 0
        self._starts = 0
        self._finished: set[str] = set()
        self._crashes_left = plan.crashes
        self._crashes = 0
        self._crash_in = self._draw_crash()
        self._second_in = int(self.rng.expovariate(1 / 300)) if plan.second else -1
        self._stop_in = int(self.rng.expovariate(1 / 300)) if plan.stops else -1
        self._stopped: dict[Process, float] = {}
        """When which driver was told to stop."""
        self._sessions: dict[Process, Session] = {}
        self._again = set(plan.asks) if plan.again else set()
        """Runs that are started once more when they have ended."""
        self._alive: list[Process] = []
        self._overlapped: set[Process] = set()

    def _config(self, run: str) -> RunConfig:
        mode = "batch" if run in self.plan.batch else "online"
        strong = self.plan.strong.model_copy(update={"mode": mode})
        return parts()[0].model_copy(update={"output": run, "strong": strong})

    # --- for the processes ---

    def now(self) -> float:
        """Unix seconds."""
        return self.plan.start + self.loop.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append((round(self.loop.now, 6), who, what))

    def name(self, process: Process | None = None) -> str:
        """A name that nobody else has; it tells whose it is."""
        self._names += 1
        return f"n{self._names}@{process.name}" if process else f"n{self._names}"

    def travel_s(self) -> float:
        """How long a message between two processes takes."""
        return self.rng.random() * 0.002

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Call back as no process: what waits so survives all of them."""
        self.loop.call_later(seconds, callback, *args, context=contextvars.Context())

    def books(self, run: str) -> SimBooks:
        books: SimBooks = self.parts.books(self, run)
        return books

    def is_dead(self, name: str) -> bool:
        """Whether a process is known to have ended."""
        alive = {process.name for process in self._alive}
        return not self.plan.far and name.rpartition("@")[2] not in alive

    # --- birth and death ---

    def born(self, kind: str, parent: Process | None = None, run: str = "") -> Process:
        """Start a process. The children of a driver outlive it for a while."""
        process = Process(f"{kind}-{self.name()}", parent.run if parent else run, parent)
        self._alive.append(process)
        if parent is not None:
            parent.children.append(process)
        return process

    def kill(self, process: Process) -> None:
        """As SIGKILL: not one instruction more. Ray notices a driver's death a little later."""
        if not process.alive:
            return
        process.alive = False
        self._alive.remove(process)
        self.note(process.name, "dies")
        self.oracle.died(process)
        for notice in process.at_death[:]:
            notice()
        for child in process.children:
            late = self.rng.random() < 0.2
            self.kill_soon(child, self.rng.uniform(0.0, 20.0 if late else 0.5))
        if process.parent is None:
            self._start_again(process.run)

    def kill_soon(self, process: Process, delay_s: float | None = None) -> None:
        delay_s = self.rng.random() * 0.05 if delay_s is None else delay_s
        self.later(delay_s, self.kill, process)

    def _start_again(self, run: str, later_s: float = 0.0) -> None:
        longest = (0.01, 0.5, 5.0, 30.0) if run not in self.plan.batch else (0.5, 30.0, 1000.0)
        delay_s = (later_s or self.rng.choice(longest)) * self.rng.random()
        self.later(delay_s, self._start, run)

    def _drivers(self) -> list[Process]:
        return [process for process in self._alive if process.parent is None]

    def _start(self, run: str) -> None:
        self._starts += 1
        if self._starts > MOST_STARTS:
            self.oracle.fail("the run never ends")
        process = self.born("driver", run=run)
        self.note(process.name, f"starts {run}")
        drivers = self._drivers()
        if len(drivers) > 1:
            self._overlapped.update(drivers)
        self.loop.spawn(process, self._drive(process))

    async def _drive(self, process: Process) -> None:
        """The command: it ends with an exit code, and whoever runs it runs it again."""
        session, later_s, left = self._session(process), 0.0, False
        self._sessions[process] = session
        try:
            await session.run()
            if self.plan.compacts:
                books = self.books(process.run)
                await asyncio.to_thread(books.compact, may_fold=self.is_dead)
        except Broken:
            raise
        except RayJudgeError as error:
            paused = isinstance(error, PausedError)
            code = "exit 4" if paused else f"exit 1: {type(error).__name__}"
            self.note(process.name, f"{code}: {error}")
            if isinstance(error, Stopped):
                if process not in self._overlapped:
                    accounts = recover(self._undisturbed(process.run).storage)
                    self.oracle.stopped(process, accounts, self._stopped[process])
            elif isinstance(error, ProviderDown):
                later_s = 3000.0
            elif paused:
                left = Outcome.PENDING in session.outcomes.values()
                left = left and not session.waiting and not session.aside
                left = left and "batch pending" not in str(error)  # that is read long before
                later_s = 3000.0 if session.aside else 0.0
            elif isinstance(error, LedgerFenced):
                later_s = 600.0  # two owners that come back at once would fence each other for ever
        except Exception as error:
            self.oracle.fail(f"unexpected {type(error).__name__}: {error}")
        else:
            self.note(process.name, "exit 0")
            self._leave(process)
            self._end_of(process, session)
            return
        self._leave(process)
        if left:
            self._next_month(process, session)
        else:
            self._start_again(process.run, later_s)

    def _session(self, process: Process) -> Session:
        run, books, strong = process.run, self.books(process.run), self.plan.strong
        courier: Any
        if run in self.plan.batch:
            config, name = self.configs[run], partial(self.name, process)
            maker, governor = SimMaker(config), SimGovernor(self, process)
            first = self.parts.first(
                maker.online(), {}, governor,
                lambda governor: SimAsker(self, process, Near(self, governor), 1),
            )  # fmt: skip
            courier = self.parts.batch(
                config, books, maker, {}, self.batches, self, _ignore, first, name
            )
        else:
            courier = self.parts.online(
                SimProcesses(self),
                self,
                _ignore,
                concurrency=strong.concurrency,
                shared=books.shared,
                per_unit=self.plan.unit,
                askers=self.plan.askers,
            )
        courier.poll_s = 2.0  # a night waits a lot
        session: Session = self.parts.session(
            books,
            courier,
            SimSource(self, run),
            self,
            _ignore,
            quiet_s=quiet_s(strong.timeout_s),
            patience_s=strong.give_up_after_s,
            is_dead=self.is_dead,
        )
        return session

    def _next_month(self, process: Process, session: Session) -> None:
        """Run again when there is money again; where none will ever do, this is the end."""
        self._check_denials(process, session)
        left = [key for key, what in session.outcomes.items() if what is Outcome.PENDING]
        if all(self.oracle.never(process.run, key) for key in left):
            self._end_of(process, session)
            return
        self.later(MONTH_S, self._start, process.run)

    def _leave(self, process: Process) -> None:
        """An orderly exit."""
        self._alive.remove(process)
        for child in process.children:
            self.kill_soon(child)

    def _end_of(self, process: Process, session: Session) -> None:
        """A run has nothing left to do."""
        run = process.run
        self._check_denials(process, session)
        answers = self._undisturbed(run).journal().answers(None)
        outcomes = {**session.outcomes, **{k: a.outcome for k, a in answers.items()}}
        self.oracle.run_ended(run, outcomes, {k: a.verdict for k, a in answers.items()})
        if run in self._again:
            self._again.remove(run)
            self._start_again(run)
            return
        self._finished.add(run)
        if self._finished == set(self.plan.asks) and not self._drivers():
            self.loop.over = True

    def _check_denials(self, process: Process, session: Session) -> None:
        accounts = recover(self._undisturbed(process.run).storage)
        alone = process not in self._overlapped
        self.oracle.driver_ended(process.run, session.outcomes, accounts, alone=alone)

    def _undisturbed(self, run: str) -> SimBooks:
        """The books as a look from outside finds them: nothing fails, and no time passes."""
        return SimBooks(self, run, MemoryStorage(self.disk.files))

    # --- fate ---

    def _draw_crash(self) -> int:
        if not self._crashes_left:
            return -1
        return 1 + int(self.rng.expovariate(1 / self.plan.steps_between_crashes))

    def _step(self) -> None:
        self.oracle.step()
        if self.oracle.broken is not None:
            raise self.oracle.broken
        if self.loop.steps > MOST_STEPS:
            self.oracle.fail("the night never ends")
        if self._crash_in == self.loop.steps:
            self._crash()
        if self._second_in == self.loop.steps and (at_work := self._drivers()):
            self.note("fate", "a second owner")
            self._start(self.rng.choice(at_work).run)
        if self._stop_in == self.loop.steps:
            self._stop()
        if self.plan.p_pause and self.rng.random() < self.plan.p_pause and self._alive:
            process = self.rng.choice(self._alive)
            pause_s = self.rng.choice((0.05, 1.0, 10.0)) * self.rng.random()
            process.paused_until = self.loop.now + pause_s
            self.disk.slow_s += pause_s
            self.note(process.name, f"sleeps for {pause_s:.3f} s")

    def _stop(self) -> None:
        at_work = [process for process in self._drivers() if process in self._sessions]
        for process in at_work[:1]:
            self.note(process.name, "is told to stop")
            self._stopped[process] = self.loop.now
            self._sessions[process].stop()

    def _crash(self) -> None:
        self._crashes_left -= 1
        self._crash_in = self.loop.steps + self._draw_crash() if self._crashes_left else -1
        if self._alive:
            self._crashes += 1
            self.kill(self.rng.choice(self._alive))

    def run(self) -> Report:
        """Let it happen."""
        for run in self.plan.asks:
            delay_s = self.rng.random() * self.rng.choice((0.1, 10.0))
            self.later(delay_s, self._start, run)
        broken: str | None = None
        try:
            self.loop.run()
        except Broken as error:
            broken = str(error)
        except Deadlock:
            broken = "everyone waits, and nothing is due"
        if self.oracle.broken is not None:
            broken = str(self.oracle.broken)
        report = Report(
            self.seed, broken, self.loop.steps, self.oracle.bills, self.oracle.again,
            self._crashes, tuple(self.trace),
        )  # fmt: skip
        self.loop.over = True
        self.loop.close()
        return report


def _ignore(figures: Any) -> None:
    """Nobody looks at a night's progress."""
