"""`ray job submit` against a real head: the same command, on a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from tests.provider import RunningServer, running_server

ROOT = Path(__file__).resolve().parents[2]
ROWS = 24
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def strong() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, strong: RunningServer) -> dict[str, Any]:
    """A run over two tiny shards whose judge has already run."""
    (tmp_path / "pairs").mkdir()
    for shard in range(2):
        numbers = range(shard * ROWS // 2, (shard + 1) * ROWS // 2)
        pl.DataFrame(
            {
                "instruction": [f"Say {n}." for n in numbers],
                "response_a": [f"{n}" for n in numbers],
                "response_b": [f"not {n}" for n in numbers],
                "p_a": [0.5 + n / (2 * ROWS) for n in numbers],
                "p_b": [0.5 - n / (2 * ROWS) for n in numbers],
            }
        ).write_parquet(tmp_path / "pairs" / f"part-{shard}.parquet")
    return {
        "input": str(tmp_path / "pairs"),
        "output": str(tmp_path / "run"),
        "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
        "route": {"policy": "fraction", "fraction": 0.25},
        "strong": {
            "model": "gpt-4.1",
            "base_url": strong.base_url,
            "api_key_env": "STRONG_KEY",
            "max_cost_usd": 1,
        },
    }


def submit(head: Any, name: str, document: dict[str, Any], folder: Path, *words: str) -> Any:
    """Submit jobs/score.py as its own first lines say."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(document))
    done = head.ray(
        *("job", "submit", "--submission-id", name, "--working-dir", str(ROOT)),
        *("--", "python", "jobs/score.py", str(config), *words),
    )
    print(done.stdout, done.stderr, sep="\n")
    return done, JobSubmissionClient(head.url).get_job_info(name)


def test_a_submitted_run_is_scored(head: Any, run: dict[str, Any], tmp_path: Path) -> None:
    done, info = submit(head, "good", run, tmp_path)
    assert done.returncode == 0
    assert info.status == "SUCCEEDED"
    assert info.driver_exit_code == 0
    rows = pl.read_parquet(tmp_path / "run" / "scored" / "*.parquet")
    assert rows.height == ROWS
    assert rows.filter(route="escalate").height == ROWS // 4
    assert rows["final_verdict"].null_count() == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"] == ROWS
    assert summary["api_requests"] == ROWS // 4

    with pytest.raises(RuntimeError, match="already exists"):  # a free lock against two nights
        JobSubmissionClient(head.url).submit_job(entrypoint="true", submission_id="good")


def test_a_wrong_configuration_fails_the_job_with_our_code(
    head: Any, run: dict[str, Any], tmp_path: Path
) -> None:
    done, info = submit(head, "bad", run, tmp_path, "--set", "route.fractoin=0.3")
    assert done.returncode == 1, "what Ray's own command ends with, whatever the job's code"
    assert info.status == "FAILED"
    assert info.driver_exit_code == 2
    assert "route.fraction" in done.stdout, "the log names the nearest known key"
