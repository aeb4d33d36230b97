"""Bad input at the command line: the right exit code, a message that says where, nothing asked.

Everything here is refused before Ray is started and before the provider is spoken to. What is
refused, and in which words, is in test_inputs and test_config; what only reading finds, in
tests/pipeline/test_rows.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import ray_judge
from ray_judge.cli import main
from ray_judge.config import load
from ray_judge.records import Shard
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.run.plan import plan_input

from . import builders


class Case:
    """One configuration over one folder, and what the command said."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "in").mkdir()
        places = {"input": str(folder / "in"), "output": str(folder / "out")}
        self.document = builders.document(**places, strong__base_url="http://127.0.0.1:9/v1")

    def shard(self, name: str = "a.parquet", rows: int = 3, **columns: Any) -> Path:
        data: dict[str, Any] = {
            "instruction": ["do"] * rows, "response_a": ["x"] * rows, "response_b": ["y"] * rows,
            "p_a": [0.6] * rows, "p_b": [0.4] * rows, **columns,
        }  # fmt: skip
        path = self.folder / "in" / name
        pq.write_table(pa.table({k: v for k, v in data.items() if v is not None}), path)
        return path

    def score(self, *overrides: str) -> tuple[int, str]:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.document))
        words = [word for override in overrides for word in ("--set", override)]
        code = main(["score", str(path), *words])
        return code, self.capsys.readouterr().err


@pytest.fixture
def case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Case:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr("ray_judge.pipeline.connected", lambda: pytest.fail("Ray was started"))
    return Case(tmp_path, capsys)


def refused(said: tuple[int, str], code: int, *words: object) -> None:
    assert said[0] == code, said
    for word in words:
        assert str(word) in said[1], said[1]
    assert said[1].startswith("ray-judge: ") and "Traceback" not in said[1]


def test_input_that_cannot_be_judged(case: Case) -> None:
    path = case.shard(p_a=None)
    refused(case.score(), 3, path, "column=p_a", "did you mean p_b?")
    case.shard(scenario=["a"] * 3)
    audit = "route={fraction: 1, audit: 0.1, audit_by: scenaro}"
    refused(case.score(audit), 3, path.parent, "no such column", "did you mean scenario?")
    assert not (case.folder / "out" / "run.json").exists()


def test_no_key(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.shard()
    monkeypatch.delenv("OPENAI_API_KEY")
    refused(case.score(), 2, "OPENAI_API_KEY")
    assert not (case.folder / "out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("strong.max_cost=1", "did you mean strong.max_cost_usd"),
        ("judge={model: /no/model, format: demo}", "/no/model"),
        ("output=ftp://host/x", "ftp://"),
        ("strong.model=acme/judge-1", "strong.price"),
        ("route={policy: guarantee, calibration: /no/c.json}", "there is no calibration here"),
    ],
)
def test_a_configuration_that_cannot_be_used(case: Case, override: str, said: str) -> None:
    case.shard()
    refused(case.score(override), 2, said)


def begun(case: Case) -> RunDirectory:
    """A run directory as a killed process leaves it."""
    case.shard()
    case.score("strong.max_cost_usd=lots")  # writes the YAML, begins nothing
    config = load(case.folder / "run.yaml")
    run = RunDirectory(config.output)
    run.begin(config, plan_input(config, ("p_a", "p_b")))
    return run


def test_a_changed_input_file(case: Case) -> None:
    run, path = begun(case), case.folder / "in" / "a.parquet"
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # the same size, one bit elsewhere
    path.write_bytes(bytes(data))
    refused(case.score(), 3, "changed", path)
    path.unlink()
    refused(case.score(), 3, "gone", path)
    assert run.judged(0) == set()


def test_a_run_that_another_process_does_and_a_damaged_one(case: Case) -> None:
    run = begun(case)
    with run.locked():
        refused(case.score(), 1, "another process works in this run directory")
    run.storage.write("run.json", b"{")
    refused(case.score(), 1, "run.json", "damaged")


@pytest.mark.parametrize("log", ["ledger/00000001.log", "journal/a-0.log"])
@pytest.mark.parametrize(
    ("line", "said"),
    [(b"2 1 0 0123456789abcdef {}", "newer version"), (b"1 1 0 junk {}", "a damaged line")],
)
def test_a_damaged_ledger_or_journal(case: Case, log: str, line: bytes, said: str) -> None:
    """Written by a newer version, or damaged by hand: found before the local judge begins."""
    run = begun(case)
    path = case.folder / "out" / log
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    refused(case.score(), 1, path, said)
    assert run.judged(0) == set() and path.read_bytes() == line + b"\n"


def test_status_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "report"):
        assert main([command, str(tmp_path / "nothing")]) == 3
        assert "there is no run here" in capsys.readouterr().err
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


@pytest.mark.parametrize("words", ["", "nonsense", "score", "score a --nonsense", "--help"])
def test_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == (0 if words == "--help" else 2)
    if words == "--help":
        said = capsys.readouterr().out
        assert "exit codes" in said and all(f"  {code}  " in said for code in range(6))


def test_the_library_is_flat() -> None:
    for name in ray_judge.__all__:
        assert getattr(ray_judge, name)
    with pytest.raises(AttributeError, match="nothing"):
        ray_judge.nothing  # noqa: B018
