"""The askers of phase B as Ray actors: what the governor grants, they send.

Never restarted in place: a dead asker's open leases count as spent, and what was not answered is
asked by its successor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ray_judge.cluster import answer_promptly
from ray_judge.config import RunConfig, StrongConfig
from ray_judge.errors import PausedError, RayJudgeError
from ray_judge.escalation.books.journal import JournalWriter
from ray_judge.escalation.books.places import journal_name, journal_storage
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.asker import Asker, Purse
from ray_judge.escalation.online.governor_actor import FarTreasurer, GovernorDied
from ray_judge.escalation.pricing import price_of
from ray_judge.escalation.question import StrongQuestion
from ray_judge.records import Chunk, Outcome
from ray_judge.run.columns import Columns
from ray_judge.run.plan import read_examples, read_rows

Ask = tuple[int, str, int]
"""(row in its shard, question key, which of the row's orders)."""


class Secret:
    """An API key on its way to an actor: never shown, whoever prints what holds it."""

    def __init__(self, value: str) -> None:
        """Keep it."""
        self.value = value

    def __repr__(self) -> str:
        """Show nothing."""
        return "<secret>"


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class AskerActor:
    """Asks whole batches of questions; at most `in_flight` requests at once."""

    def __init__(
        self,
        config: RunConfig,
        columns: Columns,
        key: Secret,
        governor: Any,
        name: str,
        in_flight: int,
    ) -> None:
        """Open the journal's log of this actor and a client."""
        strong: StrongConfig = config.strong
        storage, path = journal_storage(config)
        remote = "://" in storage.uri
        self._journal = JournalWriter(
            storage,
            path,
            writer_id=name,
            linger_s=0.1 if remote else 0.0,
            run=journal_name(config),
        )
        self._question = StrongQuestion(config)
        self._client = StrongClient(strong, key.value)
        self._purse = Purse(name, FarTreasurer(governor))
        override = strong.price.model_dump(exclude_none=True) if strong.price else None
        self._asker = Asker(
            strong,
            self._question,
            price_of(strong.model, override),
            self._client,
            self._purse,
            self._journal,
        )
        self._columns = columns
        self._room = asyncio.Semaphore(in_flight)
        answer_promptly()

    async def ask(
        self, chunk: Chunk, asks: Sequence[Ask], unusable: Mapping[str, int]
    ) -> dict[str, str] | RayJudgeError:
        """Ask questions of one chunk, the first first; key → outcome.

        `unusable`: key → how many answers of earlier sessions were no verdict.
        Errors come back as values: what was answered by then is in the journal.
        """
        try:
            bodies = await asyncio.to_thread(self._bodies, chunk, asks)
        except RayJudgeError as error:
            return error
        tasks = []
        for (_, key, _), body in zip(asks, bodies, strict=True):
            tasks.append(asyncio.ensure_future(self._one(key, body, unusable.get(key, 0))))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        try:
            await self._purse.flush()
        except RayJudgeError as error:
            failed.append(error)
        ours = [failure for failure in failed if isinstance(failure, RayJudgeError)]
        for failure in failed:
            if failure not in ours:
                raise failure
        if ours:
            return _gravest(ours)
        return {key: str(outcome) for (_, key, _), outcome in zip(asks, outcomes, strict=True)}

    async def _one(self, key: str, body: dict[str, Any], unusable: int) -> Outcome:
        async with self._room:
            return await self._asker.ask(key, body, unusable)

    def _bodies(self, chunk: Chunk, asks: Sequence[Ask]) -> list[dict[str, Any]]:
        rows = sorted({row for row, _, _ in asks})
        start, end = rows[0], rows[-1] + 1
        table = read_rows(chunk.shard, start, end - start, self._columns.needed())
        examples = read_examples(table, self._columns)
        bodies = []
        for row, _, order in asks:
            example = examples[row - start]
            assert not isinstance(example, str)
            bodies.append(self._question.bodies(example)[order])
        return bodies

    async def close(self) -> None:
        """Mark this actor's log as ended."""
        self._journal.close()
        await self._client.close()


def _gravest(errors: Sequence[RayJudgeError]) -> RayJudgeError:
    """The error that explains the others: a refusal before the pause that it caused."""

    def weight(error: RayJudgeError) -> int:
        if isinstance(error, GovernorDied):
            return 0
        return 1 if isinstance(error, PausedError) else 2

    return max(errors, key=weight)
