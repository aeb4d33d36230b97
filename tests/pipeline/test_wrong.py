"""What is wrong, or looks so, where a run is started (see tests/unit/test_wrong.py)."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray_judge.cluster import check_cluster
from ray_judge.errors import RayJudgeError
from tests.conftest import free_ports
from tests.provider import RunningServer

from .conftest import ROOT, describe, pairs

OURS = re.compile(r" *\d+\.\d s · ")
COMMAND = "from ray_judge.cli import entry_point; entry_point()"


def test_a_run_on_a_ray_of_its_own_says_what_is_ours_and_imports_what_is_meant(
    tmp_path: Path, server: RunningServer
) -> None:
    """The working directory has modules of the same names as those that the workers import."""
    run = describe(tmp_path, server, pairs(60))
    for name in ("openai.py", "polars.py", "pyarrow.py", "statistics.py", "random.py", "ray.py"):
        (run.folder / name).write_text("raise ImportError('not this one')\n")
    unset = ("RAY_ADDRESS", "RAY_worker_niceness")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-P", "-c", COMMAND, "score", str(run.yaml)]  # -P: as the script is
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": str(ROOT)}, cwd=run.folder,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == run.summary()
    strange = [line for line in done.stderr.splitlines() if not OURS.match(line)]
    assert not strange


@pytest.mark.parametrize("kind", ["nobody", "somebody else", "no such host"])
def test_an_address_where_no_ray_answers(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Ray itself would try for a quarter of an hour."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray_judge.cluster.ANSWERS_WITHIN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1] if kind == "somebody else" else free_ports(1)[0]
        address = f"{'no.such.invalid' if kind == 'no such host' else '127.0.0.1'}:{port}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RayJudgeError, match="no Ray cluster answers at this address") as caught:
            check_cluster()
    assert caught.value.where == {"address": address}
    assert ("something else listens" in str(caught.value)) == (kind == "somebody else")
