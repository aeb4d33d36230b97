"""Who may use how much of a provider's limits, as a Ray actor, and how a governor keeps to it.

All runs of a cluster that ask the same model with the same key find one `RateShares` by its name.
It knows nothing of money, keys or questions, so runs share nothing else: whatever becomes of it or
of another run, a governor goes on with the part that it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayActorError

from ray_judge import __version__
from ray_judge.config import StrongConfig
from ray_judge.escalation.online.governor import Governor
from ray_judge.escalation.shares import SILENT_S, Shares

NAMESPACE = "ray_judge"
EVERY_S = 1.0
"""Between two reports."""
SOON_S = 0.25
"""The same for a run that holds nothing: the others give something up within `EVERY_S`; and for
one that lost the registry: the next one wants to know what it holds."""
FIRST_S = 2.0
"""How long a run waits for its first part; after that it begins, and learns it on the way."""
ANSWER_S = 5.0
LEAVE_S = 1.0

log = logging.getLogger(__name__)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class RateShares:
    """One `Shares` for all runs that ask the same provider. It ends with the run that made it."""

    def __init__(self, maker: str, holds: float) -> None:
        """Whoever made it is known, with what it holds: a newcomer may be heard before it."""
        self._shares = Shares()
        if holds > 0:
            self.report(maker, holds, holds)

    def report(self, run: str, wants: float, holds: float) -> float:
        """See `Shares.report`."""
        return self._shares.report(run, wants, holds, time.monotonic())

    def leave(self, run: str) -> None:
        """See `Shares.leave`."""
        self._shares.leave(run)


def registry_name(strong: StrongConfig) -> str:
    """One name for all runs under the same limits: same server, model and name of the key.

    Versions of this package do not meet: they may not understand each other.
    """
    limits = [strong.base_url, strong.model, strong.api_key_env, __version__]
    return f"rates-{hashlib.sha256(json.dumps(limits).encode()).hexdigest()[:16]}"


class FairPortion:
    """Keeps a governor to the part of the limits that its run is granted."""

    def __init__(self, strong: StrongConfig, run: str, governor: Governor) -> None:
        """`run` is a name that no other run on the cluster has, and the next session has again."""
        self._name = registry_name(strong)
        self._run = run
        self._governor = governor
        self._registry: Any = None
        self._made: Any = None
        """Holds the registry alive, if this run made it."""
        self._holds = 1.0
        self._heard_at = time.monotonic()
        self._complained = False
        self._keeping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Begin with what other runs leave, or at once with everything where nobody is.

        Goes on reporting in the background until `end`.
        """
        after_s = 0.0
        try:
            self._registry = await asyncio.to_thread(self._find)
            if self._registry is not None:
                await self._report(0.0, FIRST_S)
                after_s = self._pause_s()
        except Exception as error:
            self._lost(error)
        self._keeping = asyncio.ensure_future(self._keep(after_s))

    async def end(self) -> None:
        """Leave what was held to the others."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._registry is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._registry.leave.remote(self._run), LEAVE_S)

    async def _keep(self, after_s: float) -> None:
        while True:
            await asyncio.sleep(after_s)
            try:
                if self._registry is None:
                    self._registry = await asyncio.to_thread(self._find_or_make)
                await self._report(self._holds, ANSWER_S)
            except Exception as error:
                self._lost(error)
            after_s = self._pause_s()

    async def _report(self, holds: float, within_s: float) -> None:
        wants = self._governor.wants()
        answer = self._registry.report.remote(self._run, wants, holds)
        self._use(await asyncio.wait_for(answer, within_s))
        self._heard_at = time.monotonic()

    def _use(self, portion: float) -> None:
        if portion != self._holds:
            self._holds = portion
            self._governor.set_portion(portion)

    def _pause_s(self) -> float:
        return EVERY_S if self._holds > 0 and self._registry is not None else SOON_S

    def _lost(self, error: Exception) -> None:
        """Look for the registry anew. That it ended with the run that made it is no news."""
        self._registry = None
        if self._holds == 0 and time.monotonic() - self._heard_at > SILENT_S:
            self._use(1.0)  # nobody may wait for ever: 429 will tell
        if not isinstance(error, RayActorError) and not self._complained:
            self._complained = True
            log.warning("rates are not shared with other runs at the moment: %r", error)

    def _find(self) -> Any:
        try:
            return ray.get_actor(self._name, namespace=NAMESPACE)
        except ValueError:
            return None

    def _find_or_make(self) -> Any:
        found = self._find()
        if found is None:
            actor: Any = RateShares
            # Not detached: nothing is left behind, whoever dies.
            found = self._made = actor.options(
                name=self._name,
                namespace=NAMESPACE,
                lifetime="non_detached",
                get_if_exists=True,
            ).remote(self._run, self._holds)
        return found
