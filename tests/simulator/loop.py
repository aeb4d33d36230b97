"""An asyncio event loop in which time, order and death are data.

Callbacks belong to simulated *processes* (a context variable travels with every task). Whenever
several are ready, the seed says which runs. When none is, time jumps to the next timer. A killed
process never runs again: no `finally`, no `except`, as after SIGKILL.

Blocking work that the real code hands to a thread (`asyncio.to_thread`) runs here as a *frame*:
a plain call during which the loop goes on beneath it whenever the work touches the disk. So other
processes get in between any two disk operations of a commit, without threads and reproducibly.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
from asyncio import Handle
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any


class Killed(BaseException):
    """Unwinds a frame whose process is dead. No code under test may catch it."""


class Deadlock(Exception):
    """Nothing is ready and nothing is due, but the night is not over."""


@dataclass(eq=False)
class Process:
    """Something that can be killed or paused on its own. A driver has no parent."""

    name: str
    run: str = ""
    parent: Process | None = None
    children: list[Process] = field(default_factory=list)
    alive: bool = True
    paused_until: float = 0.0
    doomed_at: float | None = None
    """When it died, or could write its journal no more: what it had in hand may be lost."""
    slow_s: float = 0.0
    """How much slowness the disk had shown until then."""
    at_death: list[Callable[[], None]] = field(default_factory=list)


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
"""Whose code runs now."""


def resolve(future: asyncio.Future[Any], what: Any) -> None:
    """Give a result, or raise an error, to whoever waits, if anybody still does."""
    if not future.done():
        if isinstance(what, BaseException):
            future.set_exception(what)
        else:
            future.set_result(what)


class SimLoop(asyncio.AbstractEventLoop):
    """The loop. `on_step` runs before every callback: faults and checks hang there."""

    def __init__(self, rng: random.Random, *, shuffled: bool) -> None:
        """`shuffled`: callbacks of one process may overtake each other, too."""
        self.now = 0.0
        self.steps = 0
        self.over = False
        self.on_step: Callable[[], None] = lambda: None
        self._rng = rng
        self._shuffled = shuffled
        self._ready: list[Any] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []

    # --- what asyncio asks of a loop ---

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep quiet: what matters is checked, and garbage is collected at any time."""

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: Any, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(callback, args, self, context)
        self._push(when, handle)
        return handle

    def call_later(self, delay: Any, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run `func` as a frame; see the module."""
        future = self.create_future()

        def frame() -> None:
            with contextlib.suppress(Killed):
                try:
                    what = func(*args)
                except Exception as error:
                    what = error
                resolve(future, what)

        self.call_soon(frame)
        return future

    # --- running ---

    def spawn(self, process: Process, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that belongs to `process`."""
        return self.create_task(coro, context=self.context_of(process))

    def context_of(self, process: Process) -> contextvars.Context:
        """A context in which everything belongs to `process`."""
        context = contextvars.Context()
        context.run(PROCESS.set, process)
        return context

    def run(self) -> None:
        """Run callbacks until the night is over. Raises Deadlock, and what `on_step` raises."""
        asyncio.events._set_running_loop(self)
        try:
            while not self.over:
                self._step()
        finally:
            asyncio.events._set_running_loop(None)

    def close(self) -> None:
        """Throw away what still waits: what it does to end well has no effect any more."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            with contextlib.suppress(BaseException):
                coroutine.close()

    def pass_time(self, seconds: float) -> None:
        """In a frame: let everything else go on for so long. In a task: the process just works.

        Raises Killed when the process died meanwhile.
        """
        process = PROCESS.get()
        if asyncio.current_task(self) is None:
            woken: list[bool] = []
            self.call_later(seconds, woken.append, True)
            while not woken and process.alive and not self.over:
                self._step()
        if not process.alive or self.over:
            raise Killed

    def _push(self, when: float, handle: Handle) -> None:
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))

    def _step(self) -> None:
        while not self._ready:
            if not self._timers:
                raise Deadlock
            when, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                self.now = max(self.now, when)
                self._ready.append(handle)
                while self._timers and self._timers[0][0] <= self.now:
                    self._ready.append(heapq.heappop(self._timers)[2])
        handle = self._pick()
        process = handle._context.get(PROCESS)
        if handle.cancelled() or (process is not None and not process.alive):
            return
        if process is not None and process.paused_until > self.now:
            self._push(process.paused_until, handle)
            return
        self.steps += 1
        self.on_step()
        if process is None or process.alive:
            handle._context.run(handle._callback, *handle._args)

    def _pick(self) -> Any:
        ready = self._ready
        if len(ready) == 1:
            return ready.pop()
        at = int(self._rng.random() * len(ready))
        if not self._shuffled:  # the oldest of the same process
            process = ready[at]._context.get(PROCESS)
            at = next(i for i, other in enumerate(ready) if other._context.get(PROCESS) is process)
        return ready.pop(at)
