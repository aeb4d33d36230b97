"""A real Ray head of the test's own: its ports, its folder, its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import free_ports, running, temporary_folder

PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "runtime-env-agent-port", "ray-client-server-port"),
)
STARTED = "Ray runtime started"


@dataclass(frozen=True)
class Head:
    """A running head node: where jobs are submitted, and the environment that finds `ray`."""

    url: str
    environment: Mapping[str, str]

    def ray(self, *words: str, timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
        """Run `ray WORDS` against this head."""
        env = {**self.environment, "RAY_API_SERVER_ADDRESS": self.url}
        return subprocess.run(
            ["ray", *words], env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start `ray start --head --block`, wait until it takes jobs, end it and all it started."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    log = tmp_path_factory.mktemp("head") / "log"
    with temporary_folder() as home:
        environment = {
            # Of a Ray that this process has joined nothing may reach the head.
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "STRONG_KEY": "sim-key",  # on the head, as on a real one; never in a runtime_env
        }
        command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats",
                   "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
                   f"--temp-dir={home}/ray",
                   *(f"--{name}={port}" for name, port in ports.items())]  # fmt: skip
        # Ray gives its own processes 30 s, which a busy machine may not have.
        with running(command, log, lambda: STARTED in log.read_text(), tries=3, env=environment):
            yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
        print(log.read_text()[-3000:])  # pytest shows it where a test failed
