"""Running the provider in a process of its own."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.provider.config import ServerConfig

_ROOT = Path(__file__).resolve().parents[2]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback calls must not go through a proxy that the environment names."""


class RunningServer:
    """A provider's process: where it listens, and its own counts."""

    def __init__(self, base_url: str, api_key: str, pid: int) -> None:
        self.base_url, self.api_key, self.pid = base_url, api_key, pid

    def stats(self) -> dict[str, Any]:
        return dict(self._call("stats"))

    def bills(self) -> list[dict[str, Any]]:
        """Every bill, oldest first (see `bills.Bill`)."""
        return list(self._call("bills"))

    def reset(self) -> None:
        """Forget all requests, bills and counts; the settings stay."""
        self._call("reset")

    def clean(self, **settings: Any) -> None:
        """Forget all requests, bills and counts, and all settings of the start but for these.

        The key is a new one: who has the old one, from an earlier test, is let in no more.
        """
        self.api_key = f"sim-{secrets.token_hex(8)}"
        self._call("clean", api_key=self.api_key, **settings)

    def configure(self, **settings: Any) -> None:
        """Change settings in mid-run, e.g. `configure(quota_usd=0)`."""
        self._call("configure", **settings)

    def batches(self) -> list[dict[str, Any]]:
        return list(self._call("batches"))

    def advance_batch(self, batch_id: str) -> dict[str, Any]:
        """Move a batch one status on; nothing else does."""
        return dict(self._call("advance_batch", batch_id=batch_id))

    def _call(self, name: str, **body: Any) -> Any:
        url = f"{self.base_url.removesuffix('/v1')}/control/{name}"
        request = urllib.request.Request(url, json.dumps(body, default=str).encode())
        try:
            with _DIRECT.open(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode("utf-8", "replace")) from None


@contextmanager
def running_server(**settings: Any) -> Iterator[RunningServer]:
    """A provider in a process of its own, which ends when this one does.

    It has a session of its own: killing the process group of a client leaves it alive.
    """
    config = ServerConfig(**settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.provider"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        start_new_session=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        told = {**config.model_dump(mode="json"), "api_key": config.api_key}
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()  # and stays open: its end tells the process that we are gone
        try:
            base_url = process.stdout.readline().strip()
            assert base_url, "the provider did not start; standard error says why"
            yield RunningServer(base_url, config.api_key, process.pid)
        finally:
            process.kill()
