"""What a run leaves on disk: the same on a local disk and on a real S3 protocol server."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_judge.config import RunConfig, parse
from ray_judge.errors import CorruptedError, RunChangedError, RunLockedError
from ray_judge.records import Shard, judged_schema
from ray_judge.run import directory as run_directory
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.storage import lock as locks

pytestmark = pytest.mark.timeout(120)

COLUMNS = Columns({"instruction": "q", "response_a": "a", "response_b": "b"}, "id", None, ("p",))
PLAN = Plan((Shard("/in/x.parquet", "x.parquet", 25, "f1"),
             Shard("/in/y.parquet", "y.parquet", 0, "f2"),
             Shard("/in/z.parquet", "z.parquet", 10, "f3")), COLUMNS, 10)  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    if request.param == "local":
        return RunDirectory(str(tmp_path / "out"))
    return RunDirectory(f"{request.getfixturevalue('s3_root')}/{tmp_path.name}")


def config(**changes: Any) -> RunConfig:
    return parse(
        {
            "input": "in",
            "output": "out",
            "judge": {"format": "demo", "model": "m"},
            "route": {"fraction": 0.5},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
            **changes,
        }
    )


def judged(rows: int = 3) -> pa.Table:
    values = [{"row": n, "row_key": f"k{n}"} for n in range(rows)]
    return pa.Table.from_pylist(values, schema=judged_schema("pairwise", ("A", "B", "tie")))


def test_chunks_cover_every_row_once() -> None:
    chunks = list(PLAN.chunks())
    assert [(c.name, c.shard_name, c.start, c.rows) for c in chunks] == [
        ("00000-00000", "x.parquet", 0, 10), ("00000-00001", "x.parquet", 10, 10),
        ("00000-00002", "x.parquet", 20, 5), ("00002-00000", "z.parquet", 0, 10),
    ]  # fmt: skip
    assert PLAN.rows == sum(chunk.rows for chunk in chunks)
    assert PLAN.shard_chunks(PLAN.shards[1]) == []
    assert [chunk.name for chunk in chunks] == sorted(chunk.name for chunk in chunks)


def test_the_plan_comes_back_as_it_was(run: RunDirectory) -> None:
    assert run.plan() is None
    run.check_config(config())  # nothing there, nothing to differ from
    run.begin(config(), PLAN)
    assert run.plan() == PLAN
    assert pickle.loads(pickle.dumps(run)).plan() == PLAN


def test_a_run_begins_once(run: RunDirectory) -> None:
    run.begin(config(), PLAN)
    with pytest.raises(RunLockedError):
        run.begin(config(), PLAN)


def test_another_configuration_is_refused_key_by_key(run: RunDirectory) -> None:
    run.begin(config(), PLAN)
    run.check_config(config())
    with pytest.raises(RunChangedError) as caught:
        run.check_config(config(route={"fraction": 0.6}, chunk_rows=7))
    assert caught.value.exit_code == 2
    assert "route.fraction: '0.5' → '0.6'" in str(caught.value)
    assert "chunk_rows: 1000 → 7" in str(caught.value)
    run.check_config(config(strong={"model": "gpt-4.1", "max_cost_usd": 2, "concurrency": 1}))
    with pytest.raises(RunChangedError, match="only be raised"):
        run.check_config(config(strong={"model": "gpt-4.1", "max_cost_usd": "0.5"}))


def test_no_key_is_ever_written(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    run.begin(config(), PLAN)
    assert b"sk-very-secret" not in run.storage.read("run.json")


def test_judged_chunks_are_what_is_committed(run: RunDirectory) -> None:
    assert run.judged() == set()
    run.commit_judged("00000-00001", judged())
    run.commit_judged("00000-00000", judged(1))
    run.commit_judged("00000-00000", judged(2))  # a retried task commits again: the last stands
    assert run.judged() == {"00000-00000", "00000-00001"}
    assert run.read_judged("00000-00000").equals(judged(2))


def test_a_damaged_file_is_named(run: RunDirectory) -> None:
    run.commit_judged("00000-00000", judged())
    whole = run.storage.read("judged/00000-00000.parquet")
    run.storage.write("judged/00000-00000.parquet", whole[:-20])
    with pytest.raises(CorruptedError, match=r"judged/00000-00000\.parquet"):
        run.read_judged("00000-00000")
    run.storage.write("run.json", b'{"shards": [')
    with pytest.raises(CorruptedError, match=r"run\.json"):
        run.plan()


def test_a_newer_layout_is_refused(run: RunDirectory) -> None:
    run.storage.write("run.json", json.dumps({"layout": 99}).encode())
    with pytest.raises(CorruptedError, match="newer"):
        run.plan()


def test_finishing_and_taking_it_back(run: RunDirectory) -> None:
    assert run.summary() is None and run.scored() == set()
    for name in ("x.parquet", "sub/z.parquet"):
        run.storage.write(f"scored/{name}", b"rows")
    run.finish({"spent_usd": Decimal("0.25"), "rows": 3})
    assert run.summary() == {"spent_usd": 0.25, "rows": 3}
    assert run.scored() == {"x.parquet", "sub/z.parquet"}
    run.storage.write(run_directory.REVIEW, b"rows")
    run.reopen()
    assert run.summary() is None and run.scored() == set()
    assert not run.storage.exists(run_directory.REVIEW)
    run.reopen()


def test_the_lock_is_held_by_one_and_given_back(run: RunDirectory) -> None:
    other = pickle.loads(pickle.dumps(run))
    with run.locked():
        with pytest.raises(RunLockedError, match=f"pid {os.getpid()}") as caught, other.locked():
            pass
        assert caught.value.exit_code == 1
        assert caught.value.where == {"run": run.uri}
    with other.locked():
        pass


def test_the_lock_is_given_back_by_a_failure(run: RunDirectory) -> None:
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    with run.locked():
        pass


# -- what only a local disk has --------------------------------------------------------------------

HOLDER = """
import sys
from ray_judge.run.directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_kernel_drops_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(RunLockedError, match=f"pid {process.pid}"), run.locked():
        pass
    process.kill()
    process.wait()
    with run.locked():
        pass


