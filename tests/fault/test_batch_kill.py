"""Batch mode, killed before every write and every request: no batch twice, no answer twice."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from ray_judge.errors import PausedError
from tests.provider import RunningServer

from .batch_night import CrashAt, Night, end

DEAD = "ignore:unclosed file:ResourceWarning"  # the dead close nothing
pytestmark = pytest.mark.filterwarnings(DEAD)


def test_killed_at_every_step(tmp_path: Path, server: RunningServer) -> None:
    """Before every write and every request there is; a successor goes on."""
    step, crash = 0, CrashAt()
    while step == 0 or crash.crashed:
        server.reset()
        night, crash = Night(tmp_path / str(step), server), CrashAt(step)
        assert night.crashes(crash) == crash.crashed
        night.run()
        night.check(billed=12)
        assert night.outcomes() == {"resolved": 12}, crash.steps
        assert len(server.batches()) == 2, "as many as without the kill"
        step += 1
    asked = Counter(name.partition(" ")[0] for name in crash.steps)
    assert asked["upload"] == asked["download"] == 2
    assert step == len(crash.steps) + 1 > 30


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(tmp_path: Path, server: RunningServer, seed: int) -> None:
    """Each process gets a few steps further, or not; lines are lost and refused on the way."""
    refused = {"kind": "server_error", "requests": [2], "scope": "batch"}
    lost = {"kind": "malformed_json", "probability": 0.3, "scope": "batch"}
    server.configure(faults=[refused, lost], fault_seed=seed)
    night, chance = Night(tmp_path, server, 20, reasks=2), random.Random(seed)
    for _ in range(100):
        if not night.crashes(CrashAt(chance.randrange(25))):
            break
    else:
        night.run()
    asked_again = sum(not answer.final for answer in night.journal().rows if answer.usage)
    times = Counter(bill["canonical"] for bill in server.bills())
    night.check(twice=sum(count > 1 for count in times.values()), billed=20 + asked_again)
    assert max(times.values()) <= 3


def test_the_money_of_a_pending_batch_is_taken_once(tmp_path: Path, server: RunningServer) -> None:
    """Nights of crashes while a batch is pending: its lease is neither doubled nor lost."""
    night = Night(tmp_path, server)
    night.clock.meanwhile = lambda: None
    assert night.crashes(CrashAt(name="retrieve"))
    settled, promised = night.books.recorded()
    assert settled == 0 < promised
    night.document["strong"]["batch"]["wait_s"] = 60
    for _ in range(3):
        with pytest.raises(PausedError, match="batch pending: 0 of 12 requests done"):
            night.run()
        assert night.books.recorded() == (0, promised)
    end(server)
    night.run()
    night.check(billed=12)
    assert server.stats()["batch_creations"] == 2
