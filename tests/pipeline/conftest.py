"""One Ray session and one simulated provider for all pipeline tests; each test gets its own run."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_judge.cli import main
from tests.provider import RunningServer
from tests.unit import builders
from tests.unit.builders import FAST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def ray_session(ray_cluster: None) -> str:
    """The address of the tests' cluster, for other processes."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


@pytest.fixture
def server(provider: RunningServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    """The provider with clean books and default settings, and its key in the environment."""
    provider.clean()
    monkeypatch.setenv("OPENAI_API_KEY", provider.api_key)
    return provider


@dataclass
class Run:
    """One run: its configuration, and what came of it."""

    folder: Path
    server: RunningServer
    document: dict[str, Any]
    output: Path
    said: str = ""
    """What `score` wrote to stderr, the last time."""

    @property
    def yaml(self) -> Path:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.document))
        return path

    def words(self, overrides: Sequence[str]) -> list[str]:
        sets = [word for override in overrides for word in ("--set", override)]
        return ["score", str(self.yaml), "--quiet", *sets]

    def command(self, name: str, *words: str) -> str:
        return command(name, str(self.yaml), "--quiet", *words)

    def score(self, *overrides: str) -> int:
        """Run `ray-judge score` in this process; gives its exit code."""
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(self.words(overrides))
        self.said = said.getvalue()
        print(self.said)  # pytest shows it where a test failed
        return code

    def start(self, address: str | None, *overrides: str) -> subprocess.Popen[str]:
        """Begin `ray-judge score` in another process, on this cluster or one of its own."""
        code = "from ray_judge.cli import entry_point; entry_point()"
        others = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        there = {"RAY_ADDRESS": address} if address else {}
        key, there = {"OPENAI_API_KEY": self.server.api_key}, {**there, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", code, *self.words(overrides)],
            env={**key, **others, **there},
            text=True, cwd=self.folder, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def scored(self) -> pl.DataFrame:
        """All scored rows, shard after shard."""
        return pl.concat([pl.read_parquet(path) for path in self.scored_paths()])

    def scored_paths(self) -> list[Path]:
        return sorted((self.output / "scored").rglob("*.parquet"))

    def summary(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        return document

    def progress(self) -> str:
        """What the run says of itself while it works; empty before it does."""
        path = self.output / "progress.json"
        return path.read_text() if path.exists() else ""

    def outcomes(self) -> dict[str, int]:
        return {name: count for name, count in self.summary()["outcomes"].items() if count}

    def everything(self) -> dict[str, tuple[int, str]]:
        """Every file of the run directory: when it was written, and what is in it."""
        return {
            str(path.relative_to(self.output)): (
                path.stat().st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in sorted(self.output.rglob("*"))
            if path.is_file()
        }

    def check_costs(self) -> Decimal:
        """The rows' costs, the summary and the cap agree, to the nano-dollar; gives the sum."""
        name = "strong_cost_usd"
        tables = [pq.read_table(path, columns=[name]) for path in self.scored_paths()]
        costs = [cost for table in tables for cost in table[name].to_pylist() if cost is not None]
        total = sum(costs, Decimal(0))
        summary = self.summary()
        assert total == Decimal(str(summary["spent_usd"])).quantize(Decimal("1e-9"))
        assert total <= Decimal(str(summary["cap_usd"]))
        return total


def command(*words: str) -> str:
    """Run `ray-judge WORDS`, which must end well, in this process; gives what it said."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*words]) == 0
    return said.getvalue()


def answer_with(server: RunningServer, folder: Path, rows: pl.DataFrame) -> None:
    """Let the strong judge say what stands in the column `verdict`."""
    path = folder / f"answers{len(list(folder.glob('answers*')))}.json"
    rows.select("instruction", "response_a", "response_b", "verdict").write_json(path)
    server.configure(truth=str(path))


pairs = builders.pairs
Runs = Callable[..., Run]


@pytest.fixture
def runs(tmp_path: Path, server: RunningServer, ray_session: str) -> Runs:
    """Make runs on the shared cluster against the shared provider."""
    return partial(describe, tmp_path, server)


def describe(place: Path, server: RunningServer, *shards: pa.Table, **changes: Any) -> Run:
    """Write the shards and describe a run over them; `strong__swap=True` sets one key."""
    folder = place / f"run{len(list(place.glob('run*')))}"
    (folder / "in").mkdir(parents=True)
    for number, table in enumerate(shards):
        pq.write_table(table, folder / "in" / f"part-{number:03d}.parquet")
    given = {
        "input": str(folder / "in"),
        "output": str(folder / "out"),
        "chunk_rows": 50,
        "route__fraction": 0.5,
        "strong": {"model": "gpt-4.1", "max_cost_usd": 5, "base_url": server.base_url, **FAST},
    }
    if "judges" in changes:
        given["judge"] = ...
    return Run(folder, server, builders.document(**{**given, **changes}), folder / "out")
