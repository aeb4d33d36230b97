"""The simulator in CI: some thousand nights, and the proof that it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from .night import run_night, run_nights
from .variants import VARIANTS, ExcusingOracle

ROOT = Path(__file__).parents[2]
PARTS = 4
RARE = {
    "late bills of a lost lease",
    "late bills, looked at too late",
    "proven in the old month",
}
"""Mistakes around midnight that 1,000 nights seldom show: see docs/decisions/0013."""

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("nights", [1_200, pytest.param(100_000, marks=pytest.mark.long)])
def test_every_promise_is_kept(nights: int, part: int) -> None:
    """A failing seed is replayed by `python -m tests.simulator --seed N`."""
    each = nights // PARTS
    for report in run_nights(range(part * each, (part + 1) * each)):
        assert report.broken is None, f"seed {report.seed}: {report.broken}"


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - RARE))
def test_a_broken_variant_is_found_out(name: str) -> None:
    """Each mistake breaks a promise in one of the first 1,000 nights."""
    assert any(report.broken for report in run_nights(range(1000), VARIANTS[name]))


def test_an_oracle_that_excuses_whatever_orphans_do_finds_nothing() -> None:
    """What asks at once is found by the real oracle, and not by one that excuses orphans."""
    asks_at_once = VARIANTS["a successor asks at once"]
    found = next(report.seed for report in run_nights(range(1000), asks_at_once) if report.broken)
    assert run_night(found, replace(asks_at_once, oracle=ExcusingOracle)).broken is None


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
