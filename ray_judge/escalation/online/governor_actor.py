"""The one governor of a run as a Ray actor, and how an asker calls it.

Never restarted in place: a dead governor is replaced by a new owner of the ledger. It knows nothing
of the API, so its process starts without the SDK.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_judge.cluster import answer_promptly, our_error
from ray_judge.config import RunConfig
from ray_judge.errors import EscalationError, RayJudgeError
from ray_judge.escalation.books.journal import load_journal
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.books.places import journal_storage, ledger_name, ledger_storage
from ray_judge.escalation.online.governor import Governor, Need, Permit
from ray_judge.escalation.online.limiter import Feedback, Limiter
from ray_judge.escalation.shares_actor import FairPortion


class _WallClock:
    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class GovernorActor:
    """Owns the ledger and the rate limits of a run."""

    def __init__(self, config: RunConfig, *, alone: bool = False) -> None:
        """Remember the configuration; `open` does the work, and can say what went wrong.

        `alone`: there is no other run on this cluster that could use the same rate limits.
        """
        answer_promptly()
        self._config = config
        self._alone = alone
        self._portion: FairPortion | None = None

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
        if not self._alone:
            # Of a driver and its run directory there is one governor at a time.
            run = f"{ray.get_runtime_context().get_job_id()} {self._config.output}"
            self._portion = FairPortion(strong, run, self._governor)
            await self._portion.begin()
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
        if self._portion is not None:
            await self._portion.end()
        await self._governor.close()
        return self._governor.state()


class FarTreasurer:
    """The governor actor, as an asker calls it."""

    def __init__(self, governor: Any) -> None:
        self._governor = governor

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        """See `Governor.acquire`."""
        permit: Permit = await self._call(self._governor.acquire.remote(actor, needs))
        return permit

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[tuple[str, int]],
        feedback: Sequence[Feedback],
    ) -> None:
        """See `Governor.settle`."""
        await self._call(self._governor.settle.remote(actor, items, released, feedback))

    async def pause(self, reason: str) -> None:
        """See `Governor.pause`."""
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


class AskerDied(EscalationError):
    """An asker's process is gone; what it had in hand is for its successor."""
