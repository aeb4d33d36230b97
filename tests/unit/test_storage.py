"""Storage on a real local disk and on a real S3 protocol server: the same promises on both."""

from __future__ import annotations

import os
import pickle
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.errors import AlreadyExists, ConfigError, StorageError
from ray_judge.storage.local import LocalStorage, Missing, Storage, open_storage

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path))
    root: str = request.getfixturevalue("s3_root")
    return open_storage(f"{root}/{os.path.basename(tmp_path)}")


def test_write_read_replace_delete(storage: Storage) -> None:
    assert not storage.exists("a/b.txt")
    with pytest.raises(Missing):
        storage.read("a/b.txt")
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    assert storage.exists("a/b.txt")
    assert storage.read("a/b.txt") == b"two"
    storage.delete("a/b.txt")
    storage.delete("a/b.txt")
    assert not storage.exists("a/b.txt")


def test_list_is_sorted_and_relative(storage: Storage) -> None:
    for name in ("x/2", "x/1", "x/sub/3", "y/4", "xx/5"):
        storage.write(name, b"")
    assert storage.list("x") == ["x/1", "x/2", "x/sub/3"]
    assert storage.list("") == ["x/1", "x/2", "x/sub/3", "xx/5", "y/4"]
    assert storage.list("nothing") == []


def test_create_is_exclusive_in_a_race(storage: Storage) -> None:
    winners: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            storage.create("claim", str(number).encode())
            winners.append(number)
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert storage.read("claim") == str(winners[0]).encode()
    assert storage.list("") == ["claim"]


def test_log_is_durable_by_sync_and_not_begun_twice(storage: Storage) -> None:
    log = storage.log("journal/w.log")
    log.append(b"one\n")
    log.append(b"two\n")
    log.sync()
    log.append(b"three\n")
    log.sync()
    log.sync()
    parts = storage.list("journal")
    assert b"".join(storage.read(part) for part in parts) == b"one\ntwo\nthree\n"
    with pytest.raises(AlreadyExists):
        storage.log("journal/w.log")
    log.append(b"four\n")
    log.close()
    assert b"".join(storage.read(p) for p in storage.list("journal")).endswith(b"four\n")
    with pytest.raises(StorageError):
        log.append(b"five\n")
        log.sync()


def test_stream_commits_only_when_the_block_ends_well(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), storage.write_stream("out/s.parquet") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert storage.list("") == []
    table = pa.table({"x": list(range(1000))})
    with storage.write_stream("out/s.parquet") as file:
        pq.write_table(table, file)
    assert pq.read_table(storage.open_input("out/s.parquet")).equals(table)
    assert storage.list("out") == ["out/s.parquet"]
    with pytest.raises(Missing):
        storage.open_input("out/none.parquet")


def test_pickles_by_uri(storage: Storage) -> None:
    storage.write("k", b"v")
    data = pickle.dumps(storage)
    assert len(data) < 300
    assert pickle.loads(data).read("k") == b"v"


def test_temporary_names_are_never_listed(tmp_path: os.PathLike[str]) -> None:
    storage = open_storage(f"file://{tmp_path}")
    with storage.write_stream("d/x") as file:
        file.write(b"1")
        file.flush()
        assert storage.list("") == []
        assert len(os.listdir(os.path.join(tmp_path, "d"))) == 1
    assert os.listdir(os.path.join(tmp_path, "d")) == ["x"]


def test_a_log_whose_disk_failed_never_claims_success_again(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LocalStorage(str(tmp_path)).log("x.log")

    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        log.append(b"lost?")
        with pytest.raises(StorageError):
            log.sync()
    log.append(b"later")
    with pytest.raises(StorageError):
        log.sync()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_paths_stay_inside(tmp_path: os.PathLike[str], path: str) -> None:
    with pytest.raises(StorageError):
        open_storage(str(tmp_path)).write(path, b"")


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3:///x", ""])
def test_unknown_places_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_storage(uri)


def test_an_object_stores_refusal_is_ours(s3_root: str) -> None:
    storage = open_storage("s3://no-such-bucket/x")
    with pytest.raises(StorageError):
        storage.write("k", b"")
    with pytest.raises(StorageError):
        storage.create("k", b"")


def test_a_segment_whose_confirmation_was_lost_is_not_an_error(s3_root: str) -> None:
    storage = open_storage(f"{s3_root}/lost")
    log = storage.log("w.log")
    storage.create("w.log.00000001", b"same")  # the first attempt, of which nobody heard
    log.append(b"same")
    log.sync()
    storage.create("w.log.00000002", b"another writer's")
    log.append(b"ours")
    with pytest.raises(AlreadyExists):
        log.sync()
