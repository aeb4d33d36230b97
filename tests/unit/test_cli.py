"""Bad input at the command line: the right exit code, a message that says where, nothing asked.

Everything here is refused before Ray is started and before the provider is spoken to; what can
only be found while reading is in tests/pipeline/test_rows.py.
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

pytestmark = pytest.mark.timeout(60)


class Case:
    """One configuration over one folder, and what the command said."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "in").mkdir()
        self.document: dict[str, Any] = {
            "input": str(folder / "in"),
            "output": str(folder / "out"),
            "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
            "route": {"policy": "fraction", "fraction": 0.5},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1, "base_url": "http://127.0.0.1:9/v1"},
        }

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


@pytest.mark.parametrize(
    ("columns", "overrides", "said"),
    [
        ({"response_b": None, "response_bb": ["y"] * 3}, [],
         ["column=response_b", "did you mean response_bb?"]),
        ({}, ["columns.response_a=answer_1"], ["answer_1", "response_a"]),
        ({"instruction": [1, 2, 3]}, [], ["column=instruction", "int64"]),
        ({"p_a": ["0.5"] * 3}, [], ["column=p_a", "string"]),
        ({"p_a": None}, [], ["column=p_a", "did you mean p_b?"]),
        ({"id": ["x", "y", "x"]}, [], ["column=id", "row 0", "row=2", "'x'"]),
        ({"id": ["x", None, "z"]}, [], ["column=id", "row=1"]),
        ({"final_verdict": ["A"] * 3}, [], ["column=final_verdict"]),
        ({"scenario": ["a"] * 3}, ["route.audit=0.1", "route.audit_by=scenaro"],
         ["no such column for route.audit_by (did you mean scenario?)"]),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(
    case: Case, columns: dict[str, Any], overrides: list[str], said: list[str]
) -> None:
    path = case.shard(**columns)
    refused(case.score(*overrides), 3, path.parent, *said)


@pytest.mark.parametrize("cut", [0, 4, 100, -1, -9])
def test_a_truncated_file(case: Case, cut: int) -> None:
    case.shard("a.parquet")
    path = case.shard("b.parquet", 1000)
    path.write_bytes(path.read_bytes()[:cut])
    refused(case.score(), 3, path, "not a readable Parquet file")


def test_an_empty_folder_and_a_missing_path(case: Case) -> None:
    refused(case.score(), 3, "no Parquet shards", case.folder / "in")
    refused(case.score("input=nowhere/at/all"), 3, "nowhere/at/all", "no such file")
    (case.folder / "in" / "a.parquet").mkdir()
    refused(case.score(), 3, "no Parquet shards", case.folder / "in")
    assert not (case.folder / "out" / "run.json").exists()


def test_shards_that_do_not_go_together(case: Case) -> None:
    first = case.shard("a.parquet", extra=[1, 2, 3])
    second = case.shard("b.parquet", extra=["1", "2", "3"])
    refused(case.score(), 3, first, second, "column=extra")
    pq.write_table(pq.read_table(first)[:0], second)
    refused(case.score(), 3, second, "no rows")


@pytest.mark.parametrize("value", [None, "", "  ", "sk a", "sk-a\n", "\tsk-a"])
def test_no_key(case: Case, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case.shard()
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    refused(case.score(), 2, "OPENAI_API_KEY")
    assert not (case.folder / "out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("strong.max_cost=1", "did you mean strong.max_cost_usd"),
        ("judge={model: /no/model, format: demo}", "/no/model"),
        ("output=ftp://host/x", "ftp://"),
        ("strong.model=acme/judge-1", "strong.price"),
        *[(f"strong.price={{{price}}}", "strong.price")
          for price in ("input_usd_per_mtok: -1, output_usd_per_mtok: 1", "input_usd_per_mtok: 1",
                        "input_usd_per_mtok: .nan, output_usd_per_mtok: 1")],
        *[(f"strong.{key}={cap}", f"strong.{key}")
          for key in ("max_cost_usd", "max_cost_usd_per_month")
          for cap in (".nan", "-1", ".inf", "lots")],
        ("strong={model: gpt-4.1, max_cost_usd: null}", "strong.max_cost_usd"),
        ("strong={model: gpt-4.1}", "no run without a cap"),
        *[(f"strong.{key}={rate}", f"strong.{key}")
          for key in ("requests_per_minute", "tokens_per_minute", "concurrency")
          for rate in ("0", "-1", "null", ".nan", "2.5")],
        ("route.fraction=1.01", "route.fraction"),
        ("route.fraction=-1", "route.fraction"),
        ("route.threshold=0.5", "goes with policy: threshold"),
        ("route.policy=threshold", "route"),
        ("route.policy=best", "route.policy"),
        ("route={policy: guarantee}", "needs the key calibration"),
        ("route={policy: guarantee, calibration: /no/c.json}", "there is no calibration here"),
        ("route={policy: budget}", "needs the key budget_usd"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_used(case: Case, override: str, said: str) -> None:
    case.shard()
    refused(case.score(override), 2, said)


def test_no_configuration(case: Case, tmp_path: Path) -> None:
    assert main(["score", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in case.capsys.readouterr().err


# -- a run that has begun --------------------------------------------------------------------------


def begun(case: Case) -> RunDirectory:
    """A run directory as a killed process leaves it."""
    path = case.shard()
    case.score("strong.max_cost_usd=lots")  # writes the YAML, begins nothing
    config = load(case.folder / "run.yaml")
    shards, columns = plan_input(config, ("p_a", "p_b"))
    run = RunDirectory(config.output)
    run.begin(config, Plan(tuple(shards), columns, config.chunk_rows))
    assert [shard.path for shard in shards] == [str(path)]
    return run


def test_a_changed_configuration(case: Case) -> None:
    begun(case)
    refused(case.score("route.fraction=0.4"), 2, "route.fraction: '0.5' → '0.4'", "out")
    refused(case.score("strong.max_cost_usd=0.5"), 2, "strong.max_cost_usd", "only be raised")
    refused(case.score("judge.prob_columns.A=p_b"), 2, "judge.prob_columns.A")
    refused(case.score("strong.mode=batch"), 2, "strong.mode")  # a pending batch is not forgotten


def test_a_changed_input_file(case: Case) -> None:
    run = begun(case)
    path = case.shard(p_a=[0.7] * 3)
    refused(case.score(), 3, "changed", path)
    path.unlink()
    refused(case.score(), 3, "gone", path)
    assert run.judged(0) == set()


def test_two_at_once_on_the_same_directory(case: Case) -> None:
    with begun(case).locked():
        refused(case.score(), 1, "another process works in this run directory")


@pytest.mark.parametrize("log", ["ledger/00000001.log", "journal/a-0.log"])
@pytest.mark.parametrize(
    ("line", "said"),
    [(b"2 1 0 0123456789abcdef {}", "newer version"), (b"1 1 0 junk {}", "a damaged line")],
)
def test_a_ledger_or_journal_that_cannot_be_read(
    case: Case, log: str, line: bytes, said: str
) -> None:
    """Written by a newer version, or damaged by hand: found before the local judge begins."""
    run = begun(case)
    path = case.folder / "out" / log
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    refused(case.score(), 1, path, said)
    assert run.judged(0) == set() and path.read_bytes() == line + b"\n"


def test_a_damaged_run(case: Case) -> None:
    run = begun(case)
    run.storage.write("run.json", b"{")
    refused(case.score(), 1, "run.json", "damaged")


# -- the other commands ----------------------------------------------------------------------------


def test_status_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "report"):
        assert main([command, str(tmp_path / "nothing")]) == 3
        assert "there is no run here" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(
        "{input: i, output: o, judge: {model: m}, route: {fraction: 0.5}, "
        "strong: {model: gpt-4.1, max_cost_usd: 1}}"
    )
    run = RunDirectory(str(tmp_path / "out"))
    shard = Shard("/in/x.parquet", "x.parquet", 3, "f")
    run.begin(load(tmp_path / "run.yaml"), Plan((shard,), Columns({}), 2))
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


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["score"], ["score", "a", "--nonsense"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "exit codes" in said and all(f"  {code}  " in said for code in range(6))


def test_the_library_is_flat() -> None:
    for name in ray_judge.__all__:
        assert getattr(ray_judge, name)
    with pytest.raises(AttributeError, match="nothing"):
        ray_judge.nothing  # noqa: B018
