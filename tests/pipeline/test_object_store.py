"""Storage, locks, runs and inputs over S3's protocol, as a real server speaks it."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.errors import AlreadyExists, InputError, RunLockedError, StorageError
from ray_judge.run.directory import RunDirectory
from ray_judge.run.files import find_shards
from ray_judge.run.plan import check_unchanged, plan_input, read_rows, read_slices
from ray_judge.storage import lock as locks
from ray_judge.storage.local import Storage, open_storage
from ray_judge.storage.object_store import ObjectStorage
from tests.conftest import free_ports, listens, running

from ..unit.storage_promises import StoragePromises  # noqa: TID252
from ..unit.test_inputs import config, pairs  # noqa: TID252


@pytest.fixture(scope="session")
def s3_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a server in a process of its own: within ours its globals break vLLM's start."""
    if missing := [name for name in ("boto3", "moto", "obstore") if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    import boto3

    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("s3") / "log"
    settings = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    settings |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1")
    settings["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    with running(command, log, lambda: listens(port)), pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="nights")
        yield "s3://nights"


@pytest.fixture
def root(s3_root: str, tmp_path: Path) -> str:
    return f"{s3_root}/{tmp_path.name}"


class TestObjectStore(StoragePromises):
    @pytest.fixture
    def storage(self, root: str) -> Storage:
        return open_storage(root)


def test_a_refusal_of_the_store_is_ours(s3_root: str) -> None:
    with pytest.raises(StorageError, match=r"refused|no such"):
        open_storage("s3://no-such-bucket/x").write("k", b"")


def test_a_put_on_a_condition(root: str) -> None:
    storage = open_storage(root)
    assert isinstance(storage, ObjectStorage)
    first = storage.replace("k", b"1", None)
    second = storage.replace("k", b"2", first)
    for version in (first, None):
        with pytest.raises(AlreadyExists):
            storage.replace("k", b"3", version)
    assert storage.read_version("k") == (b"2", second)


def test_a_run_and_its_lock(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEW_S", 0.02)
    monkeypatch.setattr(locks, "POLL_S", 0.05)
    run = RunDirectory(root)
    with run.locked():
        run.commit_judged(1, "00000-00000", pa.table({"row": [0]}))
        with pytest.raises(RunLockedError, match="works in this run directory"):
            RunDirectory(root).locked().__enter__()
    with RunDirectory(root).locked():
        assert (run.judged(0), run.judged(1)) == (set(), {"00000-00000"})


def test_shards_are_found_planned_read_and_seen_to_change(root: str) -> None:
    storage = open_storage(root)
    table = pairs(20, id=[f"k{n}" for n in range(20)])
    for name in ("day/a.parquet", "day/b.parquet", "day/_tmp.parquet", "other/c.parquet"):
        rows = table if name != "day/b.parquet" else pairs(2, id=["x", "y"])
        with storage.write_stream(name) as sink:
            pq.write_table(rows, sink, row_group_size=6)
    uri = storage.uri
    assert [n for _, n in find_shards(f"{uri}/day")[0]] == ["a.parquet", "b.parquet"]
    assert find_shards(f"{uri}/day/a.parquet") == ([(f"{uri}/day", "a.parquet")], [])
    assert [n for _, n in find_shards(f"{uri}/*/?.parquet")[0]] == [
        "day/a.parquet", "day/b.parquet", "other/c.parquet",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no shards here"):
        find_shards(f"{uri}/nothing")

    plan = plan_input(config(f"{uri}/day"), ())
    first, second = plan.shards
    assert (first.rows, second.rows, plan.columns.id) == (20, 2, "id")
    assert read_rows(first.path, 5, 9).equals(table.slice(5, 9))
    assert pa.concat_tables(read_slices(first.path, [7, 13])).equals(table)
    check_unchanged(first)
    with storage.write_stream("day/a.parquet") as sink:
        pq.write_table(table.slice(1), sink)
    with pytest.raises(InputError, match="changed"):
        check_unchanged(first)
    storage.write("day/b.parquet", b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable Parquet file") as caught:
        plan_input(config(f"{uri}/day"), ())
    assert caught.value.where["file"] == second.path
