"""Ray, for plain work: connect, call functions on many workers, and find our errors in its own."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ray_judge.errors import RayJudgeError

IN_FLIGHT = 32


@contextmanager
def connected() -> Iterator[None]:
    """Work on the cluster that Ray is told of (RAY_ADDRESS, a submitted job), or on this machine.

    A cluster of our own ends with the run; one that was there stays.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    told = signal.getsignal(signal.SIGTERM)
    _connect(os.environ.get("RAY_ADDRESS") or None)
    if callable(told) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told)  # Ray has put its own in its place
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None, tries: int = 2) -> None:
    """Start or join Ray. A start that takes over 30 s, as on a busy machine, is tried once more."""
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=bool(os.environ.get("RAY_JUDGE_WORKER_LOGS")),
            logging_level=logging.ERROR,
        )
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or Ray's own answer to SIGTERM ...
        signal.alarm(0)  # ... before which it sets an alarm that aborts this process
        raise KeyboardInterrupt from None
    except Exception as error:  # noqa: BLE001  what Ray raises for "too slow" is a bare one
        ray.shutdown()
        if address or tries == 1:
            raise RayJudgeError(f"Ray did not start: {str(error)[:500]}", address=address) from None
        _connect(address, tries - 1)


def answer_promptly() -> None:
    """Make this worker quick to react: what has arrived and is not yet saved, a crash can lose.

    Ray's workers have a low priority (nice 15): the normal one is set where the system allows it.
    Imported modules leave the garbage collector's rounds, which stop all else for 0.1 s.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)


def call_each(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function on the cluster with each tuple of arguments; give results as they come.

    The first RayJudgeError of a call is raised, and an error for a worker that died too often.
    """
    waiting = iter(calls)
    running: list[Any] = []
    try:
        while True:
            left = islice(waiting, IN_FLIGHT - len(running))
            running += [_call.remote(function, arguments) for arguments in left]
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            value = ray.get(done[0])
            if isinstance(value, RayJudgeError):
                raise value
            yield value
    except RayError as error:
        raise our_error(error) from None


@ray.remote(num_cpus=0.5, max_retries=3)
def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except RayJudgeError as error:
        return error  # a value crosses processes unharmed


def our_error(error: RayError) -> RayJudgeError:
    """Find our own error inside Ray's wrapping, or say what happened in a worker."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RayJudgeError) and not isinstance(cause, RayTaskError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return RayJudgeError(f"a worker failed: {str(error)[-2000:]}")
