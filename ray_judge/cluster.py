"""Ray, for plain work: connect, call functions on many workers, and find our errors in its own."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import auto_init_hook
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import find_bootstrap_address
from ray.exceptions import RayError, RayTaskError
from ray.job_config import JobConfig

from ray_judge.errors import ConfigError, RayJudgeError, brief

IN_FLIGHT = 32
ANSWERS_WITHIN_S = 8.0
SHOW_ALL = "RAY_JUDGE_WORKER_LOGS"
"""Where it is set, Ray and its workers write to the terminal, too."""


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
    # Ray's core says at level "error" what is none, and what is one arrives as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not os.environ.get(SHOW_ALL):  # it tells on stdout, where our summary goes, who died
        ray._private.worker.listen_error_messages = lambda *_: None
    # What Ray's and vLLM's processes start would look for modules in the working directory first.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    _connect(os.environ.get("RAY_ADDRESS") or None)
    _hear_again(told)
    # A thread that is left when a run is told to stop would start another Ray in its place.
    auto_init_hook.enable_auto_connect = False
    yield
    # Where it fails, threads of Ray Data are still at work. If Ray were shut down under them, its
    # core would end this process without a word. What this process started ends with it, anyway.
    auto_init_hook.enable_auto_connect = True
    ray.shutdown()
    _hear_again(told)


def _hear_again(told: Any) -> None:
    """Bring back what SIGTERM did: Ray puts its own in its place, and nothing when it ends."""
    if callable(told) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told)


def check_cluster() -> None:
    """Raise where the cluster that Ray is told of does not answer.

    Ray itself tries for a quarter of an hour, and says nothing.
    """
    address, whence = _address()
    if address != "local" and not ray.is_initialized():
        _check_answers(address, whence)


def is_own_machine() -> bool:
    """Whether the work will be done by a Ray that this process starts: here, as things are here."""
    return not ray.is_initialized() and _address()[0] == "local"


def _address() -> tuple[str, str]:
    """Where the cluster is, and who says so."""
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        return address, "RAY_ADDRESS"
    return find_bootstrap_address(None) or "local", "`ray start`; see `ray stop`"


def _check_answers(address: str, whence: str) -> None:
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        said = "is to be like host:6379, where the cluster's head listens (http:// is for `ray job"
        said += " submit`, and Ray Data cannot work through ray://)"
        raise ConfigError(f"{whence} {said}", address=address)
    said = f"no Ray cluster answers at this address (of {whence})"
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN_S).close()
        with init_grpc_channel(address) as channel:
            grpc.channel_ready_future(channel).result(ANSWERS_WITHIN_S)
    except (OSError, OverflowError) as error:
        raise RayJudgeError(f"{said}: {error}", address=address) from None
    except grpc.FutureTimeoutError:
        raise RayJudgeError(f"{said}: something else listens there", address=address) from None


class _Job(JobConfig):
    """A job whose workers look for modules where they are installed, and nowhere before.

    Ray puts the driver's working directory and its script's before all else: there a `random.py`
    or an `openai.py` of the user's would be imported in place of the real one.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        home, script = Path(__file__).parents[1], Path(sys.argv[0]).resolve().parent
        own = super()._runtime_env_has_working_dir()  # type: ignore[no-untyped-call]
        return bool(own or home not in (Path.cwd(), script))


def _connect(address: str | None, tries: int = 2) -> None:
    """Start or join Ray. A start that takes over 30 s, as on a busy machine, is tried once more."""
    try:
        with _without_stderr():
            ray.init(
                address=address,
                job_config=_Job(),
                include_dashboard=False,
                log_to_driver=bool(os.environ.get(SHOW_ALL)),
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


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's core greets with a line about its log level that nothing turns off."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
