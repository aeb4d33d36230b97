"""The command line and the library: what they give where nothing is wrong (see test_wrong)."""

import json
from pathlib import Path

import pytest

import ray_judge
from ray_judge.cli import main
from ray_judge.records import Shard
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory

from . import builders


def test_status_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(str(tmp_path / "out"))
    shard = Shard("/in/x.parquet", "x.parquet", 3, "f")
    run.begin(builders.config(), Plan((shard,), Columns({}), 2))
    assert main(["status", run.uri]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["rows"], status["chunks"], status["judged"]) == (3, 2, 0)
    assert not status["finished"]
    assert main(["report", run.uri]) == 2
    assert "not finished" in capsys.readouterr().err
    run.finish({"rows": 3})
    capsys.readouterr()
    assert main(["report", run.uri]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 3}


def test_help_has_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert "exit codes" in said and all(f"  {code}  " in said for code in range(6))


def test_the_library_is_flat() -> None:
    for name in ray_judge.__all__:
        assert getattr(ray_judge, name)
    with pytest.raises(AttributeError, match="nothing"):
        ray_judge.nothing  # noqa: B018
