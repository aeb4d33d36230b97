"""Phase B's processes as Ray actors. The only module of phase B that imports Ray.

Never restarted in place: a dead governor is replaced by a new owner of the books, a dead asker's
open leases count as spent, and what it had not answered is asked by its successor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import ray
from pydantic import SecretStr
from ray.exceptions import RayActorError, RayTaskError

from ray_judge.cluster import answer_promptly, our_error
from ray_judge.config import RunConfig
from ray_judge.errors import RayJudgeError
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.online.servers import AskerServer, GovernorServer
from ray_judge.escalation.processes import ProcessDied


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
        self, config: RunConfig, books: Books, governor: Any, key: SecretStr, in_flight: int
    ) -> None:
        port: Any = Remote("governor", governor)
        super().__init__(config, books, port, key, in_flight)
        answer_promptly()


class RayProcesses:
    """Starts phase B's processes in the cluster; see `courier.Processes`."""

    def __init__(self, config: RunConfig, books: Books, key: str) -> None:
        self._config, self._books, self._key = config, books, SecretStr(key)

    async def governor(self) -> Any:
        actor: Any = GovernorActor
        return Remote("governor", actor.remote(self._config, self._books))

    async def asker(self, governor: Any, in_flight: int) -> Any:
        actor: Any = AskerActor
        arguments = self._config, self._books, governor.actor, self._key, in_flight
        asker = Remote("asker", actor.remote(*arguments))
        await asker.open()
        return asker


class Remote:
    """A server in an actor, called as if it were here; its errors and its death arrive as ours."""

    def __init__(self, kind: str, actor: Any) -> None:
        self.kind, self.actor = kind, actor

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return partial(self._call, method)

    async def _call(self, method: str, *args: Any) -> Any:
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
