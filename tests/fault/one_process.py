"""Phase B without Ray: the real session, governor, askers and HTTP client in one event loop.

What Ray adds (processes, messages, deaths) is `kill.py`'s business; without it a run of some
hundred questions takes a second, so a test can afford many.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ray_judge.config import RunConfig, parse
from ray_judge.errors import RayJudgeError
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.books.journal import Journal, JournalWriter
from ray_judge.escalation.online.asker import Asker
from ray_judge.escalation.online.courier import OnlineCourier
from ray_judge.escalation.online.governor import Clock, WallClock
from ray_judge.escalation.online.servers import AskerServer, GovernorServer
from ray_judge.escalation.questions import QuestionMaker
from ray_judge.escalation.session import Session
from ray_judge.records import Example, Outcome
from tests.provider import RunningServer

from .batch_night import Questions
from .runs import document


def configuration(folder: Path, server: RunningServer, cap: Decimal | str, **strong: Any) -> Any:
    return parse(document(folder / "in", folder, server, max_cost_usd=cap, **strong))


class NearAsker(AskerServer):
    def make_asker(self, client: Any, journal: JournalWriter) -> Asker:
        asker = super().make_asker(client, journal)
        asker._sleep = nap
        return asker


async def nap(seconds: float) -> None:
    """Between two tries of a question: long enough for the others, short enough for a test."""
    await asyncio.sleep(min(seconds, 0.05))


class Ours:
    """A server whose errors, which are values, are raised."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def kill(self) -> None:
        """It ends with its session."""

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._server, name))

    async def _call(self, method: Any, *args: Any) -> Any:
        value = await method(*args)
        if isinstance(value, RayJudgeError):
            raise value
        return value


class NearProcesses:
    """See `courier.Processes`."""

    def __init__(self, config: RunConfig, books: Books, key: str, clock: Clock) -> None:
        self._config, self._books, self._key = config, books, SecretStr(key)
        self._clock = clock

    async def governor(self) -> Any:
        return Ours(GovernorServer(self._config, self._books, self._clock))

    async def asker(self, governor: Any, in_flight: int) -> Any:
        asker = Ours(NearAsker(self._config, self._books, governor, self._key, in_flight))
        await asker.open()
        return asker


@dataclass
class PhaseB:
    """What became of the questions of one run, or of one part of it."""

    outcomes: Counter[str]
    journal: Journal
    state: Mapping[str, Any]
    error: RayJudgeError | None


def ask(
    config: RunConfig,
    server: RunningServer,
    texts: Sequence[str],
    *,
    askers: int = 2,
    clock: Clock | None = None,
) -> PhaseB:
    """Ask what the run's journal does not answer yet, by so many askers at once."""
    books, maker, clock = Books.of(config), QuestionMaker(config), clock or WallClock()
    examples = [Example(text, ("yes", "no")) for text in texts]
    questions = [question for example in examples for question in maker.of_example(example)]
    said: list[Mapping[str, Any]] = [{}]
    courier = OnlineCourier(
        NearProcesses(config, books, server.api_key, clock), clock, said.append,
        concurrency=config.strong.concurrency, shared=False, per_unit=16, askers=askers,
    )  # fmt: skip
    session = Session(
        books, courier, Questions(questions), clock, said.append,
        quiet_s=0.0, patience_s=60, is_dead=lambda name: True,
    )  # fmt: skip
    error = None
    try:
        asyncio.run(session.run())
    except RayJudgeError as raised:
        error = raised
    journal = books.journal()
    found = {key: answer.outcome for key, answer in journal.answers().items()} | session.outcomes
    outcomes = Counter(str(found.get(question.key, Outcome.PENDING)) for question in questions)
    return PhaseB(outcomes, journal, said[-1], error)
