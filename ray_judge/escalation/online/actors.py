"""Phase B's processes as Ray actors. The only module of phase B that imports Ray.

Never restarted in place: a dead governor is replaced by a new owner of the books, a dead asker's
open leases count as spent, and what it had not answered is asked by its successor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_judge.cluster import answer_promptly, our_error
from ray_judge.config import RunConfig
from ray_judge.errors import RayJudgeError
from ray_judge.escalation.books.books import Books, Claim
from ray_judge.escalation.books.journal import InVain
from ray_judge.escalation.books.ledger import LeaseSlot
from ray_judge.escalation.online.limiter import Feedback
from ray_judge.escalation.online.permits import Need, Permit
from ray_judge.escalation.online.servers import AskerServer, GovernorServer, Secret
from ray_judge.escalation.processes import ProcessDied
from ray_judge.escalation.questions import Question
from ray_judge.records import Outcome


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class GovernorActor(GovernorServer):
    """See `GovernorServer`."""

    def __init__(self, config: RunConfig, books: Books) -> None:
        answer_promptly()
        super().__init__(config, books)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class AskerActor(AskerServer):
    """See `AskerServer`."""

    def __init__(
        self, config: RunConfig, books: Books, governor: Any, key: Secret, in_flight: int
    ) -> None:
        super().__init__(config, books, RemoteGovernor(governor), key, in_flight)
        answer_promptly()


class RayProcesses:
    """Starts phase B's processes in the cluster; see `courier.Processes`."""

    def __init__(self, config: RunConfig, books: Books, key: str) -> None:
        self._config, self._books, self._key = config, books, Secret(key)

    async def governor(self) -> RemoteGovernor:
        actor: Any = GovernorActor
        return RemoteGovernor(actor.remote(self._config, self._books))

    async def asker(self, governor: RemoteGovernor, in_flight: int) -> RemoteAsker:
        kind: Any = AskerActor
        actor = kind.remote(self._config, self._books, governor.actor, self._key, in_flight)
        asker = RemoteAsker(actor)
        await asker.open()
        return asker


class _Remote:
    """An actor whose death and whose errors arrive as ours."""

    kind = "process"

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def call(self, method: str, *args: Any) -> Any:
        try:
            value = await getattr(self.actor, method).remote(*args)
        except RayTaskError as error:
            raise our_error(error) from None
        except RayActorError:
            raise ProcessDied(f"the {self.kind} died") from None
        if isinstance(value, RayJudgeError):
            raise value
        return value

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


class RemoteGovernor(_Remote):
    """The governor's actor, as the courier and the askers call it."""

    kind = "governor"

    async def open(self) -> Claim:
        claim: Claim = await self.call("open")
        return claim

    async def acquire(self, actor: str, needs: Sequence[Need]) -> Permit:
        permit: Permit = await self.call("acquire", actor, needs)
        return permit

    async def settle(
        self,
        actor: str,
        items: Sequence[tuple[str, int, Decimal]],
        released: Sequence[LeaseSlot],
        feedback: Sequence[Feedback],
    ) -> None:
        await self.call("settle", actor, items, released, feedback)

    async def pause(self, reason: str) -> None:
        await self.call("pause", reason)

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = await self.call("state")
        return state

    async def close(self) -> None:
        await self.call("close")


class RemoteAsker(_Remote):
    """An asker's actor, as the courier calls it."""

    kind = "asker"

    async def open(self) -> None:
        await self.call("open")

    async def ask(
        self, questions: Sequence[Question], in_vain: Mapping[str, InVain]
    ) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = await self.call("ask", questions, in_vain)
        return outcomes

    async def close(self) -> None:
        await self.call("close")