def test_temporary_files_are_no_files(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.commit_judged("00000-00000", judged())
    for folder in ("judged", "scored", ""):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ".tmp-0123456789abcdef").write_bytes(b"half a fi")
    assert run.judged() == {"00000-00000"} and run.scored() == set()
    assert run.plan() is None


# -- what only an object store has -----------------------------------------------------------------


@pytest.fixture
def remote(s3_root: str, tmp_path: Path) -> RunDirectory:
    return RunDirectory(f"{s3_root}/{tmp_path.name}")


def test_a_silent_owner_is_followed(remote: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.storage.write("lock/00000004", b'{"owner": "pid 1 on elsewhere", "at": 1000.0}')
    monkeypatch.setattr(locks.time, "time", lambda: 1000.0 + locks.STALE_S - 1)
    with pytest.raises(RunLockedError, match="pid 1 on elsewhere"), remote.locked():
        pass
    monkeypatch.setattr(locks.time, "time", lambda: 1000.0 + locks.STALE_S)
    with remote.locked():
        assert remote.storage.list("lock")[-1] == "lock/00000005"
        with pytest.raises(RunLockedError), RunDirectory(remote.uri).locked():
            pass


def test_an_owner_says_that_it_lives(remote: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEW_S", 0.02)
    renewed = threading.Event()
    write = remote.storage.write

    def watched(path: str, data: bytes) -> None:
        write(path, data)
        renewed.set()

    monkeypatch.setattr(remote.storage, "write", watched)
    monkeypatch.setattr(locks, "open_storage", lambda uri: remote.storage)
    with remote.locked():
        first = json.loads(remote.storage.read("lock/00000001"))["at"]
        assert renewed.wait(30)
        renewed.clear()
        assert renewed.wait(30)
        assert json.loads(remote.storage.read("lock/00000001"))["at"] > first
    assert remote.storage.list("lock") == []


def test_of_many_only_one_gets_the_lock(remote: RunDirectory) -> None:
    got, lost, ready, over = [], [], threading.Barrier(6), threading.Event()

    def contend() -> None:
        ready.wait()
        try:
            with RunDirectory(remote.uri).locked():
                got.append(1)
                over.wait(30)
        except RunLockedError:
            lost.append(1)
            if len(lost) == 5:
                over.set()

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(got), len(lost)) == (1, 5)
