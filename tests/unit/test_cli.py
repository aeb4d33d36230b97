"""Bad input at the command line: the right exit code, a message that says where, nothing asked.

Everything here is refused before Ray is started and before the provider is spoken to; what can
only be found while reading is in tests/pipeline/test_rows.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_judge.cli import main
from ray_judge.config import load
from ray_judge.records import Shard
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory
from tests.provider import RunningServer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server(process: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """The provider; whatever the test does, nothing was asked, and no Ray was started."""
    process.reset()
    monkeypatch.setenv("OPENAI_API_KEY", process.api_key)
    monkeypatch.setattr("ray_judge.pipeline.connected", lambda: pytest.fail("Ray was started"))
    yield process
    assert process.stats()["requests"] == 0


class Case:
    """One configuration over one folder, and what the command said."""

    def __init__(self, folder: Path, server: RunningServer, capsys: Any) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "in").mkdir()
        self.document: dict[str, Any] = {
            "input": str(folder / "in"),
            "output": str(folder / "out"),
            "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
            "route": {"policy": "fraction", "fraction": 0.5},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1, "base_url": server.base_url},
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
def case(tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(tmp_path, server, capsys)


def refused(said: tuple[int, str], code: int, *words: object) -> None:
    assert said[0] == code, said
    for word in words:
        assert str(word) in said[1], said[1]
    assert said[1].startswith("ray-judge: ") and "Traceback" not in said[1]


def test_a_missing_column(case: Case) -> None:
    path = case.shard(response_b=None, response_bb=["y"] * 3)
    refused(case.score(), 3, path, "column=response_b", "did you mean response_bb?")


def test_a_missing_mapped_column(case: Case) -> None:
    path = case.shard()
    refused(case.score("columns.response_a=answer_1"), 3, path, "answer_1", "response_a")


def test_a_wrong_type(case: Case) -> None:
    path = case.shard(instruction=[1, 2, 3])
    refused(case.score(), 3, path, "column=instruction", "int64")


def test_a_probability_column_that_is_text(case: Case) -> None:
    path = case.shard(p_a=["0.5"] * 3)
    refused(case.score(), 3, path, "column=p_a", "string")


def test_a_probability_column_that_is_missing(case: Case) -> None:
    path = case.shard(p_a=None)
    refused(case.score(), 3, path, "column=p_a", "did you mean p_b?")


@pytest.mark.parametrize("cut", [0, 4, 100, -1, -9])
def test_a_truncated_file(case: Case, cut: int) -> None:
    case.shard("a.parquet")
    path = case.shard("b.parquet", 1000)
    path.write_bytes(path.read_bytes()[:cut])
    refused(case.score(), 3, path, "not a readable Parquet file")


def test_a_file_that_may_not_be_read(case: Case) -> None:
    (case.folder / "in" / "a.parquet").mkdir()
    refused(case.score(), 3, "no Parquet shards", case.folder / "in")


def test_an_empty_folder_and_a_missing_path(case: Case) -> None:
    refused(case.score(), 3, "no Parquet shards", case.folder / "in")
    refused(case.score("input=nowhere/at/all"), 3, "nowhere/at/all", "no such file")
    assert not (case.folder / "out" / "run.json").exists()


def test_a_shard_without_rows(case: Case) -> None:
    case.shard("a.parquet")
    path = case.shard(
        "b.parquet",
        0,
        p_a=pa.array([], pa.float64()),
        p_b=pa.array([], pa.float64()),
        **{c: pa.array([], pa.string()) for c in ("instruction", "response_a", "response_b")},
    )
    refused(case.score(), 3, path, "no rows")


def test_schemas_that_differ(case: Case) -> None:
    first = case.shard("a.parquet", extra=[1, 2, 3])
    second = case.shard("b.parquet", extra=["1", "2", "3"])
    refused(case.score(), 3, first, second, "column=extra")


def test_duplicate_ids(case: Case) -> None:
    path = case.shard(id=["x", "y", "x"])
    refused(case.score(), 3, path, "column=id", "row 0", "row=2", "'x'")


def test_a_null_id(case: Case) -> None:
    path = case.shard(id=["x", None, "z"])
    refused(case.score(), 3, path, "column=id", "row=1")


def test_a_column_that_collides_with_the_output(case: Case) -> None:
    path = case.shard(final_verdict=["A"] * 3)
    refused(case.score(), 3, path, "column=final_verdict")


def test_an_unknown_key(case: Case) -> None:
    case.shard()
    refused(case.score("strong.max_cost=1"), 2, "strong.max_cost ", "strong.max_cost_usd")


@pytest.mark.parametrize("value", [None, "", "  ", "sk a", "sk-a\n", "\tsk-a"])
def test_no_key(case: Case, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case.shard()
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    refused(case.score(), 2, "OPENAI_API_KEY")
    assert not (case.folder / "out").exists()


def test_a_model_path_that_does_not_exist(case: Case) -> None:
    case.shard()
    case.document["judge"] = {"model": str(case.folder / "no-model"), "format": "demo"}
    refused(case.score(), 2, case.folder / "no-model", "judge.model")


def test_an_unknown_price(case: Case) -> None:
    case.shard()
    refused(case.score("strong.model=acme/judge-1"), 2, "acme/judge-1", "strong.price")


@pytest.mark.parametrize(
    "price", ["{input_usd_per_mtok: -1, output_usd_per_mtok: 1}", "{input_usd_per_mtok: 1}",
              "{input_usd_per_mtok: .nan, output_usd_per_mtok: 1}"]
)  # fmt: skip
def test_a_price_that_is_none(case: Case, price: str) -> None:
    case.shard()
    refused(case.score(f"strong.price={price}"), 2, "strong.price")


@pytest.mark.parametrize("cap", [".nan", "-1", "null", ".inf", "lots"])
@pytest.mark.parametrize("key", ["max_cost_usd", "max_cost_usd_per_month"])
def test_a_cap_that_is_no_amount(case: Case, key: str, cap: str) -> None:
    if key == "max_cost_usd_per_month" and cap == "null":
        return  # no cap per month: the run's own is enough
    case.shard()
    refused(case.score(f"strong.{key}={cap}"), 2, f"strong.{key}")


@pytest.mark.parametrize("key", ["requests_per_minute", "tokens_per_minute", "concurrency"])
@pytest.mark.parametrize("rate", ["0", "-1", "null", ".nan", "2.5"])
def test_a_rate_that_is_none(case: Case, key: str, rate: str) -> None:
    case.shard()
    refused(case.score(f"strong.{key}={rate}"), 2, f"strong.{key}")


def test_no_cap(case: Case) -> None:
    case.shard()
    del case.document["strong"]["max_cost_usd"]
    refused(case.score(), 2, "strong.max_cost_usd", "no run without a cap")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(["route.fraction=1.01"], "route.fraction"), (["route.fraction=-1"], "route.fraction"),
     (["route.threshold=0.5"], "goes with policy: threshold"),
     (["route.policy=threshold"], "route"), (["route.policy=best"], "route.policy"),
     (["route={policy: guarantee}"], "needs the key calibration"),
     (["route={policy: guarantee, calibration: /no/c.json}"], "there is no calibration here"),
     (["route={policy: budget}"], "needs the key budget_usd")],
)  # fmt: skip
def test_policies(case: Case, overrides: list[str], said: str) -> None:
    case.shard()
    refused(case.score(*overrides), 2, said)


def test_an_audit_by_a_column_that_is_missing(case: Case) -> None:
    case.shard(scenario=["a"] * 3)
    refused(
        case.score("route.audit=0.1", "route.audit_by=scenaro"), 3,
        "no such column for route.audit_by (did you mean scenario?)",
    )  # fmt: skip


def test_no_configuration(case: Case, tmp_path: Path) -> None:
    assert main(["score", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in case.capsys.readouterr().err


def test_an_output_of_an_unknown_kind(case: Case) -> None:
    case.shard()
    refused(case.score("output=ftp://host/x"), 2, "ftp://")


# -- a run that has begun --------------------------------------------------------------------------


def begun(case: Case) -> RunDirectory:
    """A run directory as a killed process leaves it."""
    path = case.shard()
    case.score("strong.max_cost_usd=lots")  # writes the YAML, begins nothing
    from ray_judge.run.plan import plan_input

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


def test_a_changed_input_file(case: Case) -> None:
    run = begun(case)
    path = case.shard(p_a=[0.7] * 3)
    refused(case.score(), 3, "changed", path)
    path.unlink()
    refused(case.score(), 3, "gone", path)
    assert run.judged(0) == set()


def test_a_second_process_on_the_same_directory(case: Case) -> None:
    run = begun(case)
    code = "from ray_judge.cli import entry_point; entry_point()"
    command = [sys.executable, "-c", code, "score", str(case.folder / "run.yaml")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with run.locked():
        second = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"another process works in this run directory (pid {os.getpid()}" in second.stderr


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
