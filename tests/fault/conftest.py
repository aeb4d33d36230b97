"""The simulated provider with clean books for each test."""

from collections.abc import Iterator

import pytest

from tests.provider import RunningServer


@pytest.fixture
def server(provider: RunningServer) -> Iterator[RunningServer]:
    provider.clean()
    yield provider
    assert "crashed" not in provider.stats()["by_status"], "the provider has a defect of its own"
