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
import contextvars
import heapq
import inspect
import random
from collections.abc import Callable, Coroutine
from typing import Any

Context = contextvars.Context


class Killed(BaseException):
    """Unwinds a frame whose process is dead. No code under test may catch it."""


class Deadlock(Exception):
    """Nothing is ready and nothing is due, but the night is not over."""


class Process:
    """Something that can be killed or paused on its own."""

    def __init__(self, name: str, run: str = "") -> None:
        """Alive, and at work for `run`."""
        self.name = name
        self.run = run
        self.driver: Process = self
        self.alive = True
        self.paused_until = 0.0
        self.doomed_at: float | None = None
        """When it died, or could write its journal no more: what it had in hand may be lost."""
        self.slow_s = 0.0
        """How much slowness the disk had shown until then."""
        self.at_death: list[Callable[[], None]] = []


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class Handle:
    """A callback that is ready, or due."""

    __slots__ = ("args", "callback", "context", "live")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context):
        self.callback, self.args, self.context = callback, args, context
        self.live = True

    def cancel(self) -> None:
        """Do not run it."""
        self.live = False

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return not self.live


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
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []

    # --- what asyncio asks of a loop ---

    def time(self) -> float:
        """Seconds since the night began."""
        return self.now

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Always, as far as anyone can ask."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep quiet: what matters is checked, and garbage is collected at any time."""

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        """See asyncio."""
        handle = Handle(callback, args, _given(context))
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        """See asyncio."""
        handle = Handle(callback, args, _given(context))
        self._push(when, handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        """See asyncio."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """See asyncio."""
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run `func` as a frame; see the module."""
        future = self.create_future()

        def frame() -> None:
            try:
                result = func(*args)
            except Killed:
                return
            except Exception as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_soon(frame)
        return future

    # --- running ---

    def spawn(self, process: Process, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that belongs to `process`."""
        return self.create_task(coro, context=self.context_of(process))

    def context_of(self, process: Process) -> Context:
        """A context in which everything belongs to `process`."""
        context = Context()
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
            for task in self._tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine: Any = task.get_coro()
                if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
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
            if handle.live:
                self.now = max(self.now, when)
                self._ready.append(handle)
                while self._timers and self._timers[0][0] <= self.now:
                    self._ready.append(heapq.heappop(self._timers)[2])
        handle = self._pick()
        process = handle.context.get(PROCESS)
        if not handle.live or (process is not None and not process.alive):
            return
        if process is not None and process.paused_until > self.now:
            self._push(process.paused_until, handle)
            return
        self.steps += 1
        self.on_step()
        if process is None or process.alive:
            handle.context.run(handle.callback, *handle.args)

    def _pick(self) -> Handle:
        ready = self._ready
        if len(ready) == 1:
            return ready.pop()
        at = int(self._rng.random() * len(ready))
        if not self._shuffled:  # the oldest of the same process
            process = ready[at].context.get(PROCESS)
            at = next(i for i, h in enumerate(ready) if h.context.get(PROCESS) is process)
        return ready.pop(at)


def _given(context: Context | None) -> Context:
    """An empty context is false, and must not be taken for none."""
    return contextvars.copy_context() if context is None else context
