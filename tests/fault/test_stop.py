"""Runs that are told to stop at random instants, by Ctrl-C or SIGTERM, and continued to the end.

`tests/pipeline/test_resume.py` tells a run to stop in each of its phases; this is the full size.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import load
from ray_judge.escalation.books.books import Books

from .kill import described, finish, rows_of, write_pairs
from .plain import PlainServer, Said, completion, plain_server

ROWS = 300
RUN_S = 25
"""About so long a run takes that starts a Ray of its own."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def slow_answers(rng: random.Random) -> Any:
    return lambda body, number: Said(completion(), wait_s=rng.uniform(0.1, 0.5))


def tell(process: subprocess.Popen[str], server: PlainServer, seed: int, *, whole: bool) -> None:
    """Send SIGINT or SIGTERM: after so many requests, or at any instant of a `whole` run.

    A terminal sends Ctrl-C to the whole group, with the processes of a Ray that the run started.
    """
    rng, told = random.Random(seed), (signal.SIGINT, signal.SIGTERM)[seed % 2]
    requests, at = rng.randrange(ROWS), time.monotonic() + rng.random() * RUN_S
    while process.poll() is None:
        if time.monotonic() >= at if whole else len(server.requests) > requests:
            group = told is signal.SIGINT and rng.random() < 0.5
            (os.killpg if group else os.kill)(process.pid, told)
            return
        time.sleep(0.005)  # a poll of other processes, not a guess at their speed


@pytest.mark.parametrize("seed", range(100))
def test_told_to_stop_and_continued(ray_cluster: None, tmp_path: Path, seed: int) -> None:
    """It ends soon with one sentence; nothing is billed twice or unproven, and all completes."""
    import ray

    write_pairs(tmp_path / "in", ROWS)
    with plain_server(slow_answers(random.Random(seed))) as server:
        whole = seed % 4 > 1
        address = None if whole else ray.get_runtime_context().gcs_address
        run = described(tmp_path / "run", server)  # type: ignore[arg-type]
        process = run.start(address)
        tell(process, server, seed, whole=whole)
        _, said = process.communicate(timeout=25)
        books = Books.of(load(run.yaml))
        assert books.recorded() == (server.usd, 0) and set(server.billed.values()) <= {1}
        # While Ray's core ends it, SIGTERM does what it does to any process: all is done by then.
        killed = process.returncode == -signal.SIGTERM and (run.output / "summary.json").exists()
        assert killed or process.returncode in (0, 130), said
        assert process.returncode != 130 or said.count("\n") == 1, said
        assert not said or said.endswith("the same command continues\n")
        finish(run, address)
        assert books.recorded() == (server.usd, 0) and list(server.billed.values()) == [1] * ROWS
        assert rows_of(run)["outcome"].unique().to_list() == ["resolved"]
