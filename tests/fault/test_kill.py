"""Two runs of `kill.py`: each kind of process is killed once, in the middle of asking.

python -m tests.fault.kill --runs 100 --rows 2000      is the whole of it
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from tests.provider import RunningServer, running_server

from .kill import VICTIMS, Scored, check, draw, run_killed, server_config, undisturbed

pytestmark = pytest.mark.timeout(600)
ROWS = 200
KILLS = {
    "governor": [("governor", 100)],
    "driver and then its successor's asker": [("driver", 40), ("asker", 150)],
}


@dataclass
class Nights:
    """What all runs here share, and the output that each must come to."""

    folder: Path
    server: RunningServer
    address: str
    wanted: pl.DataFrame
    usd: str


@pytest.fixture(scope="module")
def nights(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    import ray

    folder, address = tmp_path_factory.mktemp("kill"), ray.get_runtime_context().gcs_address
    with running_server(server_config()) as server:
        whole = undisturbed(folder, server, address, ROWS)
        yield Nights(folder, server, address, whole.rows(), server.stats()["total_usd"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(KILLS)), ids=KILLS)
def test_killed_and_continued(nights: Nights, seed: int) -> None:
    """Under a cap without one cent to spare, or under one that is never reached."""
    name, kills = list(KILLS.items())[seed]
    nights.server.reset()
    cap = "5" if seed % 2 else nights.usd
    run = Scored(nights.folder / name.replace(" ", "-"), nights.server, nights.address, cap)
    night = run_killed(run, seed, ROWS, kills)
    check(night, run, nights.wanted)
    assert night.victims == [victim for victim, _ in kills]
    assert night.usd <= Decimal(cap)
    starts = 1 + night.victims.count("driver")
    assert night.starts == starts, "a session that lost an actor goes on without its driver's death"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_many(nights: Nights, seed: int) -> None:
    nights.server.reset()
    cap = "5" if seed % 2 else nights.usd
    run = Scored(nights.folder / f"run-{seed}", nights.server, nights.address, cap)
    check(run_killed(run, seed, ROWS), run, nights.wanted)


def test_the_full_size_kills_everybody() -> None:
    """A hundred seeds: each kind many times, early and late, and some runs more than once."""
    plans = [draw(random.Random(seed), 2000) for seed in range(100)]
    victims = [victim for plan in plans for victim, _ in plan]
    assert all(victims.count(kind) > 30 for kind in VICTIMS)
    assert sum(len(plan) > 1 for plan in plans) > 20
    bills = [after for plan in plans for _, after in plan]
    assert min(bills) < 100 and max(bills) > 1800
