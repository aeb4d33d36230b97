"""Running the provider in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.provider.config import ServerConfig

_ROOT = Path(__file__).resolve().parents[2]
_STARTS_WITHIN_S = 60.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback calls must not go through a proxy that the environment names."""


class RunningServer:
    """A provider's process: where it listens, and its own counts."""

    def __init__(self, base_url: str, api_key: str, process: subprocess.Popen[str]) -> None:
        self.base_url, self.api_key, self.pid = base_url, api_key, process.pid
        self._process = process

    def stats(self) -> dict[str, Any]:
        return self._call("GET", "stats")

    def bills(self) -> list[dict[str, Any]]:
        """Every bill, oldest first (see `bills.Bill`)."""
        bills: list[dict[str, Any]] = self._call("GET", "bills")["bills"]
        return bills

    def reset(self) -> None:
        self._call("POST", "reset")

    def configure(self, **settings: Any) -> dict[str, Any]:
        """Change settings in mid-run, e.g. `configure(quota_exhausted=True)`; gives all of them."""
        return self._call("PATCH", "config", settings)

    def batches(self) -> list[dict[str, Any]]:
        batches: list[dict[str, Any]] = self._call("GET", "batches")["data"]
        return batches

    def advance_batch(self, batch_id: str) -> dict[str, Any]:
        """Move a batch one status on, whatever its durations."""
        return self._call("POST", f"batches/{batch_id}/advance")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body, default=str).encode()
        url = f"{self.base_url.removesuffix('/v1')}/control/{path}"
        request = urllib.request.Request(url, data, method=method)
        try:
            with _DIRECT.open(request, timeout=30) as answer:
                value: dict[str, Any] = json.load(answer)
                return value
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode("utf-8", "replace")) from None


def start_server(config: ServerConfig) -> RunningServer:
    """Start a provider's process, which ends when this one does.

    It has a session of its own: killing the process group of a client leaves it alive.
    """
    path = os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH")) if p)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.provider", "--config", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(config.with_secret_json() + "\n")
        process.stdin.flush()  # and stays open: its end tells the process that we are gone
        ready, _, _ = select.select([process.stdout], [], [], _STARTS_WITHIN_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            process.wait()
            errors.seek(0)
            raise RuntimeError(f"the provider did not start: {errors.read()[-2000:]}")
    base_url = json.loads(line)["base_url"]
    return RunningServer(base_url, config.api_key.get_secret_value(), process)


@contextmanager
def running_server(config: ServerConfig | None = None) -> Iterator[RunningServer]:
    server = start_server(config or ServerConfig())
    try:
        yield server
    finally:
        server.stop()
