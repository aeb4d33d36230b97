"""An event loop without waiting: time jumps to whatever is due next."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Skip(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("deadlock: everyone waits and nothing is due")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is data. Nothing in it may use a thread or a socket."""

    def __init__(self) -> None:
        self.skip = _Skip()
        super().__init__(self.skip)

    def time(self) -> float:
        return self.skip.now


def virtual(scenario: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A coroutine function as a plain one, which is over in no time."""

    @functools.wraps(scenario)
    def run(*args: Any, **named: Any) -> Any:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(scenario(*args, **named))

    return run
