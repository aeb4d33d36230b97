"""A lock that a killed process does not leave behind, on a disk or on an object store.

On a disk the kernel drops the lock with the process. On an object store it is an object that its
owner renews by conditional puts: an owner that overslept can change nothing of another's. Either
way two who believe that they hold the lock are told apart by the ledger's fencing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ray_judge.errors import AlreadyExists, RunLockedError, StorageError
from ray_judge.storage.local import Missing, local_errors, make_folder, open_storage
from ray_judge.storage.object_store import ObjectStorage, Version

RENEW_S = 10.0
"""On an object store: how often an owner renews its lock."""
STALE_S = 120.0
"""A lock that has not been renewed for so long, by the clock of who waits for it, is free."""
POLL_S = 1.0

log = logging.getLogger(__name__)


@contextmanager
def locked(uri: str, name: str, place: str, run: str | None = None) -> Iterator[None]:
    """Hold the lock `<uri>/<name>`, or raise RunLockedError naming who does.

    `place` says in errors what is locked, as in "run directory"; `run` is added to the owner's
    name. On an object store it takes up to RENEW_S to learn that the owner is alive, and STALE_S
    to learn that it is dead.
    """
    me = f"pid {os.getpid()} on {socket.gethostname()}" + (f" for {run}" if run else "")
    storage = open_storage(uri)
    if isinstance(storage, ObjectStorage):
        with StoreLock(storage, name, place, me).held():
            yield
        return
    path = Path(storage.uri) / name
    lock = FileLock(path, blocking=False)
    with local_errors(str(path)):
        make_folder(storage.uri)
    try:
        lock.acquire()
    except Timeout:
        raise _held_by(path.read_text(errors="replace").strip(), place, uri) from None
    except OSError as error:
        said = f"the file system refused a lock: {error.strerror}"
        raise StorageError(said, path=path) from None
    try:
        path.write_text(f"{me}\n")
        yield
    finally:
        lock.release()


def _held_by(owner: str, place: str, uri: str) -> RunLockedError:
    return RunLockedError(f"another process works in this {place} ({owner})", run=uri)


class StoreLock:
    """A lock on an object store; owner null is free. Nobody compares clocks: who waits sees that
    the object changes, or that it does not.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        name: str,
        place: str,
        me: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage, self._name, self._place, self._me = storage, name, place, me
        self._clock, self._sleep = clock, sleep
        self._token = secrets.token_hex(8)
        self._renewed = 0
        self._version: Version | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        self.take()
        over = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(over,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            self.release()

    def take(self) -> None:
        """Take the lock if it is free or its owner dead, else raise RunLockedError."""
        seen, since = None, 0.0
        while True:
            try:
                held, version = self._storage.read_version(self._name)
                owner = json.loads(held)["owner"]
            except Missing:
                owner, version = None, None
            if owner is None or (version == seen and self._clock() - since >= STALE_S):
                break
            if seen is None:
                seen, since = version, self._clock()
                log.warning(
                    "the lock of the %s (%s) is free within %g s unless it is renewed",
                    self._place, owner, STALE_S,
                )  # fmt: skip
            elif version != seen:
                raise _held_by(owner, self._place, self._storage.uri)
            self._sleep(POLL_S)
        self._version = version
        try:
            self.renew()
        except AlreadyExists:
            raise _held_by("since just now", self._place, self._storage.uri) from None

    def renew(self) -> None:
        """Write the lock anew. Raises AlreadyExists when another owner has written it."""
        self._put(self._me)

    def release(self) -> None:
        with contextlib.suppress(StorageError):
            self._put(None)

    def _put(self, owner: str | None) -> None:
        self._renewed += 1
        data = json.dumps({"owner": owner, "token": self._token, "renewed": self._renewed}).encode()
        try:
            self._version = self._storage.replace(self._name, data, self._version)
        except AlreadyExists:  # perhaps by an earlier put of our own whose answer was lost
            held, version = self._storage.read_version(self._name)
            if json.loads(held)["token"] != self._token:
                raise
            self._version = self._storage.replace(self._name, data, version)

    def _renew_until(self, over: threading.Event) -> None:
        while not over.wait(RENEW_S):
            try:
                self.renew()
            except AlreadyExists:
                log.warning("another process has taken over the lock %s", self._name)
                return
            except StorageError as error:
                log.warning("the lock %s could not be renewed: %s", self._name, error)
