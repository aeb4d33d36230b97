"""Runs that share a ledger or a journal ask one after the other, while their judges go on.

The ledger has one owner: a second one that came while the first is at work would fence it, which is
safe and of no use to either. And what another run asks just now is not in the journal yet, so it
would be paid for twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.errors import PausedError, RunLockedError
from ray_judge.storage.local import open_storage
from ray_judge.storage.lock import locked

LOCK = "asking.lock"
POLL_S = 2.0


class Turn:
    """One run's turn at what it shares with others. A run that shares nothing always has it."""

    def __init__(
        self,
        config: RunConfig,
        progress: Callable[[Mapping[str, Any]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Hold nothing yet. `progress` hears for whom the run waits."""
        self._config = config
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self._held: ExitStack | None = None

    def take(self, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Wait for the turn; give whether other runs may have asked something until just now.

        `meanwhile` is called now and then while waiting, and what it raises ends it. Raises
        PausedError when that takes longer than `strong.give_up_after_s`, and StorageError.
        """
        if self._held is not None:
            return False
        strong = self._config.strong
        shared = [open_storage(strong.books).uri] if strong.books else []
        until = self._clock() + strong.give_up_after_s
        with ExitStack() as held:
            for uri in shared:
                self._wait_for(uri, held, until, meanwhile)
            self._held = held.pop_all()
        return bool(shared)

    def _wait_for(
        self, uri: str, held: ExitStack, until: float, meanwhile: Callable[[], object]
    ) -> None:
        while True:
            lock = locked(uri, LOCK, "set of books", self._config.output)
            try:
                held.enter_context(lock)
            except RunLockedError as error:
                if self._clock() >= until:
                    raise PausedError(
                        f"{error.message}, for longer than strong.give_up_after_s: everything is "
                        "kept, run again later",
                        shared=uri,
                    ) from None
                self._progress({"waits": error.message})
                self._sleep(POLL_S)
                meanwhile()
            else:
                return

    def give_back(self) -> None:
        """Let the next run ask."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
