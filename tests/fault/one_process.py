"""Phase B without Ray: the real governor, askers, journal and HTTP client in one event loop.

What Ray adds (processes, messages, deaths) is `kill.py`'s business; without it a run of some
hundred questions takes a second, so a test can afford many.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ray_judge.config import RunConfig, parse
from ray_judge.escalation.books.journal import Journal, JournalWriter, load_journal
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.asker import Asker, Purse
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.online.limiter import Limiter
from ray_judge.escalation.pricing import price_of
from ray_judge.escalation.question import StrongQuestion
from ray_judge.records import Example, Outcome
from ray_judge.storage.local import open_storage
from tests.provider import Prices, RunningServer, ServerConfig

GPT_41 = Prices(input=Decimal("2.00"), cached_input=Decimal("0.50"), output=Decimal("8.00"))
"""The shipped prices of gpt-4.1: the server's bill and the run's books are in the same money."""


def clean(server: RunningServer, **settings: Any) -> RunningServer:
    """Empty books, and default settings but for some."""
    defaults = ServerConfig(prices=GPT_41).public()
    del defaults["api_key"]
    server.configure(**{**defaults, **settings})
    server.reset()
    return server


def configuration(server: RunningServer, cap: Decimal | str, **strong: Any) -> RunConfig:
    """Read a run against this server, under this cap."""
    return parse(
        {
            "input": "i",
            "output": "o",
            "judge": {"model": "m"},
            "route": {"fraction": 1},
            "strong": {
                "model": "gpt-4.1",
                "max_cost_usd": cap,
                "base_url": server.base_url,
                "requests_per_minute": 600_000,
                "tokens_per_minute": 600_000_000,
                "concurrency": 16,
                **strong,
            },
        }
    )


class WallClock:
    """The governor's time, as its actor gives it."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Let them pass."""
        await asyncio.sleep(seconds)


class NearTreasurer:
    """The governor, as an asker in the same process calls it."""

    def __init__(self, governor: Governor) -> None:
        self.acquire, self.settle = governor.acquire, governor.settle
        self._governor = governor

    async def pause(self, reason: str) -> None:
        """Rest the whole run."""
        self._governor.pause(reason)


async def nap(seconds: float) -> None:
    """Between two tries of a question: long enough for the others, short enough for a test."""
    await asyncio.sleep(min(seconds, 0.05))


@dataclass
class Night:
    """What became of the questions of one run, or of one part of it."""

    outcomes: Counter[str]
    journal: Journal
    state: dict[str, Any]
    errors: list[BaseException] = field(default_factory=list)


def ask(
    config: RunConfig,
    folder: Path,
    server: RunningServer,
    texts: Sequence[str],
    *,
    actors: int = 2,
) -> Night:
    """Ask what the journal in `folder` does not answer yet, by so many askers at once."""
    return asyncio.run(_ask(config, folder, server, texts, actors))


async def _ask(
    config: RunConfig, folder: Path, server: RunningServer, texts: Sequence[str], actors: int
) -> Night:
    strong, storage = config.strong, open_storage(str(folder))
    before = load_journal(storage)
    ledger = Ledger.open(
        storage, cap_usd=strong.max_cost_usd, owner="test", journal_costs=before.paid
    )
    limiter = Limiter(
        requests_per_minute=strong.requests_per_minute,
        tokens_per_minute=strong.tokens_per_minute,
        concurrency=strong.concurrency,
    )
    governor = Governor(ledger, limiter, WallClock(), patience_s=strong.give_up_after_s)
    question, unusable = StrongQuestion(config), before.unusable()
    series = f"{ledger.epoch}"
    outcomes: list[Outcome | BaseException] = []

    async def actor(number: int) -> None:
        journal = JournalWriter(storage, writer_id=f"{series}-{number}")
        client = StrongClient(strong, server.api_key)
        purse = Purse(f"{series}-{number}", NearTreasurer(governor))
        asker = Asker(strong, question, price_of(strong.model), client, purse, journal, sleep=nap)
        room = asyncio.Semaphore(max(1, strong.concurrency // actors))

        async def one(text: str) -> Outcome:
            example = Example(text, ("yes", "no"))
            key = question.keys(example)[0]
            if key in before.answers:
                return before.answers[key].outcome
            async with room:
                return await asker.ask(key, question.body(example), unusable.get(key, 0))

        outcomes.extend(
            await asyncio.gather(*map(one, texts[number::actors]), return_exceptions=True)
        )
        await purse.flush()
        journal.close()
        await client.close()

    await asyncio.gather(*(actor(number) for number in range(actors)))
    await governor.close()
    return Night(
        Counter(str(outcome) for outcome in outcomes if isinstance(outcome, Outcome)),
        load_journal(storage),
        governor.state(),
        [outcome for outcome in outcomes if isinstance(outcome, BaseException)],
    )
