"""The simulated provider as batch nights want it: no batch comes to its end by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.provider import RunningServer

from .batch_night import clean, provider


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    """One provider for the tests of a module."""
    with provider() as server:
        yield server


@pytest.fixture
def server(process: RunningServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    """The module's provider with default settings and empty books, and its key."""
    monkeypatch.setenv("OPENAI_API_KEY", process.api_key)
    return clean(process)
