"""What all tests share: a small local Ray, what real judges said, and no way out."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.provider import RunningServer, running_server

# How fast an example is drawn says how busy the machine is, nothing about the code.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")

ROOT = Path(__file__).resolve().parent.parent
STARTS_WITHIN_S = 200
CPUS = 4
"""Of the tests' Ray, on any machine: actors that hold every CPU would starve the readers."""

# Before Ray, vLLM or a hub is imported; the workers inherit it.
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("OPENAI_API_KEY", None)  # no test may find a way to spend money
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each worker would compile the project anew
os.environ.update(RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two of vLLM side by side would spin
# Ray's workers would run at priority 15: starved by whatever else the machine does.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: each worker has a Ray of its own, so more than a few gain nothing."""
    return min(4, os.cpu_count() or 1)


@pytest.fixture(scope="session")
def data() -> Path:
    """What real judges said, in numbers (see the README there)."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def texts_data() -> Path:
    """The folder of real texts that lies beside some checkouts."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout: texts of others are not shipped")
    return folder


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A list of made-up templates, as long as the real ones, which the pins name for this test."""
    from ray_judge.judging.formats import templates as module

    entries, pins = [], []
    for pin in module.PINS:
        places = "\n".join(f"[{name}]\n{{{name}}}" for name in pin.placeholders)
        words = " Feedback on \"A\" or 'B', which may be tied; no \\escape é.\n" * 20
        text = (pin.name + "\n" + places + words)[: pin.characters]
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        pins.append(replace(pin, literal_sha256=sha256))
        entries.append({"judge": pin.judge, "mode": pin.mode, "text": text})
    monkeypatch.setattr(module, "PINS", tuple(pins))
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.fixture(scope="session")
def provider() -> Iterator[RunningServer]:
    """The simulated provider's process; a test cleans its books before it uses it."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray for the whole session; the pipeline's `connected()` works on it."""
    import ray

    with temporary_folder() as folder:
        start_ray(folder)
        yield
        ray.shutdown()


def start_ray(folder: Path, tries: int = 4) -> None:
    """Start Ray. It gives its own processes 30 s, which a busy machine may not have for them."""
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                num_cpus=CPUS,
                include_dashboard=False,
                _temp_dir=str(folder),
                log_to_driver=False,
                logging_level="WARNING",
            )
        except Exception:  # a bare one says "timed out during startup"
            ray.shutdown()
            if not left:
                raise
        else:
            return


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A short-lived folder under /tmp, removed whatever still writes into it."""
    path = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], *, tries: int = 1, **options: Any
) -> Iterator[None]:
    """Start a server in a session of its own, and end it and all that it started."""
    process = _start(command, log, ready, tries, options)
    try:
        yield
    finally:
        _stop(process)


def _start(
    command: list[str], log: Path, ready: Callable[[], bool], tries: int, options: dict[str, Any]
) -> subprocess.Popen[bytes]:
    for _ in range(tries):
        with log.open("w") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, start_new_session=True, **options
            )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while process.poll() is None and time.monotonic() < deadline:
            if ready():
                return process
            time.sleep(0.2)
        _stop(process)
    pytest.fail(f"{command[:4]} did not start:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
