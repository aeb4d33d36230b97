"""The simulator in CI: some thousand nights, and the proof that it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .night import run_night, run_nights
from .variants import FOUND, VARIANTS

ROOT = Path(__file__).parents[2]
NIGHTS = int(os.environ.get("SIMULATOR_NIGHTS", "2000"))
"""`python -m tests.simulator --nights 100000` runs more of them."""
PARTS = 4

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_is_kept(part: int) -> None:
    """A failing seed is replayed by `python -m tests.simulator --seed N`."""
    each = NIGHTS // PARTS
    for report in run_nights(range(part * each, (part + 1) * each)):
        assert report.broken is None, f"seed {report.seed}: {report.broken}"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_variant_is_found_out(name: str) -> None:
    """Each mistake breaks a promise in one of the first 1,000 nights."""
    assert any(report.broken for report in run_nights(range(1000), VARIANTS[name]))


@pytest.mark.parametrize("name", FOUND)
def test_a_mistake_of_the_past_is_found_again(name: str) -> None:
    """What the simulator once found in the real code, put back."""
    seed, parts = FOUND[name]
    assert any(report.broken for report in run_nights(range(seed, seed + 1000), parts))
    assert run_night(seed).broken is None


@pytest.mark.parametrize("seed", [46269, 56724])
def test_nights_that_were_broken_once(seed: int) -> None:
    """56724: two runs that shared a journal folded it at once, under one file name."""
    assert run_night(seed).broken is None


def test_nights_are_worth_their_time() -> None:
    """What the nights go through: bills, crashes, questions that a crash had paid for twice."""
    reports = list(run_nights(range(100)))
    assert sum(report.bills for report in reports) > 300
    assert sum(report.crashes for report in reports) > 30
    assert sum(report.again for report in reports) > 10


def test_a_seed_replays_exactly() -> None:
    """In this process, and in another whose strings hash differently."""
    for seed in (3, 37, 110):
        digest = run_night(seed).digest()
        assert run_night(seed).digest() == digest
        printed = subprocess.run(
            [sys.executable, "-m", "tests.simulator", "--seed", str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.splitlines()[-1].endswith(f"trace {digest}")
        assert "sends" in printed


def test_the_command_names_the_first_failing_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--nights K --from S` ends at the first broken promise, with how to replay it."""
    from . import __main__ as command
    from . import night

    real = night.run_night

    def broken(seed: int, parts: object = None) -> night.Report:
        return real(seed, VARIANTS["journal not consulted"])

    monkeypatch.setattr(night, "run_night", broken)
    monkeypatch.setattr(sys, "argv", ["simulator", "--nights", "200", "--from", "5"])
    assert command.main() == 1
    assert "python -m tests.simulator --seed" in capsys.readouterr().out
