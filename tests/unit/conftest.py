"""What the unit tests share: the simulated provider."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.provider import RunningServer, running_server


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    """One provider for the tests of a module."""
    with running_server() as server:
        yield server


@pytest.fixture
def server(process: RunningServer) -> RunningServer:
    """The module's provider with default settings and empty books."""
    process.clean()
    return process
