"""What a run leaves on disk (over S3: tests/pipeline/test_object_store.py)."""

import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.cli import main
from ray_judge.errors import CorruptedError, RunChangedError, RunLockedError
from ray_judge.records import Shard
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory

from .builders import config, judged

COLUMNS = Columns({"instruction": "q", "response_a": "a", "response_b": "b"}, "id", None, ("p",))
PLAN = Plan((Shard("/in/x.parquet", "x.parquet", 25, "f1"),
             Shard("/in/y.parquet", "y.parquet", 0, "f2"),
             Shard("/in/z.parquet", "z.parquet", 10, "f3")), COLUMNS, 10)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "out"))


def test_chunks_cover_every_row_once() -> None:
    chunks = list(PLAN.chunks())
    assert [(c.name, c.shard_name, c.start, c.rows) for c in chunks] == [
        ("00000-00000", "x.parquet", 0, 10), ("00000-00001", "x.parquet", 10, 10),
        ("00000-00002", "x.parquet", 20, 5), ("00002-00000", "z.parquet", 0, 10),
    ]  # fmt: skip
    assert PLAN.rows == sum(chunk.rows for chunk in chunks)
    nothing: Any = None  # no look at other shards: they are many
    assert Plan((nothing, PLAN.shards[1], PLAN.shards[2]), COLUMNS, 10).chunks_of(2) == chunks[3:]
    assert [chunk.name for chunk in chunks] == sorted(chunk.name for chunk in chunks)


def test_the_plan_comes_back_as_it_was(run: RunDirectory) -> None:
    assert run.plan() is None
    assert not run.check_config(config(), answered)  # nothing there, nothing to differ from
    run.begin(config(), PLAN)
    assert run.plan() == PLAN and run.config() == config()
    assert pickle.loads(pickle.dumps(run)).plan() == PLAN
    with pytest.raises(RunLockedError):
        run.begin(config(), PLAN)


def test_another_configuration_is_refused_key_by_key(run: RunDirectory) -> None:
    run.begin(config(), PLAN)
    assert not run.check_config(config(), answered)
    with pytest.raises(RunChangedError) as caught:
        run.check_config(config(route__fraction=0.6, chunk_rows=7), answered)
    assert caught.value.exit_code == 2
    assert "route.fraction: '0.3' → '0.6'" in str(caught.value)
    assert "chunk_rows: 1000 → 7" in str(caught.value)
    assert not run.check_config(config(strong__max_cost_usd=2, strong__concurrency=1), answered)
    with pytest.raises(RunChangedError, match="only be raised"):
        run.check_config(config(strong__max_cost_usd="0.5"), answered)


def answered() -> int:
    return 0


def test_what_is_asked_may_change_until_it_was_answered(run: RunDirectory) -> None:
    run.begin(config(), PLAN)
    other = config(strong__model="gpt-4o", strong__temperature=0)
    with pytest.raises(RunChangedError, match=r"strong\.temperature.*7 verdicts .* are on file"):
        run.check_config(other, lambda: 7)
    assert run.check_config(other, answered)
    run.change(other)
    assert (run.config(), run.plan()) == (other, PLAN)
    assert not run.check_config(other, lambda: 7)
    for changes in ({"route__fraction": 0.6}, {"strong__mode": "batch"}, {"strong__books": "b"}):
        with pytest.raises(RunChangedError, match="made by another configuration"):
            run.check_config(config(**changes), answered)


def test_judged_chunks_are_what_is_committed(run: RunDirectory) -> None:
    assert run.judged(0) == set()
    for name, rows in (("00000-00001", [{}]), ("00000-00000", [{}]), ("00000-00000", [{}, {}])):
        run.commit_judged(0, name, judged(*rows))  # a retried task commits again: the last stands
    run.commit_judged(1, "00000-00001", judged({}))
    assert (run.judged(0), run.judged(1)) == ({"00000-00000", "00000-00001"}, {"00000-00001"})
    assert run.read_judged(0, "00000-00000").equals(judged({}, {}))
    assert run.has_judged(1, "00000-00001") and not run.has_judged(1, "00000-00000")


def test_a_damaged_file_is_named(run: RunDirectory) -> None:
    run.commit_judged(0, "00000-00000", judged({}))
    whole = run.storage.read("judged/1/00000-00000.parquet")
    run.storage.write("judged/1/00000-00000.parquet", whole[:-20])
    with pytest.raises(CorruptedError, match=r"judged/1/00000-00000\.parquet"):
        run.read_judged(0, "00000-00000")
    for content, said in ((b'{"shards": [', r"run\.json"), (b'{"layout": 99}', "newer")):
        run.storage.write("run.json", content)
        with pytest.raises(CorruptedError, match=said):
            run.plan()


def test_what_is_finished_stays_until_it_is_made_anew(run: RunDirectory) -> None:
    run.reopen()
    assert run.storage.list("") == [], "nothing is outdated where nothing is scored"
    for name in ("x.parquet", "sub/z.parquet"):
        run.storage.write(f"scored/{name}", b"rows")
    run.finish({"spent_usd": Decimal("0.25"), "rows": 3})
    assert run.summary() == {"spent_usd": 0.25, "rows": 3}
    assert run.scored() == {"x.parquet", "sub/z.parquet"}
    run.reopen()
    assert run.summary() is None and run.scored() == set()
    assert set(run.storage.list("")) >= {"scored/x.parquet", "summary.json"}
    run.finish({"rows": 4})
    assert run.summary() == {"rows": 4} and len(run.scored()) == 2


def test_status_and_report(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run.begin(config(), PLAN)
    assert main(["status", run.uri]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["rows"], status["chunks"], status["judged"]) == (35, 4, 0)
    assert not status["finished"]
    assert main(["report", run.uri]) == 2
    assert "not finished" in capsys.readouterr().err
    run.finish({"rows": 3})
    capsys.readouterr()
    assert main(["report", run.uri]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 3}
