"""The simulator in CI: a fair sample of nights, and the proof that it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from . import __main__ as command
from . import night
from .night import run_night, run_nights
from .variants import FOUND_FROM, VARIANTS, ExcusingOracle

ROOT = Path(__file__).parents[2]
NIGHTS, PARTS = 1500, 6

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_is_kept(part: int) -> None:
    """A failing seed is replayed by `python -m tests.simulator --seed N`."""
    each = NIGHTS // PARTS
    for report in run_nights(range(part * each, (part + 1) * each)):
        assert report.broken is None, f"seed {report.seed}: {report.broken}"


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_every_promise_is_kept_in_a_hundred_thousand_nights() -> None:
    assert command.main(["--nights", "100000", "--jobs", str(os.cpu_count() or 1)]) == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_variant_is_found_out(name: str) -> None:
    first = FOUND_FROM.get(name, 0)
    nights = run_nights(range(first, first + 1000), VARIANTS[name])
    assert any(report.broken for report in nights)


def test_an_excuse_without_end_hides_a_mistake() -> None:
    """An oracle that excuses what a dead driver's processes did misses who asks at once."""
    name = "a successor asks at once"
    found = next(report for report in run_nights(range(1000), VARIANTS[name]) if report.broken)
    assert "asked twice" in str(found.broken)
    excusing = replace(VARIANTS[name], oracle=ExcusingOracle)
    assert run_night(found.seed, excusing).broken is None


def test_nights_are_worth_their_time() -> None:
    """What the nights go through: bills, crashes, questions that a crash had paid for twice."""
    reports = list(run_nights(range(100)))
    assert sum(report.bills for report in reports) > 300
    assert sum(report.crashes for report in reports) > 30
    assert sum(report.again for report in reports) > 10


def test_a_seed_replays_exactly() -> None:
    """In this process, and in another whose strings hash differently."""
    for seed in (3, 37, 110, 392, 2541):
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


def test_several_processes_give_the_same_nights(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for jobs in ("1", "2"):
        assert command.main(["--nights", "60", "--from", "40", "--jobs", jobs]) == 0
        said.append(capsys.readouterr().out.partition(";")[0])
    assert said[0] == said[1]
    assert "60 nights kept every promise" in said[0]


def test_the_command_names_the_first_failing_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, broken = night.run_night, VARIANTS["journal not consulted"]
    monkeypatch.setattr(night, "run_night", lambda seed, parts: real(seed, broken))
    assert command.main(["--nights", "200", "--from", "5"]) == 1
    assert "python -m tests.simulator --seed" in capsys.readouterr().out
