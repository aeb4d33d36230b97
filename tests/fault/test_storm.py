"""Small storms; `python -m tests.fault.storm --rows 5000` is the whole of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.provider import RunningServer, running_server

from .storm import run_storm


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """One of its own for each storm: late answers of the last one would be billed in the next."""
    with running_server() as server:
        yield server


@pytest.mark.parametrize("rows", [300, pytest.param(3000, marks=pytest.mark.long)])
def test_every_fault_at_once(tmp_path: Path, server: RunningServer, rows: int) -> None:
    storm = run_storm(tmp_path, server, rows, "200")
    storm.check()
    assert storm.starts > 1, "the account was empty in between"
    assert storm.outcomes["resolved"] > rows // 2


def test_every_fault_under_a_cap_that_binds(tmp_path: Path, server: RunningServer) -> None:
    """What was lost counts in full, so the cap ends the storm early, and holds."""
    storm = run_storm(tmp_path, server, 100, "0.1", seed=1)
    storm.check()
    assert storm.outcomes["denied_budget"] > 0 and storm.outcomes["resolved"] > 0
