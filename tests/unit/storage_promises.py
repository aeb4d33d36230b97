"""What every storage promises: run on a local disk and in memory, and over S3's protocol."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.errors import AlreadyExists, StorageError
from ray_judge.storage.local import Missing, Storage


class StoragePromises:
    """Subclasses have a fixture `storage`, an empty one."""

    def test_write_read_replace_delete(self, storage: Storage) -> None:
        assert not storage.exists("a/b.txt")
        with pytest.raises(Missing):
            storage.read("a/b.txt")
        storage.write("a/b.txt", b"one")
        storage.write("a/b.txt", b"two")
        assert storage.exists("a/b.txt") and storage.read("a/b.txt") == b"two"
        storage.delete("a/b.txt")
        storage.delete("a/b.txt")
        assert not storage.exists("a/b.txt")

    def test_list_is_sorted_and_relative(self, storage: Storage) -> None:
        for name in ("x/2", "x/1", "x/sub/3", "y/4", "xx/5"):
            storage.write(name, b"")
        assert storage.list("x") == ["x/1", "x/2", "x/sub/3"]
        assert storage.list("") == ["x/1", "x/2", "x/sub/3", "xx/5", "y/4"]
        assert storage.list("nothing") == []

    def test_create_is_exclusive_in_a_race(self, storage: Storage) -> None:
        start = Barrier(8)

        def race(number: int) -> bytes | None:
            start.wait()
            try:
                storage.create("claim", mine := str(number).encode())
            except AlreadyExists:
                return None
            return mine

        with ThreadPoolExecutor(8) as pool:
            winners = list(filter(None, pool.map(race, range(8))))
        assert winners == [storage.read("claim")]
        assert storage.list("") == ["claim"]

    def test_log_is_durable_by_sync_and_not_begun_twice(self, storage: Storage) -> None:
        log = storage.log("journal/w.log")
        for data in (b"one\n", b"two\n"):
            log.append(data)
        log.sync()
        log.append(b"three\n")
        log.sync()
        log.sync()
        assert self.logged(storage) == b"one\ntwo\nthree\n"
        with pytest.raises(AlreadyExists):
            storage.log("journal/w.log")
        log.append(b"four\n")
        log.close()
        assert self.logged(storage).endswith(b"four\n")
        with pytest.raises(StorageError):
            log.append(b"five\n")
            log.sync()

    def logged(self, storage: Storage) -> bytes:
        return b"".join(storage.read(part) for part in storage.list("journal"))

    def test_stream_commits_only_when_the_block_ends_well(self, storage: Storage) -> None:
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
