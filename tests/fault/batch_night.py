"""A run in batch mode without Ray: real input, real books, a clock that is data.

The provider is the simulated one, behind HTTP (`RunningServer`) or in this process
(`NearProvider`). What a process writes and sends can be watched, and end it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import SecretStr

from ray_judge.config import RunConfig, parse
from ray_judge.escalation.answers import Reply, read_reply
from ray_judge.escalation.batch.courier import BatchCourier
from ray_judge.escalation.batch.first_questions import FirstQuestions
from ray_judge.escalation.batch.provider import METADATA
from ray_judge.escalation.books.batches import BatchRecord, load
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.books.journal import Journal
from ray_judge.escalation.client import BatchClient
from ray_judge.escalation.online.limiter import FIRST
from ray_judge.escalation.online.servers import AskerServer, GovernorServer
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.escalation.session import Session
from ray_judge.failures import Kind, RequestFailed, failure_of
from ray_judge.judging.engines.engine import extra_columns
from ray_judge.run.directory import Plan
from ray_judge.run.plan import plan_input
from tests.provider import RunningServer
from tests.provider.config import ServerConfig
from tests.provider.faults import HTTP_ERRORS, AnswerLost, ApiFailure
from tests.provider.requests import ChatRequest
from tests.provider.state import Provider
from tests.unit.builders import pairs

from .runs import document

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


class NearProvider(Provider):
    """The simulated provider without HTTP: as `RunningServer`, and as a `BatchClient`."""

    base_url, api_key = "http://127.0.0.1:9/v1", "sim-key"

    def __init__(self) -> None:
        super().__init__(ServerConfig())

    async def close(self) -> None:
        """Nothing is open."""

    in_words = False

    async def send(self, body: Mapping[str, Any]) -> Reply:
        def ask() -> dict[str, Any]:
            self.check_quota()
            request = ChatRequest.parse(dict(body), self.config)
            rule = self.pick_fault(request, self.next_attempt(request.key), self.requests, "chat")
            if rule and rule.kind in HTTP_ERRORS:
                raise ApiFailure(HTTP_ERRORS[rule.kind])
            answer, bill = self.answer(request, rule and rule.kind)
            bill.answered()
            return answer

        return read_reply(self._do(ask), {})

    async def upload(self, name: str, content: bytes) -> str:
        return self._do(self.store.upload, content)

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> Any:
        return self._do(self.store.create, file_id, dict(metadata))

    async def retrieve(self, batch_id: str) -> Any:
        return self._do(self.store.get, batch_id).body()

    async def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        return self._do(self.store.page, after, 100)

    async def download(self, file_id: str) -> bytes:
        return self._do(self.store.content, file_id)

    async def delete(self, file_id: str) -> None:
        self._do(self.store.delete, file_id)

    def _do(self, call: Callable[..., Any], *args: Any) -> Any:
        self.requests += 1
        try:
            return call(*args)
        except AnswerLost:
            raise RequestFailed(Kind.AMBIGUOUS, "scripted") from None
        except ApiFailure as failure:
            told = failure.error
            raise failure_of(told.status, told.body()["error"], failure.headers) from None


AnyProvider = NearProvider | RunningServer


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


class NearAsker(AskerServer):
    """Asks the provider that is near, where there is one."""

    def __init__(self, client: Any, config: RunConfig, books: Books, governor: Any) -> None:
        super().__init__(config, books, governor, SecretStr("sim-key"), 1)
        self._near = client

    def make_client(self) -> Any:
        return self._near if isinstance(self._near, NearProvider) else super().make_client()


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
        pq.write_table(pairs(rows), folder / "in.parquet")
        batch = {"poll_s": 30, "wait_s": 86_400, "max_requests": 6, **strong.pop("batch", {})}
        told = {"mode": "batch", "max_cost_usd": 1, "batch": batch, **strong}
        self.document = document(folder / "in.parquet", folder / "out", server, **told)
        self.document["chunk_rows"] = 5
        self.clock = NightClock(lambda: end(server), time.time())
        self.said: list[Mapping[str, Any]] = []
        self.proven = True
        """Whether the server gave verdicts before, so that nothing is asked online."""

    @property
    def config(self) -> RunConfig:
        return parse(self.document)

    @property
    def books(self) -> Books:
        return Books.of(self.config, self.clock.now)

    def session(self, before: Before = lambda name: None) -> Session:
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
        online = maker.online()
        governor = GovernorServer(online.config, books, self.clock)
        first = FirstQuestions(
            online, chunks, governor, partial(NearAsker, self.server, online.config, books)
        )
        first.proven = self.proven
        courier = BatchCourier(
            config, books, maker, chunks, client, self.clock, self.said.append, first
        )
        return Session(
            books, courier, Questions(self.questions), self.clock, self.said.append,
            quiet_s=QUIET_S, patience_s=config.strong.give_up_after_s, is_dead=lambda name: False,
        )  # fmt: skip

    def run(self, before: Before = lambda name: None) -> None:
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
        plan = plan_input(config, extra_columns(config))
        return QuestionMaker(config, plan.columns), plan

    @cached_property
    def questions(self) -> list[Question]:
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
        online = [bill for bill in bills if bill["tier"] != "batch"]
        assert len(online) <= (0 if self.proven else FIRST)
        if exact:
            assert settled - total < Decimal("1e-9") * (len(bills) + 1)
        submitted = [batch["metadata"][METADATA] for batch in self.server.batches()]
        assert len(submitted) == len(set(submitted)), "a batch was created twice"
        assert sum(answer.cost_usd for answer in self.journal().rows) == settled
        assert all(record.over for record in self.records())
