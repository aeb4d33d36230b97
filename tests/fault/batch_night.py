"""A run in batch mode without Ray: real input, real books, a clock that is data.

The provider is the simulated one, behind HTTP (`RunningServer`) or in this process
(`NearProvider`). What a process writes and sends can be watched, and end it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.config import RunConfig, parse
from ray_judge.escalation.batch.courier import BatchCourier
from ray_judge.escalation.batch.provider import METADATA
from ray_judge.escalation.books.batches import BatchRecord, load
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.books.journal import Journal
from ray_judge.escalation.client import BatchClient
from ray_judge.escalation.failures import Kind, RequestFailed, classify
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.escalation.session import Session
from ray_judge.judging.engines.engine import extra_columns
from ray_judge.run.directory import Plan
from ray_judge.run.plan import plan_input
from tests.provider import Prices, RunningServer, ServerConfig
from tests.provider.batches import BatchStore
from tests.provider.faults import INSUFFICIENT_QUOTA
from tests.provider.files import FileStore, scripted
from tests.provider.state import Provider
from tests.provider.wire import ApiFailure

GPT_41 = Prices(input=Decimal("2.00"), cached_input=Decimal("0.50"), output=Decimal("8.00"))
"""The shipped prices of gpt-4.1: the provider's bill and the run's books are in the same money."""
ENDED = ("completed", "failed", "expired", "cancelled")
QUIET_S = 200.0
Before = Callable[[str], object]
"""Told of each operation on the storage or at the provider before it is done; may raise."""


class Crash(BaseException):
    """The process is gone: nothing of it is cleaned up."""


class CrashAt:
    """Ends the process before its n-th operation (from 0), or before the first one of a name."""

    def __init__(self, step: int | None = None, name: str = "nothing") -> None:
        self._step, self._name = step, name
        self.steps: list[str] = []
        self.crashed = False

    def __call__(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) - 1 == self._step or name.startswith(self._name):
            self.crashed = True
        if self.crashed:  # the dead do nothing more
            raise Crash(f"{len(self.steps) - 1} {name}")


class Watched:
    """An object some of whose methods are told before they are called."""

    def __init__(self, target: Any, before: Before, *names: str) -> None:
        self._target, self._before, self._names = target, before, names

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return partial(self._call, name, value) if name in self._names else value

    def _call(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        where = str(args[0]) if args else getattr(self._target, "path", "")
        self._before(f"{name} {where}")
        made = method(*args)
        return Watched(made, self._before, "sync", "close") if name == "log" else made


class NearProvider:
    """The simulated provider without HTTP: as `RunningServer`, and as a `BatchClient`."""

    base_url, api_key = "http://127.0.0.1:9/v1", "sim-key"

    def __init__(self) -> None:
        self._provider, self._files = Provider(ServerConfig()), FileStore()
        self._store = BatchStore(self._provider, self._files)

    def stats(self) -> dict[str, Any]:
        counts = {"uploads": self._files.uploads, "batch_creations": self._store.creations}
        return {**self._provider.stats(), **counts}

    def bills(self) -> list[dict[str, Any]]:
        return [asdict(bill) for bill in self._provider.bills.rows]

    def configure(self, **settings: Any) -> None:
        self._provider.reconfigure(json.loads(json.dumps(settings)))

    def reset(self) -> None:
        for part in (self._store, self._files, self._provider):
            part.reset()

    def batches(self) -> list[dict[str, Any]]:
        return [batch.body() for batch in self._store.batches.values()]

    def advance_batch(self, batch: str) -> None:
        _finish(self._store.step(self._store.get(batch)))

    def cancel_batch(self, batch: str) -> None:
        self._store.cancel(self._store.get(batch))

    async def close(self) -> None:
        """Nothing is open."""

    async def upload(self, name: str, content: bytes) -> str:
        self._files.uploads += 1
        faults = self._provider.config.batches.upload_faults
        store = partial(self._files.add, content, name, "batch")
        file: str = self._do(store, scripted(faults, self._files.uploads)).id
        return file

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> Any:
        def create() -> Any:
            if self._provider.quota_used_up():
                raise ApiFailure(INSUFFICIENT_QUOTA)
            return _finish(self._store.create(file_id, dict(metadata))).body()

        self._store.creations += 1
        faults = self._provider.config.batches.create_faults
        return self._do(create, scripted(faults, self._store.creations))

    async def retrieve(self, batch_id: str) -> Any:
        return self._do(lambda: self._store.get(batch_id).body())

    async def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        newest = self.batches()[::-1]
        begin = [one["id"] for one in newest].index(after) + 1 if after else 0
        return newest[begin : begin + 100], len(newest) > begin + 100

    async def download(self, file_id: str) -> Any:
        return self._do(lambda: self._files.get(file_id).content)

    async def delete(self, file_id: str) -> None:
        self._do(lambda: self._files.files.pop(self._files.get(file_id).id))

    def _do(self, effect: Callable[[], Any], fault: str | None = None) -> Any:
        self._provider.requests += 1
        if fault == "rate_limit":
            raise RequestFailed(Kind.RATE_LIMIT, "HTTP 429", status=429)
        broken = Kind.AMBIGUOUS if str(fault).startswith("reset") else Kind.BROKEN
        if str(fault).endswith("before"):
            raise RequestFailed(broken, "scripted")
        try:
            made = effect()
        except ApiFailure as failure:
            told = failure.error
            kind = classify(told.status, told.code, told.type, told.param)
            reason = f"HTTP {told.status} {told.code}"
            raise RequestFailed(kind, reason, status=told.status, code=told.code) from None
        if fault:
            raise RequestFailed(broken, "scripted")
        return made


def _finish(work: Coroutine[Any, Any, Any]) -> Any:
    """Do work that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits")


