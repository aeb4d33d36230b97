"""One Ray session and one simulated provider for all pipeline tests; each test gets its own run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_judge.cli import main
from tests.provider import RunningServer, running_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def ray_session(ray_cluster: None) -> str:
    """The address of the tests' cluster, for other processes."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


@pytest.fixture(scope="session")
def provider() -> Iterator[RunningServer]:
    """The simulated provider's process."""
    with running_server() as server:
        yield server


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
    said: list[str] = field(default_factory=list)

    @property
    def yaml(self) -> Path:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.document))
        return path

    def score(self, *overrides: str, capsys: pytest.CaptureFixture[str] | None = None) -> int:
        """Run `ray-judge score` in this process; gives its exit code."""
        sets = [word for override in overrides for word in ("--set", override)]
        code = main(["score", str(self.yaml), "--quiet", *sets])
        if capsys is not None:
            self.said.append(capsys.readouterr().err)
        return code

    def command(self, *overrides: str) -> list[str]:
        """The same as a command line of another process."""
        sets = [word for override in overrides for word in ("--set", override)]
        code = "from ray_judge.cli import entry_point; entry_point()"
        return [sys.executable, "-c", code, "score", str(self.yaml), "--quiet", *sets]

    def start(self, address: str, *overrides: str) -> subprocess.Popen[str]:
        """Begin `ray-judge score` in another process, on the cluster of the tests."""
        env = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            self.command(*overrides), env=env, text=True, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def scored(self) -> pl.DataFrame:
        """All scored rows, shard after shard."""
        return pl.concat([pl.read_parquet(path) for path in self.scored_paths()])

    def scored_paths(self) -> list[Path]:
        return sorted((self.output / "scored").rglob("*.parquet"))

    def summary(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        return document

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


def pairs(rows: int, *, first: int = 0, **columns: Sequence[Any] | pa.Array) -> pa.Table:
    """Pairs with the probabilities of a judge that has run: the higher the row, the surer."""
    numbers = range(first, first + rows)
    p_a = [0.5 + (n % 97) / 200 for n in numbers]
    data: dict[str, Any] = {
        "instruction": [f"Write down the number {n}." for n in numbers],
        "response_a": [f"{n}" for n in numbers],
        "response_b": [f"perhaps {n + 1}" for n in numbers],
        "p_a": p_a,
        "p_b": [1 - p for p in p_a],
        **columns,
    }
    return pa.table(data)


class Runs:
    """Makes runs: a folder with shards, a configuration, an output."""

    def __init__(self, folder: Path, server: RunningServer) -> None:
        self._folder = folder
        self._server = server
        self._count = 0

    def __call__(self, *shards: pa.Table, source: Path | None = None, **changes: Any) -> Run:
        """Write the shards and describe a run over them; `strong__swap=True` sets one key."""
        self._count += 1
        folder = self._folder / f"run{self._count}"
        folder.mkdir()
        if source is None:
            source = folder / "in"
            source.mkdir()
            for number, table in enumerate(shards):
                pq.write_table(table, source / f"part-{number:03d}.parquet")
        document: dict[str, Any] = {
            "input": str(source),
            "output": str(folder / "out"),
            "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
            "route": {"policy": "fraction", "fraction": 0.5},
            "strong": {
                "model": "gpt-4.1",
                "max_cost_usd": 5,
                "base_url": self._server.base_url,
                "requests_per_minute": 600_000,
                "tokens_per_minute": 600_000_000,
                "concurrency": 16,
            },
            "chunk_rows": 50,
        }
        for path, value in changes.items():
            *parents, last = path.split("__")
            node = document
            for parent in parents:
                node = node[parent]
            node[last] = value
        return Run(folder, self._server, document, folder / "out")


@pytest.fixture
def runs(tmp_path: Path, server: RunningServer, ray_session: str) -> Runs:
    """Make runs on the shared cluster against the shared provider."""
    return Runs(tmp_path, server)
