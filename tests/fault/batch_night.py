"""A run in batch mode without Ray: real input, real HTTP, real files, a clock that is data.

As a program (`python -m tests.fault.batch_night RUN.yaml`) it works on the run in a process of its
own, which a test can kill.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.config import RunConfig, load, parse
from ray_judge.errors import RayJudgeError
from ray_judge.escalation.batch.courier import BatchSession
from ray_judge.escalation.batch.provider import METADATA
from ray_judge.escalation.batch.records import BatchFolder, BatchState, Wanted
from ray_judge.escalation.books.journal import Journal, load_journal
from ray_judge.escalation.books.ledger import recorded
from ray_judge.escalation.question import StrongQuestion
from ray_judge.judging.engines.engine import extra_columns
from ray_judge.run.directory import Plan
from ray_judge.run.plan import plan_input, read_examples, read_rows
from ray_judge.storage.local import open_storage
from tests.provider import Prices, RunningServer, ServerConfig, running_server

GPT_41 = Prices(input=Decimal("2.00"), cached_input=Decimal("0.50"), output=Decimal("8.00"))
BY_HAND = {"validating_s": 86_400, "in_progress_s": 86_400, "finalizing_s": 86_400}
"""By itself no batch comes to its end here: the clock of a night moves it (see `Clock`)."""
BY_ITSELF = {"validating_s": 0.005, "in_progress_s": 0.01, "finalizing_s": 0.005}
"""For a process of its own, whose clock is the real one."""
ENDED = ("completed", "failed", "expired", "cancelled")


class Crash(BaseException):
    """The process is gone: nothing of it is cleaned up."""


@dataclass
class Clock:
    """Seconds pass when somebody sleeps, and then every batch of the provider comes to its end.

    So what happens between two looks does not depend on how busy this machine is. Batches that a
    test moves with its own hand (`manual`), or that move by themselves, are left alone.
    """

    server: RunningServer
    now: float = field(default_factory=time.time)
    slept: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        settings = self.server.configure()["batches"]
        if settings["manual"] or settings["in_progress_s"] < BY_HAND["in_progress_s"]:
            time.sleep(0.002)
        else:
            end(self.server)


class CrashAt:
    """Ends the process at its n-th step (from 0); counts the steps."""

    def __init__(self, step: int | None = None, name: str | None = None) -> None:
        self._step, self._name = step, name
        self.steps: list[str] = []

    def __call__(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) - 1 == self._step or name == self._name:
            raise Crash(f"{len(self.steps) - 1} {name}")


@contextmanager
def provider() -> Iterator[RunningServer]:
    """The simulated provider's process, with gpt-4.1's prices."""
    with running_server(ServerConfig(prices=GPT_41)) as server:
        yield server


def end(server: RunningServer) -> None:
    """Move all batches on together, status by status, until each has ended."""
    while waiting := [one for one in server.batches() if one["status"] not in ENDED]:
        for one in waiting:
            server.advance_batch(one["id"])


def clean(server: RunningServer, **batches: Any) -> RunningServer:
    """Empty books and default settings, but for some of the batches'."""
    settings = ServerConfig(prices=GPT_41).public()
    del settings["api_key"]
    settings["batches"] |= BY_HAND | batches
    server.configure(**settings)
    server.reset()
    return server