AnyProvider = NearProvider | RunningServer


def clean(server: AnyProvider, **batches: Any) -> None:
    """Empty books and default settings, but for some of the batches'. No batch moves by itself."""
    settings = ServerConfig(prices=GPT_41).public()
    del settings["api_key"]
    settings["batches"] |= {"manual": True, **batches}
    server.configure(**settings)
    server.reset()


def end(server: AnyProvider) -> None:
    """Move all batches on together, status by status, until each has ended."""
    while waiting := [one for one in server.batches() if one["status"] not in ENDED]:
        for one in waiting:
            server.advance_batch(one["id"])


@dataclass
class NightClock:
    """Seconds pass when somebody sleeps, and then `meanwhile` happens."""

    meanwhile: Callable[[], object]
    wall: float
    slept: float = 0.0

    def now(self) -> float:
        return self.wall

    async def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.slept += seconds
        self.meanwhile()


class Questions:
    """All questions at once; see `session.QuestionSource`."""

    def __init__(self, questions: list[Question]) -> None:
        self._lots = [questions]

    def take(self) -> list[Question] | None:
        return self._lots.pop() if self._lots else None

    def check(self) -> None:
        """Nothing has failed."""

    def stop(self) -> None:
        """No thread is at work."""


class Night:
    """One run directory, and what several processes one after the other do in it."""

    def __init__(self, folder: Path, server: AnyProvider, rows: int = 12, **strong: Any) -> None:
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
        self.clock = NightClock(lambda: end(server), time.time())
        self.said: list[Mapping[str, Any]] = []

    @property
    def config(self) -> RunConfig:
        return parse(self.document)

    @property
    def books(self) -> Books:
        return Books.of(self.config, self.clock.now)

    def session(self, before: Before = lambda name: None) -> Session:
        """A new process."""
        config, books = self.config, self.books
        written = "write", "create", "delete", "log", "write_stream"
        books.storage = Watched(books.storage, before, *written)  # type: ignore[assignment]
        client: Any = self.server
        if isinstance(client, RunningServer):
            client = BatchClient(config.strong, client.api_key)
        sent = "upload", "create", "retrieve", "page", "download", "delete"
        client = Watched(client, before, *sent)
        maker, plan = self._maker_and_plan
        chunks = {chunk.name: chunk for chunk in plan.chunks()}
        courier = BatchCourier(config, books, maker, chunks, client, self.clock, self.said.append)
        return Session(
            books, courier, Questions(self.questions), self.clock, self.said.append,
            quiet_s=QUIET_S, patience_s=config.strong.give_up_after_s, is_dead=lambda name: False,
        )  # fmt: skip

    def run(self, before: Before = lambda name: None) -> None:
        """Work to the end, or to the crash."""
        asyncio.run(self.session(before).run())

    def crashes(self, crash: CrashAt) -> bool:
        """Work until the crash; False when it ended before."""
        try:
            self.run(crash)
        except Crash:
            return True
        return False

    @cached_property
    def _maker_and_plan(self) -> tuple[QuestionMaker, Plan]:
        config = self.config
        shards, columns = plan_input(config, extra_columns(config))
        return QuestionMaker(config, columns), Plan(tuple(shards), columns, config.chunk_rows)

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, in the order of the input."""
        maker, plan = self._maker_and_plan
        found: list[Question] = []
        for chunk in plan.chunks():
            for asked in maker.of_rows(
                chunk, range(chunk.start, chunk.start + chunk.rows)
            ).values():
                found += [replace(question, body=None) for question in asked]
        return found

    def journal(self) -> Journal:
        return self.books.journal()

    def records(self) -> list[BatchRecord]:
        return load(self.books.storage, self.books.run)

    def outcomes(self) -> Counter[str]:
        """Outcome → questions; what has no final answer is `none`."""
        found = self.journal().answers()
        keys = [question.key for question in self.questions]
        return Counter(str(found[key].outcome) if key in found else "none" for key in keys)

    def check(self, *, exact: bool = True, twice: int = 0, billed: int | None = None) -> None:
        """The promises, by the provider's own books. `exact`: nothing was lost on the way."""
        stats, bills = self.server.stats(), self.server.bills()
        total, (settled, promised) = Decimal(stats["total_usd"]), self.books.recorded()
        assert "crashed" not in stats["by_status"]
        assert stats["billed_twice"] == twice
        assert billed in (None, stats["billed"])
        assert total <= settled <= self.config.strong.max_cost_usd
        assert promised == 0
        assert {bill["tier"] for bill in bills} <= {"batch"}
        if exact:
            assert settled - total < Decimal("1e-9") * (len(bills) + 1)
        submitted = [batch["metadata"][METADATA] for batch in self.server.batches()]
        assert len(submitted) == len(set(submitted)), "a batch was created twice"
        assert sum(answer.cost_usd for answer in self.journal().rows) == settled
        assert all(record.over for record in self.records())
