"""A real Ray head of the test's own: its ports, its folder, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "runtime-env-agent-port", "ray-client-server-port"),
)
STARTS_WITHIN_S = 90
ATTEMPTS = 3


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
    with tempfile.TemporaryDirectory(prefix="rj-", dir="/tmp", ignore_cleanup_errors=True) as home:
        environment = {
            # Of a Ray that this process has joined nothing may reach the head.
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": home,
            "STRONG_KEY": "sim-key",  # on the head, as on a real one; never in a runtime_env
        }
        command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats",
                   "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
                   f"--temp-dir={home}/ray",
                   *(f"--{name}={port}" for name, port in ports.items())]  # fmt: skip
        process = None
        try:
            process = started(command, environment, log)
            yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
        finally:
            if process:
                stop(process)
            print(log.read_text()[-3000:])  # pytest shows it where a test failed


def started(
    command: list[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start the head. Ray gives its own processes 30 s, which a busy machine may not have."""
    for _ in range(ATTEMPTS):
        with log.open("w") as out:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline and process.poll() is None:
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.2)
        stop(process)
    pytest.fail(f"the Ray head did not start:\n{log.read_text()[-4000:]}")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the head; its processes are its own session, so nothing else can be met."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=8)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
