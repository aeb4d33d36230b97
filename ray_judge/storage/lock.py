"""A lock that a killed process does not leave behind, on a disk or on an object store.

Locally the kernel holds the lock and drops it with the process, however it dies. On an object store
it is an object renewed by its owner. Either way it is for comfort: two who believe to hold it are
told apart by the ledger's fencing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_judge.errors import AlreadyExists, RunLockedError, StorageError
from ray_judge.storage.local import Missing, Storage, open_storage

RENEW_S = 20.0
STALE_S = 120.0
"""On an object store: a lock whose owner has not renewed it for so long is dead."""

log = logging.getLogger(__name__)


@contextmanager
def locked(uri: str, name: str, place: str, run: str | None = None) -> Iterator[None]:
    """Hold the lock `<uri>/<name>`, or raise RunLockedError naming who does.

    `place` says in errors what is locked, as in "run directory"; `run` is added to the name of its
    owner, where that is not clear from the place.
    """
    me = f"pid {os.getpid()} on {socket.gethostname()}" + (f" for {run}" if run else "")
    hold = _on_store if "://" in uri else _on_disk
    with hold(uri, name, place, me):
        yield


@contextmanager
def _on_disk(uri: str, name: str, place: str, me: str) -> Iterator[None]:
    Path(uri).mkdir(parents=True, exist_ok=True)
    handle = os.open(Path(uri) / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 4096).decode(errors="replace").strip()
        os.close(handle)
        raise RunLockedError(f"another process works in this {place} ({owner})", run=uri) from None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{me}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def _on_store(uri: str, name: str, place: str, me: str) -> Iterator[None]:
    """Hold the newest `<name>/<number>`: creating a number is exclusive, so one process wins.

    The owner says every few seconds that it lives; whoever finds the newest one silent for
    `STALE_S`, by its own clock, takes the next number.
    """
    storage = open_storage(uri)
    path = f"{name}/{_free_number(storage, name, place):08d}"
    try:
        storage.create(path, _said(me))
    except AlreadyExists:
        raise RunLockedError(f"another process took this {place} just now", run=uri) from None
    over = threading.Event()
    alive = threading.Thread(target=_renew, args=(storage, path, me, over), daemon=True)
    alive.start()
    try:
        yield
    finally:
        over.set()
        alive.join()
        storage.delete(path)


def _free_number(storage: Storage, name: str, place: str) -> int:
    """Number of the next lock. Raises RunLockedError while the newest one's owner lives."""
    names = storage.list(name)
    if not names:
        return 1
    try:
        held = json.loads(storage.read(names[-1]))
    except Missing:  # its owner let go just now
        held = {"at": 0.0}
    if time.time() - held["at"] < STALE_S:
        raise RunLockedError(
            f"another process works in this {place} ({held['owner']}); a dead one's lock is free "
            f"after {STALE_S:.0f} s",
            run=storage.uri,
        )
    for old in names[:-1]:
        storage.delete(old)
    return int(names[-1].rpartition("/")[2]) + 1


def _renew(storage: Storage, path: str, me: str, over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        try:
            storage.write(path, _said(me))
        except StorageError as error:
            log.warning("the lock %s could not be renewed: %s", path, error)


def _said(me: str) -> bytes:
    return json.dumps({"owner": me, "at": time.time()}).encode()
