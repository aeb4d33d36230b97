"""One night: a run that goes through crashes and restarts until every question has its outcome."""

from __future__ import annotations

import contextvars
import gc
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_judge.errors import PausedError, RayJudgeError
from ray_judge.escalation.books.journal import Journal, JournalWriter, load_journal
from ray_judge.escalation.books.ledger import Ledger, recorded
from ray_judge.escalation.online.governor import Governor
from ray_judge.records import Outcome

from .disk import Disk, SimStorage
from .driver import Driver, MonthIsFull, distinct
from .hosts import RememberingAsker, WatchedPurse
from .loop import Deadlock, Process, SimLoop
from .oracle import Broken, LastWord, Oracle
from .plan import Question, draw
from .provider import Provider

MOST_STEPS = 200_000
MONTH_S = 31 * 86_400.0
MOST_STARTS = 60
"""A night that takes more is one that never ends."""


@dataclass
class Parts:
    """What is under test. A broken variant replaces one of them."""

    ledger: Any = Ledger
    governor: Any = Governor
    journal: Any = JournalWriter
    purse: Any = WatchedPurse
    asker: Any = RememberingAsker
    storage: Any = SimStorage
    answered: Callable[[Journal], set[str]] = lambda journal: set(journal.answers)
    unusable: Callable[[Journal], Mapping[str, int]] = lambda journal: journal.unusable()
    distinct: Callable[[tuple[Question, ...]], list[Question]] = distinct


@dataclass(frozen=True)
class Report:
    """What became of a night. `broken` is the promise that was not kept."""

    seed: int
    broken: str | None
    steps: int
    bills: int
    again: int
    crashes: int
    seconds: float
    trace: tuple[tuple[float, str, str], ...]

    def digest(self) -> str:
        """Equal for equal nights."""
        return hashlib.sha256(repr(self.trace).encode()).hexdigest()[:16]


def run_night(seed: int, parts: Parts | None = None) -> Report:
    """Run one night to its end, or to the first broken promise."""
    return Night(seed, parts or Parts()).run()