class Night:
    """One run directory, and what several processes one after the other do in it."""

    def __init__(self, folder: Path, server: RunningServer, rows: int = 12, **strong: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.server = server
        numbers = range(rows)
        table = {
            "instruction": [f"Write down the number {n}. €" for n in numbers],
            "response_a": [f"{n}" for n in numbers],
            "response_b": [f"perhaps {n + 1}" for n in numbers],
            "p_a": [0.5] * rows,
            "p_b": [0.5] * rows,
        }
        pq.write_table(pa.table(table), folder / "in.parquet")
        batch = {"poll_s": 30, "wait_s": 86_400, "max_requests": 6, **strong.pop("batch", {})}
        self.document: dict[str, Any] = {
            "input": str(folder / "in.parquet"),
            "output": str(folder / "out"),
            "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
            "route": {"policy": "fraction", "fraction": 1},
            "chunk_rows": 5,
            "strong": {
                "model": "gpt-4.1", "mode": "batch", "max_cost_usd": 1,
                "base_url": server.base_url, "batch": batch, **strong,
            },
        }  # fmt: skip
        self.clock = Clock(server)

    @property
    def config(self) -> RunConfig:
        return parse(self.document)

    def session(self, checkpoint: Callable[[str], None] = lambda step: None) -> BatchSession:
        """A new process."""
        columns, questions = work(self.config)
        return BatchSession(
            self.config, columns, questions,
            clock=self.clock, sleep=self.clock.sleep, checkpoint=checkpoint,
        )  # fmt: skip

    def run(self, checkpoint: Callable[[str], None] = lambda step: None) -> None:
        """Work to the end, or to the crash."""
        session = self.session(checkpoint)
        try:
            session.run()
        except Crash:  # the kernel closes a dead process's sockets and locks, and does no more
            session._books._turn.give_back()
            if session._connection is not None:
                session._connection.close()
            raise
        except RayJudgeError:
            session.close()
            raise
        session.close()

    def crashes(self, crash: CrashAt) -> bool:
        """Work until the crash; False when it ended before."""
        try:
            self.run(crash)
        except Crash:
            return True
        return False

    @property
    def keys(self) -> list[str]:
        return [question.key for question in work(self.config)[1]]

    def journal(self) -> Journal:
        return load_journal(open_storage(self.config.strong.books or self.config.output))

    def states(self) -> list[BatchState]:
        return BatchFolder(open_storage(self.config.output)).states()

    def money(self) -> tuple[Decimal, Decimal]:
        """(settled, promised), dollars."""
        storage = self.config.strong.books or self.config.output
        return recorded(open_storage(storage), run="run")

    def outcomes(self) -> Counter[str]:
        """Outcome → questions; what has no final answer is `denied`."""
        found = self.journal().answers
        return Counter(str(found[key].outcome) if key in found else "denied" for key in self.keys)

    def check(self, *, answered: int | None = None, exact: bool = True, twice: int = 0) -> None:
        """The promises, by the provider's own books. `exact`: nothing was lost on the way."""
        stats, bills = self.server.stats(), self.server.bills()
        billed, (settled, promised) = Decimal(stats["total_usd"]), self.money()
        assert "crashed" not in stats["by_status"]
        assert stats["billed_twice"] == twice
        assert billed <= settled <= self.config.strong.max_cost_usd
        assert promised == 0
        assert {bill["tier"] for bill in bills} <= {"batch"}
        if exact:
            assert settled - billed < Decimal("1e-9") * (len(bills) + 1)
        submitted = [batch["metadata"][METADATA] for batch in self.server.batches()]
        assert len(submitted) == len(set(submitted)), "a batch was submitted twice"
        assert sum(a.cost_usd for a in self.journal().rows) == settled
        assert len(self.journal().answers) == (len(self.keys) if answered is None else answered)
        assert {state.stage for state in self.states()} <= {"read", "abandoned"}


def work(config: RunConfig) -> tuple[Any, list[Wanted]]:
    """Columns and questions of a run, in the order of the input."""
    shards, columns = plan_input(config, extra_columns(config))
    plan, question = Plan(tuple(shards), columns, config.chunk_rows), StrongQuestion(config)
    found: dict[str, Wanted] = {}
    for chunk in plan.chunks():
        table = read_rows(chunk.shard, chunk.start, chunk.rows)
        for row, example in enumerate(read_examples(table, columns), chunk.start):
            assert not isinstance(example, str)
            for order, key in enumerate(question.keys(example)):
                found.setdefault(key, Wanted(chunk, row, key, order))
    return columns, list(found.values())


def main(path: str) -> None:
    """Work on a run; say each step, and wait for a line on the standard input before going on."""

    def step(name: str) -> None:
        print(name, flush=True)
        sys.stdin.readline()

    config = load(path)
    columns, questions = work(config)
    session = BatchSession(config, columns, questions, checkpoint=step)
    session.run()
    session.close()


__all__ = ["BY_ITSELF", "Clock", "Crash", "CrashAt", "Night", "clean", "end", "provider"]

if __name__ == "__main__":
    main(sys.argv[1])
