"""One simulated provider for the tests of a module, with clean books for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.provider import RunningServer, running_server


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def server(process: RunningServer) -> Iterator[RunningServer]:
    process.clean()
    yield process
    assert "crashed" not in process.stats()["by_status"], "the provider has a defect of its own"
