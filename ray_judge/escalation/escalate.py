"""Phase B: every routed question that is not answered yet is asked, once.

This is where phase B begins, and the one place that knows which courier a run uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import polars as pl
from pydantic import SecretStr

from ray_judge.config import RunConfig, api_key, with_variables
from ray_judge.errors import LedgerFenced, Stopped
from ray_judge.escalation.batch.courier import BatchCourier
from ray_judge.escalation.batch.first_questions import FirstQuestions
from ray_judge.escalation.books.accounts import Excess
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.client import BatchClient
from ray_judge.escalation.online.actors import RayProcesses
from ray_judge.escalation.online.courier import OnlineCourier
from ray_judge.escalation.online.governor import WallClock
from ray_judge.escalation.online.permits import quiet_s
from ray_judge.escalation.online.servers import AskerServer, GovernorServer
from ray_judge.escalation.pricing import Price, cache_saving
from ray_judge.escalation.processes import is_dead
from ray_judge.escalation.questions import QuestionMaker, price_of_strong
from ray_judge.escalation.session import POLL_S, Courier, Report, Session
from ray_judge.escalation.source import RoutedQuestions
from ray_judge.records import Answer
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.storage.local import Missing

DRAIN_S = 18.0
"""So long what is in flight is waited for after Ctrl-C or SIGTERM; Kubernetes waits for 30."""


@dataclass(frozen=True)
class Answers:
    """What the journal holds for a run when phase B is over.

    `asked`: a frame of `chunk`, `row`, `question_keys` (orders × samples) for every row that was
    to be asked. `last`: key → its final answer, else what came of it last, whoever paid for it.
    `cost`: key → dollars of this run's own attempts. `requests`: how many those were.
    """

    asked: pl.DataFrame
    last: Mapping[str, Answer]
    cost: Mapping[str, Decimal]
    requests: int
    settled_usd: Decimal
    unproven_usd: Decimal
    """Promised to requests whose fate a crash hid: counted as spent."""
    excess: Excess
    cached_tokens: int
    """Of the input, which a prompt cache gave."""
    cache_saved_usd: Decimal

    def paid(self) -> dict[str, tuple[Answer | None, Decimal]]:
        """Question key → its last answer, and what this run's attempts at it cost.

        A question that was paid for and then denied by the cap has no answer, but has a cost.
        """
        keys = self.last.keys() | self.cost.keys()
        return {key: (self.last.get(key), self.cost.get(key, Decimal(0))) for key in keys}

    @property
    def unanswered(self) -> int:
        """How many questions ended for this time only: the next `score` asks them again."""
        return sum(not answer.final for answer in self.last.values())


def check_strong(config: RunConfig) -> None:
    """Refuse what can be known to fail before anything is sent. Raises ConfigError."""
    price_of_strong(config.strong)
    if config.strong.max_cost_usd > 0:
        api_key(config.strong)
        with_variables(config.strong)


def check_books(config: RunConfig) -> None:
    """Refuse books that cannot be read, before the local judge begins its work.

    Raises CorruptedError for what is damaged or was written by a newer version. What another run
    that shares them tidies away meanwhile is no damage.
    """
    books = Books.of(config)
    with contextlib.suppress(LedgerFenced, Missing):
        books.recorded()
        books.journal()


def escalate(
    config: RunConfig, plan: Plan, routed: Iterable[pl.DataFrame], report: Report
) -> Answers:
    """Ask every routed question that the journal does not answer yet.

    `routed` may still be growing (phase A goes on): its frames are taken as they come. Raises
    PausedError with everything kept, EscalationError, StorageError.
    """
    strong, books, clock = config.strong, Books.of(config), WallClock()
    if strong.max_cost_usd > 0:  # Ray's workers have another environment
        strong = with_variables(strong)
        config = config.model_copy(update={"strong": strong})
    maker = QuestionMaker(config, plan.columns)
    chunks = {chunk.name: chunk for chunk in plan.chunks()}
    source = RoutedQuestions(routed, chunks, maker, whole=strong.mode == "batch")
    courier: Courier
    key = api_key(strong) if strong.max_cost_usd > 0 else "none"
    if strong.mode == "batch":
        client, online = BatchClient(strong, key), maker.online()
        first = FirstQuestions(
            online, chunks, GovernorServer(online.config, books),
            lambda governor: AskerServer(online.config, books, governor, SecretStr(key), 1),
        )  # fmt: skip
        courier = BatchCourier(config, books, maker, chunks, client, clock, report, first)
    else:
        courier = OnlineCourier(
            RayProcesses(config, books, key),
            clock,
            report,
            concurrency=strong.concurrency,
            shared=books.shared,
        )
    session = Session(
        books,
        courier,
        source,
        clock,
        report,
        quiet_s=quiet_s(strong.timeout_s),
        patience_s=strong.give_up_after_s,
        is_dead=is_dead,
        # What is scored by now knows less than is to come.
        before_asking=RunDirectory(config.output).reopen,
    )
    _wait_for(session)
    books.compact(may_fold=is_dead)
    return answers_of(books, source.asked(), maker.price)


def answers_of(books: Books, asked: pl.DataFrame, price: Price) -> Answers:
    """Read the run's answers back from the journal, and its dollars from the ledger."""
    journal = books.journal()
    settled, unproven = books.recorded()
    keys = asked["question_keys"].explode().drop_nulls().unique()
    cached = journal.cached(books.run)
    saved = (cache_saving(price, tier, *tokens) for tier, tokens in cached.items())
    return Answers(
        asked, journal.answers(keys), journal.costs(books.run), journal.requests(books.run),
        settled, unproven, books.excess(),
        sum(read for read, _ in cached.values()), sum(saved, Decimal(0)),
    )  # fmt: skip


def _wait_for(session: Session) -> None:
    """Run a session to its end, also where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_run_until_told(session))
        return
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, session.run())
        try:
            while not running.done():  # behind Polars' handler a signal does not end a wait
                wait([running], POLL_S)
        except KeyboardInterrupt:
            session.stop()
            raise
        running.result()


async def _run_until_told(session: Session) -> None:
    """Run a session. The first Ctrl-C or SIGTERM lets it end in good order, the second at once."""
    loop, running = asyncio.get_running_loop(), asyncio.ensure_future(session.run())

    def stop() -> None:
        if session.stopping:
            running.cancel()
        session.stop()
        loop.call_later(DRAIN_S, running.cancel)

    with _told(loop, stop), contextlib.suppress(asyncio.CancelledError):
        await running
        return
    raise Stopped(
        "stopped before everything had come back: what was in flight counts as spent, "
        "the same command continues"
    )


@contextmanager
def _told(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at each Ctrl-C and SIGTERM; only the main thread is told of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {told: signal.getsignal(told) for told in (signal.SIGINT, signal.SIGTERM)}
    for told in before:
        loop.add_signal_handler(told, stop)
    try:
        yield
    finally:
        for told, handler in before.items():
            loop.remove_signal_handler(told)
            signal.signal(told, handler)
