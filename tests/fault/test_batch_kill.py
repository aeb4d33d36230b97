"""Batch mode, killed at every step: no batch twice, no answer twice, no dollar over the cap."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from tests.provider import RunningServer

from .batch_night import BY_ITSELF, CrashAt, Night

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]

ONE_BATCH = [
    "intent", "granted", "leased", "stored", "uploaded", "creating", "created", "submitted",
]  # fmt: skip
READ = ["downloaded", "appended", "journal", "booked", "settled", "read"]
TWO_BATCHES = ONE_BATCH * 2 + READ * 2
"""The steps of the run of these tests, one after the other."""
STEPS = [*range(8), 8, 13, 14, *range(16, 22), 24, 27]
"""Every step of the first batch, and some of the second."""


def test_an_undisturbed_run_takes_these_steps(tmp_path: Path, server: RunningServer) -> None:
    night, steps = Night(tmp_path, server), CrashAt()
    assert not night.crashes(steps)
    assert steps.steps == TWO_BATCHES
    night.check()


@pytest.mark.parametrize("step", STEPS, ids=lambda n: f"{n}-{TWO_BATCHES[n]}")
def test_killed_at_every_step(tmp_path: Path, server: RunningServer, step: int) -> None:
    night = Night(tmp_path, server)
    assert night.crashes(CrashAt(step))
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 12}
    stats = server.stats()
    assert stats["billed"] == 12
    assert len(server.batches()) == 2, "as many as without the kill"
    assert stats["batch_creations"] == 2


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again(tmp_path: Path, server: RunningServer, seed: int) -> None:
    """Each process gets a few steps further, or not; lines are lost and refused on the way."""
    faults = [{"kind": "malformed_json", "scope": "batch", "probability": 0.3}]
    server.configure(faults=faults, fault_seed=seed, batches={"fail_lines": [2]})
    night, chance = Night(tmp_path, server, 20, reasks=2), random.Random(seed)
    for _ in range(200):
        if not night.crashes(CrashAt(chance.randrange(12))):
            break
    else:
        night.run()
    asked_again = sum(not answer.final for answer in night.journal().rows)
    times = Counter(bill["canonical"] for bill in server.bills())
    night.check(twice=sum(count > 1 for count in times.values()))
    assert server.stats()["billed"] == 20 + asked_again
    assert max(times.values()) <= 3


def test_the_answer_to_the_creation_is_lost(tmp_path: Path, server: RunningServer) -> None:
    """The batch exists: it is found by its metadata, in the same process or in the next."""
    faults = [{"kind": "reset_after", "calls": [1]}, {"kind": "error_after", "calls": [2]}]
    server.configure(batches={"create_faults": faults})
    night = Night(tmp_path, server)
    night.run()
    night.check()
    assert server.stats()["batch_creations"] == len(server.batches()) == 2
    assert night.clock.slept < 60, "what the list shows needs no patience"


def test_killed_before_the_lost_creation_was_looked_for(
    tmp_path: Path, server: RunningServer
) -> None:
    server.configure(batches={"create_faults": [{"kind": "reset_after", "calls": [1]}]})
    night = Night(tmp_path, server)
    assert night.crashes(CrashAt(name="unknown"))
    night.run()
    night.check()
    assert server.stats()["batch_creations"] == len(server.batches()) == 2


def test_a_creation_that_never_arrived(tmp_path: Path, server: RunningServer) -> None:
    """Looked for with patience, then fenced by deleting its file, then asked in another batch."""
    faults = [{"kind": "reset_before", "calls": [1]}, {"kind": "error_before", "calls": [2]}]
    server.configure(batches={"create_faults": faults})
    night = Night(tmp_path, server)
    night.run()
    night.check()
    assert night.clock.slept >= 120
    stats = server.stats()
    assert stats["batch_creations"] == 4 and len(server.batches()) == 2
    inputs = {batch["input_file_id"] for batch in server.batches()}
    abandoned = [state for state in night.states() if state.stage == "abandoned"]
    assert len(abandoned) == 2
    assert not inputs & {state.file for state in abandoned}


def test_a_creation_in_flight_when_its_process_died(tmp_path: Path, server: RunningServer) -> None:
    """It arrives after its successor had looked for it in vain: its file is gone, so it fails."""
    from ray_judge.escalation.client import BatchClient, RequestFailed

    night = Night(tmp_path, server)
    assert night.crashes(CrashAt(name="creating"))
    (late,) = night.states()
    night.run()
    client = BatchClient(night.config.strong, server.api_key)
    with pytest.raises(RequestFailed, match="404"):
        client.create(str(late.file), {"ray_judge_submission": late.id})
    client.close()
    night.check()


def test_found_behind_a_hundred_other_batches(tmp_path: Path, server: RunningServer) -> None:
    from ray_judge.escalation.client import BatchClient

    night = Night(tmp_path, server, 3)
    assert night.crashes(CrashAt(name="created"))
    client = BatchClient(night.config.strong, server.api_key)
    file = client.upload("other.jsonl", b"")
    for number in range(130):
        client.create(file, {"somebody": str(number)})
    client.close()
    night.run()
    assert server.stats()["batch_creations"] == 131
    assert night.outcomes() == {"resolved": 3}


def test_the_money_of_a_pending_batch_is_taken_once(tmp_path: Path, server: RunningServer) -> None:
    """Nights of crashes while a batch is pending: its lease is neither doubled nor lost."""
    server.configure(batches={"manual": True})
    night = Night(tmp_path, server)
    assert night.crashes(CrashAt(step=len(ONE_BATCH) * 2 - 1))
    promised = night.money()[1]
    assert promised > 0
    night.document["strong"]["batch"]["wait_s"] = 60
    for _ in range(3):
        with pytest.raises(Exception, match="batch pending: 0 of 12 requests done"):
            night.run()
        assert night.money() == (Decimal(0), promised)
    for batch in server.batches():
        while server.advance_batch(batch["id"])["status"] != "completed":
            pass
    night.run()
    night.check()
    assert server.stats()["batch_creations"] == 2


def start(night: Night, folder: Path) -> subprocess.Popen[str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(night.document))))
    command = [sys.executable, "-m", "tests.fault.batch_night", str(folder / "run.yaml")]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("last", ["created", "journal"])
def test_sigkill(tmp_path: Path, server: RunningServer, last: str) -> None:
    """A real process, killed between two steps; the next one goes on."""
    server.configure(batches=BY_ITSELF)
    night = Night(tmp_path, server, batch={"poll_s": 0.01, "max_requests": 12})
    process = start(night, tmp_path)
    assert process.stdout is not None and process.stdin is not None
    while (name := process.stdout.readline().strip()) != last:
        assert name, "the process ended by itself"
        process.stdin.write("\n")
        process.stdin.flush()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    night.run()
    night.check()
    assert server.stats()["batch_creations"] == len(server.batches()) == 1
    assert night.outcomes() == {"resolved": 12}
