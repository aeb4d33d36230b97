"""Storage on a local disk, and an object store's in memory; and the locks of both."""

import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest

from ray_judge.errors import AlreadyExists, ConfigError, RunLockedError, StorageError
from ray_judge.storage import lock as locks
from ray_judge.storage.local import LocalStorage, Storage, open_storage
from ray_judge.storage.lock import StoreLock, locked
from ray_judge.storage.object_store import ObjectStorage

from .storage_promises import StoragePromises


class TestStorage(StoragePromises):
    @pytest.fixture(params=["local", "memory"])
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
        return open_storage(str(tmp_path)) if request.param == "local" else in_memory()


def in_memory() -> ObjectStorage:
    pytest.importorskip("obstore")
    return ObjectStorage("memory:///")


def test_a_disk_pickles_and_lists_no_temporary_names(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(open_storage(f"file://{tmp_path}")))
    with storage.write_stream("d/x") as file:
        file.write(b"1")
        file.flush()
        assert storage.list("") == []
        assert len(os.listdir(tmp_path / "d")) == 1
    assert os.listdir(tmp_path / "d") == ["x"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, log = LocalStorage(str(tmp_path)), LocalStorage(str(tmp_path)).log("x.log")
    storage.write("f", b"old")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
        log.append(b"lost?")
        for refused in (log.sync, lambda: storage.write("f", b"new")):
            with pytest.raises(StorageError, match="No space left"):
                refused()
    assert storage.read("f") == b"old"
    log.append(b"later")  # a later success would prove nothing of what was lost
    with pytest.raises(StorageError):
        log.sync()
    log.close()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(StorageError):
        open_storage(str(tmp_path)).write(path, b"")


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3:///x", ""])
def test_unknown_places_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_storage(uri)


def test_a_segment_whose_confirmation_was_lost_is_not_an_error() -> None:
    storage = in_memory()
    log = storage.log("w.log")
    storage.create("w.log.00000001", b"same")  # the first attempt, of which nobody heard
    log.append(b"same")
    log.sync()
    storage.create("w.log.00000002", b"another writer's")
    log.append(b"ours")
    with pytest.raises(AlreadyExists):
        log.sync()


def test_a_local_lock_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(str(tmp_path / "run"), "lock", "run directory"):
        with (
            pytest.raises(RunLockedError, match=f"run directory .pid {os.getpid()} on") as caught,
            locked(str(tmp_path / "run"), "lock", "run directory"),
        ):
            pass
        assert caught.value.where == {"run": str(tmp_path / "run")}
        raise KeyError
    with locked(str(tmp_path / "run"), "lock", "run directory"):
        pass


class Waiting:
    """A process that wants a lock. Its clock moves when it sleeps; then others may do something."""

    def __init__(self, storage: ObjectStorage, me: str, *meanwhile: object) -> None:
        self.now, self.slept = 1e6, 0.0
        self.meanwhile = list(meanwhile)
        self.lock = StoreLock(storage, "lock", "place", me, lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now, self.slept = self.now + seconds, self.slept + seconds
        if self.meanwhile:
            self.meanwhile.pop(0)()  # type: ignore[operator]


def test_an_owner_that_lives_keeps_its_lock_whatever_the_clocks_say() -> None:
    storage = in_memory()
    owner = Waiting(storage, "the owner").lock
    owner.take()
    other = Waiting(storage, "other", lambda: None, owner.renew)
    with pytest.raises(RunLockedError, match="the owner"):
        other.lock.take()
    assert other.slept < locks.STALE_S
    owner.release()
    Waiting(storage, "third").lock.take()


def test_a_silent_owner_is_followed_and_can_undo_nothing_when_it_wakes() -> None:
    storage = in_memory()
    sleeper, heir = Waiting(storage, "sleeper").lock, Waiting(storage, "heir")
    sleeper.take()
    heir.lock.take()
    assert locks.STALE_S <= heir.slept < locks.STALE_S + 2 * locks.POLL_S
    sleeper.release()
    with pytest.raises(AlreadyExists):
        sleeper.renew()
    with pytest.raises(RunLockedError, match="heir"):
        Waiting(storage, "third", heir.lock.renew).lock.take()


def test_of_two_that_find_a_dead_lock_one_gets_it() -> None:
    storage = in_memory()
    Waiting(storage, "dead").lock.take()
    heir = Waiting(storage, "heir")
    other = Waiting(storage, "other", *[lambda: None] * 119, heir.lock.take)
    with pytest.raises(RunLockedError, match=r"heir|just now"):
        other.lock.take()
    heir.lock.renew()


def test_a_renewal_whose_answer_was_lost_is_no_other_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, replace = in_memory(), ObjectStorage.replace
    owner = Waiting(storage, "owner").lock
    owner.take()

    def lost(self: ObjectStorage, *given: object) -> None:
        replace(self, *given)  # type: ignore[arg-type]
        raise StorageError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "replace", lost)
        with pytest.raises(StorageError):
            owner.renew()
    owner.renew()


def test_an_owner_renews_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEW_S", 0.01)
    storage = in_memory()
    lock = Waiting(storage, "owner").lock
    with lock.held():
        first = storage.read("lock")
        while storage.read("lock") == first:
            pass
    assert b'"owner": null' in storage.read("lock")