def run_nights(seeds: Iterable[int], parts: Parts | None = None) -> Iterator[Report]:
    """Run many. Their garbage is collected now and then: twice as fast as Python's own way."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number, seed in enumerate(seeds):
            if number % 50 == 49:
                gc.collect()
            yield run_night(seed, parts)
    finally:
        if enabled:
            gc.enable()


class Night:
    """The world of one night, and the hand of fate in it."""

    def __init__(self, seed: int, parts: Parts) -> None:
        """Everything that will happen is decided here."""
        self.seed = seed
        self.parts = parts
        self.rng = random.Random(seed)
        self.plan = plan = draw(self.rng)
        random.seed(seed)  # tenacity draws its jitter from there
        self.trace: list[tuple[float, str, str]] = []
        self.loop = SimLoop(self.rng, shuffled=plan.shuffled)  # type: ignore[abstract]
        self.disk = Disk(
            self.loop, self.rng, plan.segments, plan.p_slow, plan.p_fail, plan.failures
        )
        self.oracle = Oracle(plan, self.loop, self.disk, self.note)
        self.provider = Provider(self.loop, self.rng, plan, self.oracle, self.note)
        self.loop.on_step = self._step
        self._names = 0
        self._starts = 0
        self._crashes_left = plan.crashes
        self._crashes = 0
        self._crash_in = self._draw_crash()
        self._second_in = int(self.rng.expovariate(1 / 300)) if plan.shared else -1
        self._alive: list[Process] = []
        self._children: dict[Process, list[Process]] = {}

    # --- for the processes ---

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append((round(self.loop.now, 6), who, what))

    def wall(self) -> float:
        """Unix seconds."""
        return self.plan.start + self.loop.now

    def name(self) -> str:
        """A name that nobody else has."""
        self._names += 1
        return f"n{self._names}"

    def travel_s(self) -> float:
        """How long a message between two processes takes."""
        return self.rng.random() * 0.002

    def outside(self) -> contextvars.Context:
        """A context of no process: what runs in it survives all of them."""
        return contextvars.Context()

    def storage(self, process: Process) -> SimStorage:
        """A process's way to the disk."""
        storage: SimStorage = self.parts.storage(self.disk, process)
        return storage

    # --- birth and death ---

    def born(self, kind: str, parent: Process | None = None) -> Process:
        """Start a process. The children of a driver outlive it for a while."""
        process = Process(f"{kind}-{self.name()}")
        self._alive.append(process)
        if parent is not None:
            self._children[parent].append(process)
            if parent.doomed_at is not None:
                self.oracle.doom(process)
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
        for child in self._children.get(process, []):
            self.oracle.doom(child)
            late = self.rng.random() < 0.2
            self.kill_soon(child, self.rng.uniform(0.0, 20.0 if late else 0.5))
        if process in self._children:
            self._start_again()

    def kill_soon(self, process: Process, delay_s: float | None = None) -> None:
        """Kill it in a moment."""
        delay_s = self.rng.random() * 0.05 if delay_s is None else delay_s
        self.loop.call_later(delay_s, self.kill, process, context=self.outside())

    def _start_again(self) -> None:
        delay_s = self.rng.choice((0.01, 0.5, 5.0, 30.0)) * self.rng.random()
        self.loop.call_later(delay_s, self._start, context=self.outside())

    def _start(self) -> None:
        self._starts += 1
        if self._starts > MOST_STARTS:
            self.oracle.fail("the run never ends")
        process = self.born("driver")
        self._children[process] = []
        self.note(process.name, "starts")
        drivers = [p for p in self._alive if p in self._children]
        if len(drivers) > 1:  # two owners may ask the same question at the same time
            for driver in drivers:
                self.oracle.doom(driver)
                for child in self._children[driver]:
                    self.oracle.doom(child)
        self.loop.spawn(process, self._drive(process))

    async def _drive(self, process: Process) -> None:
        """The command: it ends with an exit code, and whoever runs it runs it again."""
        driver = Driver(self, process)
        try:
            outcomes = await driver.score()
        except Broken:
            raise
        except MonthIsFull as error:
            self.note(process.name, f"exit 4: {error}")
            self._leave(process)
            self._next_month(error)
            return
        except PausedError as error:
            self.note(process.name, f"exit 4: {error}")
        except RayJudgeError as error:
            self.note(process.name, f"exit 1: {type(error).__name__}: {error}")
        except Exception as error:
            self.oracle.fail(f"unexpected {type(error).__name__}: {error}")
        else:
            self._leave(process)
            self.note(process.name, f"exit 0, {len(outcomes)} outcomes")
            if not self._others():
                self._finish(outcomes, driver.last_word)
            return
        self._leave(process)
        self._start_again()

    def _others(self) -> bool:
        return any(other.name.startswith("driver") for other in self._alive)

    def _next_month(self, full: MonthIsFull) -> None:
        """Run again when there is money again; where none will ever do, this is the end."""
        self.oracle.month_full(full.outcomes, full.accounts, full.last)
        if not self.oracle.for_ever(full.outcomes):
            self.loop.call_later(MONTH_S, self._start, context=self.outside())
        elif not self._others():
            self._finish(full.outcomes, full.last)

    def _leave(self, process: Process) -> None:
        """An orderly exit: nobody is doomed by it."""
        self._alive.remove(process)
        for child in self._children.pop(process):
            self.kill_soon(child)

    def _finish(self, outcomes: Mapping[str, Outcome], last: LastWord | None) -> None:
        storage = SimStorage(self.disk, Process("the end"))
        self.disk.failures_left, self.disk.p_slow = 0, 0.0

        def used() -> int:
            settled, unproven = recorded(storage, "ledger", run="run")
            return int((settled + unproven).scaleb(9))

        journal = load_journal(storage, "journal")
        verdicts = {key: answer.verdict for key, answer in journal.answers.items()}
        self.oracle.night_ended(outcomes, verdicts, used, last)
        self.loop.over = True

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
        if self._second_in == self.loop.steps:
            self._start_second()
        if self.plan.p_pause and self.rng.random() < self.plan.p_pause and self._alive:
            process = self.rng.choice(self._alive)
            pause_s = self.rng.choice((0.05, 1.0, 10.0)) * self.rng.random()
            process.paused_until = self.loop.now + pause_s
            self.disk.slow_s += pause_s
            self.note(process.name, f"sleeps for {pause_s:.3f} s")

    def _crash(self) -> None:
        self._crashes_left -= 1
        self._crash_in = self.loop.steps + self._draw_crash() if self._crashes_left else -1
        if self._alive:
            self._crashes += 1
            self.kill(self.rng.choice(self._alive))

    def _start_second(self) -> None:
        """A second owner of the shared ledger and journal, while the first is at work."""
        if any(process in self._children for process in self._alive):
            self.note("fate", "a second owner")
            self._start()

    def run(self) -> Report:
        """Let it happen."""
        self.loop.call_soon(self._start, context=self.outside())
        broken: str | None = None
        try:
            self.loop.run()
        except Broken as error:
            broken = str(error)
        except Deadlock:
            broken = "everyone waits, and nothing is due"
        if self.oracle.broken is not None:
            broken = str(self.oracle.broken)
        self.loop.over = True
        return Report(
            self.seed, broken, self.loop.steps, self.oracle.bills, self.oracle.again,
            self._crashes, self.loop.now, tuple(self.trace),
        )  # fmt: skip
