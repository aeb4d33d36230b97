"""`ray job submit` against a real head: the same command, on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from tests.pipeline.conftest import Run, describe, pairs
from tests.provider import RunningServer, running_server

from .conftest import Head

ROOT = Path(__file__).resolve().parents[2]
ROWS = 24
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def strong() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, strong: RunningServer) -> Run:
    shards = pairs(ROWS // 2), pairs(ROWS // 2, first=ROWS // 2)
    changes = {"strong__api_key_env": "STRONG_KEY", "route__fraction": 0.25}
    return describe(tmp_path, strong, *shards, **changes)


def submit(head: Head, name: str, run: Run, *words: str) -> Any:
    """Submit jobs/score.py as its own first lines say."""
    done = head.ray(
        *("job", "submit", "--submission-id", name, "--working-dir", str(ROOT)),
        *("--", "python", "jobs/score.py", str(run.yaml), *words),
    )
    print(done.stdout, done.stderr, sep="\n")
    return done, JobSubmissionClient(head.url).get_job_info(name)


def test_a_submitted_run_is_scored(head: Head, run: Run) -> None:
    done, info = submit(head, "good", run)
    assert done.returncode == 0
    assert info.status == "SUCCEEDED"
    assert info.driver_exit_code == 0
    rows, summary = run.scored(), run.summary()
    assert rows.height == summary["rows"] == ROWS
    assert rows.filter(route="escalate").height == summary["api_requests"] == ROWS // 4
    assert rows["final_verdict"].null_count() == 0

    with pytest.raises(RuntimeError, match="already exists"):  # a free lock against two nights
        JobSubmissionClient(head.url).submit_job(entrypoint="true", submission_id="good")


def test_a_wrong_configuration_fails_the_job_with_our_code(head: Head, run: Run) -> None:
    done, info = submit(head, "bad", run, "--set", "route.fractoin=0.3")
    assert done.returncode == 1, "what Ray's own command ends with, whatever the job's code"
    assert info.status == "FAILED"
    assert info.driver_exit_code == 2
    assert "route.fraction" in done.stdout, "the log names the nearest known key"
