"""What the unit tests share: the simulated provider, and object storage by its real protocol."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.provider import RunningServer, ServerConfig, running_server

STARTS_WITHIN_S = 60
NEEDED = ("boto3", "moto", "obstore")


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    """One provider for the tests of a module."""
    with running_server() as server:
        yield server


@pytest.fixture
def server(process: RunningServer) -> RunningServer:
    """The module's provider with default settings and empty books."""
    defaults = ServerConfig().public()
    del defaults["api_key"]
    process.configure(**defaults)
    process.reset()
    return process


@pytest.fixture(scope="session")
def s3_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a server in a process of its own: within ours its globals break vLLM's start."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=out,
        )
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    try:
        _wait_for(port, server, log)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="nights")
            yield "s3://nights"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"moto did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        else:
            return
