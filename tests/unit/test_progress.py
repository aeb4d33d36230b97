"""What a run says that it does and waits for: the document, the line, `status`. No clock ticks."""

import io
import json
import logging
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from ray_judge.errors import ConfigError, EscalationError, PausedError, Stopped, StorageError
from ray_judge.escalation.processes import identity
from ray_judge.progress import Progress, Record, describe
from ray_judge.report.status import describe_now

PLAN = {"rows": 2000, "shards": 3}
ASKED = {"questions": 1500, "answered": 7, "denied": 1, "spent_usd": Decimal("0.25"), "cap_usd": 5}


class Run:
    """A record whose time is ours; `seen` and `files`: what it passed on, and kept."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.now, self.seen, self.files = 1000.0, list[Mapping[str, Any]](), list[dict[str, Any]]()
        self.full = False
        self.record = Record(
            lambda phase, document: self.seen.append(document), self.write,
            process=identity(), every_s=every_s, clock=lambda: self.now,
        )  # fmt: skip

    def write(self, document: bytes) -> None:
        if self.full:
            raise StorageError("disk full")
        self.files.append(json.loads(document))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.record.tick()


def test_the_document_has_the_figures_of_all_phases_and_what_each_waits_for() -> None:
    run = Run()
    run.record("plan", {**PLAN, "waits": "Ray starts"})
    assert run.seen[-1]["waits"] == ["Ray starts"] and run.files == []
    run.record("plan", PLAN)
    run.record("escalate", {**ASKED, "waits": "HTTP 429", "best_usd": {"run": 1}})
    run.record("judge", {"judged": 500, "to_judge": 2000, "waits": "the judge starts"})
    run.tick(1)
    kept = {**PLAN, **ASKED, "judged": 500, "to_judge": 2000, "spent_usd": 0.25}
    kept |= {"phase": "escalate", "began": 1000.0, "at": 1001.0, "process": identity()}
    assert run.files == [{**kept, "waits": ["HTTP 429", "the judge starts"]}]
    assert describe(run.seen[-1]) == (
        "waits: HTTP 429 · waits: the judge starts · 2,000 rows in 3 shards · judged 25% · "
        "answered 7 of 1,500 · spent $0.2500 of $5 · 1 denied by the cap"
    )
    run.record("judge", {"judged": 2000})
    run.record("escalate", {})
    assert run.seen[-1]["waits"] == []


def test_the_document_is_kept_at_most_so_often(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(every_s=30)
    for _ in range(100):
        run.tick(1)
    assert [file["at"] for file in run.files] == [1001, 1031, 1061, 1091]
    run.full = True
    for _ in range(200):
        run.tick(1)
    assert caplog.messages == ["the run's progress cannot be kept: disk full"] * 2
    assert len(run.seen) == 300, "it is passed on all the same"


@pytest.mark.parametrize(
    ("error", "phase", "said"),
    [
        (None, "done", "nobody works here: done 5 s ago"),
        (PausedError("the month is full"), "paused", "paused 5 s ago: the month is full"),
        (EscalationError("no such model"), "failed", "failed 5 s ago: no such model"),
        (ConfigError("no"), "failed", "failed 5 s ago: no"),
        (Stopped("told to"), "stopped", "nobody works here: stopped 5 s ago"),
        (KeyboardInterrupt(), "stopped", "nobody works here: stopped 5 s ago"),
    ],
)
def test_the_end_is_kept(error: BaseException | None, phase: str, said: str) -> None:
    run = Run(every_s=1e9)
    with run.record as record:
        record("escalate", {**PLAN, "waits": "HTTP 429"})
        record.__exit__(None, error, None)
        assert (run.files[-1]["phase"], run.files[-1]["waits"]) == (phase, [])
        assert describe_now(run.files[-1], run.now + 5, 2).endswith(said)


def test_a_document_that_is_old_does_not_mislead() -> None:
    at = {"phase": "judge", "at": 1000.0, "process": identity(), "waits": [], **PLAN}
    assert describe_now(None, 1003, 2).startswith("nothing")
    assert describe_now(at, 1003, 2) == "at work; 3 s ago: 2,000 rows in 3 shards"
    assert describe_now(at, 4600, 2).startswith("nobody was heard of for long")
    assert "3600 s ago" in describe_now(at, 4600, 2)
    dead = {**at, "process": identity().rpartition(".")[0] + ".1"}  # this pid, of another start
    assert describe_now(dead, 1003, 2).startswith("nobody works here: who did was killed; 3 s ago")


def test_bills_beyond_the_limits_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    for said in (None, "it billed $1 beyond", "it billed $2 beyond"):
        run.record("escalate", {"excess_said": said})
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.WARNING, "it billed $1 beyond")
    ]
    assert run.seen[-1]["excess_said"] == "it billed $2 beyond"


class Screen(io.StringIO):
    def __init__(self, *, live: bool) -> None:
        super().__init__()
        self.live = live

    def isatty(self) -> bool:
        return self.live

    def fileno(self) -> int:
        raise OSError("no terminal")


@pytest.mark.parametrize("live", [True, False])
def test_the_line_tells_what_is_waited_for(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal its own line has no room for it; in a pipe there is a line each 10 s."""
    monkeypatch.setattr(sys, "stderr", screen := Screen(live=live))
    monkeypatch.setattr("ray_judge.progress.width", lambda: 60)
    now = 0.0
    line = Progress(clock=lambda: now)
    cause = "https://x cannot be reached: self-signed certificate"
    for second in range(70):
        now = float(second)
        line("escalate", {**PLAN, "phase": "escalate", "waits": [cause]})
    line("paused", {**PLAN, "phase": "paused", "waits": []})
    rows = screen.getvalue().split("\n")
    told = [row for row in rows if cause in row]
    assert len(told) == (3 if live else 7) and "paused" in rows[-2] and rows[-1] == ""
    if live:
        moving = [part for row in rows for part in row.split("\r") if cause not in part]
        assert len(moving) >= 70 and max(map(len, moving)) <= 59 + len("\x1b[2K")
    quiet = Progress(quiet=True, clock=lambda: now)
    before = screen.getvalue()
    quiet("paused", {**PLAN, "phase": "paused", "waits": [cause]})
    assert screen.getvalue() == before
