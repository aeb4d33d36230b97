"""Two runs of `kill.py`: each kind of process is killed once, in the middle of asking.

python -m tests.fault.kill --runs 100 --rows 2000      is the whole of it
"""

import random
from collections.abc import Iterator

import pytest

from tests.provider import running_server

from .kill import LATENCY, VICTIMS, Nights, draw

pytestmark = pytest.mark.timeout(600)
KILLS = {
    "governor": [("governor", 100)],
    "driver and then its successor's asker": [("driver", 40), ("asker", 150)],
}


@pytest.fixture(scope="module")
def nights(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    with running_server(latency=LATENCY) as server:
        yield Nights.of(tmp_path_factory.mktemp("kill"), server, 200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(KILLS)), ids=KILLS)
def test_killed_and_continued(nights: Nights, seed: int) -> None:
    """Under a cap without one cent to spare, or under one that is never reached."""
    kills = [*KILLS.values()][seed]
    night = nights.kill(seed, kills)
    assert night.victims == [victim for victim, _ in kills]
    starts = 1 + night.victims.count("driver")
    assert night.starts == starts, "a session that lost an actor goes on without its driver's death"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 22))
def test_many(nights: Nights, seed: int) -> None:
    nights.kill(seed)


def test_the_full_size_kills_everybody() -> None:
    plans = [draw(random.Random(seed), 2000) for seed in range(100)]
    victims = [victim for plan in plans for victim, _ in plan]
    assert all(victims.count(kind) > 30 for kind in VICTIMS)
    assert sum(len(plan) > 1 for plan in plans) > 20
    bills = [after for plan in plans for _, after in plan]
    assert min(bills) < 100 and max(bills) > 1800
