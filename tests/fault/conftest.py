"""One simulated provider for the tests of a module, with clean books for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.provider import RunningServer, running_server

from .batch_night import clean


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def server(process: RunningServer) -> RunningServer:
    clean(process)
    return process
