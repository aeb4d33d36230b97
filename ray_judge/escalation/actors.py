"""The two Ray actors of phase B: the one governor, and the askers that it grants to.

Neither is ever restarted in place: a dead governor is replaced by a new owner of the ledger, a
dead asker's open leases count as spent, and what was not answered is asked by its successor.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_judge.config import RunConfig, StrongConfig
from ray_judge.errors import EscalationError, PausedError, RayJudgeError
from ray_judge.escalation.asker import Asker, Purse
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.governor import Governor, Need, Permit
from ray_judge.escalation.journal import JournalWriter, compact, load_journal
from ray_judge.escalation.ledger import Ledger
from ray_judge.escalation.limiter import Feedback, Limiter
from ray_judge.escalation.pricing import price_of
from ray_judge.escalation.question import StrongQuestion
from ray_judge.inputs import Columns, read_examples, read_rows
from ray_judge.records import Chunk, Outcome
from ray_judge.storage import Storage, open_storage
from ray_judge.workers import our_error

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


def ledger_storage(config: RunConfig) -> tuple[Storage, str]:
    """Where the ledger lies: in the run directory, or where several runs share one."""
    if config.strong.ledger:
        return open_storage(config.strong.ledger), "ledger"
    return open_storage(config.output), "ledger"


def ledger_name(config: RunConfig) -> str:
    """Under which name the ledger keeps this run's dollars."""
    return config.output if config.strong.ledger else "run"


def journal_storage(config: RunConfig) -> tuple[Storage, str]:
    """Where the journal lies: in the run directory, or where several runs share one."""
    if config.strong.journal:
        return open_storage(config.strong.journal), "journal"
    return open_storage(config.output), "journal"


class _WallClock:
    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class GovernorActor:
    """Owns the ledger and the rate limits of a run."""

    def __init__(self, config: RunConfig) -> None:
        """Remember the configuration; `open` does the work, and can say what went wrong."""
        self._config = config

    async def open(self) -> RayJudgeError | None:
        """Recover the ledger and become its owner."""
        strong = self._config.strong
        storage, path = ledger_storage(self._config)
        try:
            ledger = Ledger.open(
                storage,
                path,
                cap_usd=strong.max_cost_usd,
                owner=f"{self._config.output} {secrets.token_hex(4)}",
                journal_costs=load_journal(*journal_storage(self._config)).paid,
                run=ledger_name(self._config),
                monthly_cap_usd=strong.max_cost_usd_per_month,
            )
            limiter = Limiter(
                requests_per_minute=strong.requests_per_minute,
                tokens_per_minute=strong.tokens_per_minute,
                concurrency=strong.concurrency,
            )
        except RayJudgeError as error:
            return error
        self._governor = Governor(ledger, limiter, _WallClock(), patience_s=strong.give_up_after_s)
        return None

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        """See `Governor.acquire`."""
        return await self._governor.acquire(actor, needs)

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None:
        """See `Governor.settle`."""
        await self._governor.settle(actor, items, released, feedback)

    async def pause(self, reason: str) -> None:
        """See `Governor.pause`."""
        self._governor.pause(reason)

    async def state(self) -> dict[str, Any]:
        """See `Governor.state`."""
        return self._governor.state()

    async def close(self) -> dict[str, Any]:
        """Write the ledger's last word and give the final state."""
        await self._governor.close()
        return self._governor.state()


class _FarTreasurer:
    """The governor actor, as an asker calls it."""

    def __init__(self, governor: Any) -> None:
        self._governor = governor

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        permit: Permit = await self._call(self._governor.acquire.remote(actor, needs))
        return permit

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None:
        await self._call(self._governor.settle.remote(actor, items, released, feedback))

    async def pause(self, reason: str) -> None:
        await self._call(self._governor.pause.remote(reason))

    async def _call(self, reference: Any) -> Any:
        try:
            return await reference
        except RayTaskError as error:
            raise our_error(error) from None
        except RayActorError:
            raise GovernorDied("the governor died") from None


class GovernorDied(EscalationError):
    """The governor's process is gone; its successor recovers the ledger."""


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
            storage, path, writer_id=name, linger_s=0.1 if remote else 0.0
        )
        self._question = StrongQuestion(config)
        self._client = StrongClient(strong, key.value)
        self._purse = Purse(name, _FarTreasurer(governor))
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


def compact_journal(config: RunConfig) -> None:
    """Fold the journal; only for the owner of the run's lock, with no asker alive."""
    storage, path = journal_storage(config)
    compact(storage, path, no_writers=not config.strong.journal)
