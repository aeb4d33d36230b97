"""Ray, for plain work: connect, call functions on many workers, and find our errors in its own."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ray_judge.errors import RayJudgeError, brief

IN_FLIGHT = 32
SHOW_ALL = "RAY_JUDGE_WORKER_LOGS"
"""Where it is set, Ray and its workers may write to the terminal, too."""


@contextmanager
def connected() -> Iterator[None]:
    """Work on the cluster that Ray is told of (RAY_ADDRESS, a submitted job), or on this machine.

    A cluster of our own ends with the run; one that was there stays.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as quiet:
        if not os.environ.get(SHOW_ALL):
            quiet.enter_context(_silenced())
        _connect(os.environ.get("RAY_ADDRESS") or None)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep Ray from writing to the terminal: what befell a worker on stdout, where our summary
    goes, and choices of its own on stderr (ray-project/ray#53727). What is our affair is raised.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray._private.worker.listen_error_messages = lambda *_: None
    # That there is such a level is told on stderr, too, while Ray starts.
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _connect(address: str | None, tries: int = 2) -> None:
    """Start or join Ray. A start that takes over 30 s, as on a busy machine, is tried once more."""
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=bool(os.environ.get(SHOW_ALL)),
            logging_level=logging.ERROR,
        )
    except Exception as error:  # noqa: BLE001  what Ray raises for "too slow" is a bare one
        ray.shutdown()
        if address or tries == 1:
            raise RayJudgeError(f"Ray did not start: {str(error)[:500]}", address=address) from None
        _connect(address, tries - 1)


def is_own_machine() -> bool:
    """Whether the work will be done by a Ray that this process starts: here, as things are here."""
    return not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))


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
    # The first exception of the traceback that Ray gives as text is where it began.
    named = re.search(r"^[\w.]+(?:Error|Exception)\b.*", str(error), re.MULTILINE)
    return RayJudgeError(f"a worker failed: {brief(named[0] if named else str(error))}")
