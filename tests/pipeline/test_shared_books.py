"""Runs that share their books: at the same hour, one after the other."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from ray_judge.config import load
from ray_judge.escalation.books.books import Books
from ray_judge.report.status import status
from ray_judge.storage.lock import locked
from tests.provider import RunningServer

from .conftest import Runs, pairs


@pytest.mark.slow
def test_two_runs_begun_at_once_pay_each_question_once(
    runs: Runs, server: RunningServer, ray_session: str, tmp_path: Path
) -> None:
    """Half of their rows are the same: whoever comes second reads what the first one paid for."""
    server.configure(latency={"min_ms": 50, "max_ms": 100})
    money = str(tmp_path / "money")
    shared = {"strong__books": money, "route__fraction": 1}
    both = [runs(pairs(80, first=first), **shared, strong__concurrency=4) for first in (0, 40)]
    processes = [run.start(ray_session) for run in both]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (120, 0)
    for run in both:
        assert run.outcomes() == {"resolved": 80}
        run.check_costs()  # a row costs what this run paid for it: nothing, where another one did
    assert sum(run.summary()["api_requests"] for run in both) == 120
    spent = [Books.of(load(run.yaml)).recorded() for run in both]
    assert all(unproven == 0 and settled > 0 for settled, unproven in spent)
    assert sum(settled for settled, _ in spent) == Decimal(stats["total_usd"])


def test_what_a_pending_batch_asks_is_not_asked_beside_it(
    runs: Runs, server: RunningServer, tmp_path: Path
) -> None:
    """Half of an online run's rows are in another run's batch: it asks the others, and pauses."""
    money = str(tmp_path / "money")
    shared = {"strong__books": money, "route__fraction": 1}
    batch = runs(pairs(20), **shared, strong__mode="batch", strong__batch={"wait_s": 0})
    online = runs(pairs(20, first=10), **shared)
    assert batch.score() == 4
    for _ in range(2):
        assert online.score() == 4
        assert "10 questions are asked by pending batches" in online.said
        assert f"{money}/batches/rj-" in online.said
        assert server.stats()["billed"] == 11  # one was asked online by the run in batches
    for one in server.batches():
        while server.advance_batch(one["id"])["status"] != "completed":
            pass
    assert (batch.score(), online.score()) == (0, 0)
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (30, 0)
    for run in (batch, online):
        assert run.outcomes() == {"resolved": 20}
        run.check_costs()
    assert [run.summary()["api_requests"] for run in (batch, online)] == [20, 10]
    for run, answers in ((batch, 20), (online, 10)):
        figures = status(str(run.output))
        assert (figures["finished"], figures["answers"]) == (True, answers)
        assert float(figures["spent_usd"]) == run.summary()["spent_usd"]


def test_a_run_that_waits_too_long_pauses(
    runs: Runs, server: RunningServer, tmp_path: Path
) -> None:
    money = str(tmp_path / "money")
    run = runs(pairs(20), strong__books=money, strong__give_up_after_s=0.1)
    with locked(money, "asking.lock", "set of books", "runs/another"):
        assert run.score() == 4
    assert "for runs/another" in run.said and "give_up_after_s" in run.said
    assert server.stats()["requests"] == 0
    assert not (tmp_path / "money" / "ledger").exists(), "nothing of the ledger was touched"
    assert list((run.output / "judged").iterdir()), "the judge's work is kept"
    assert run.score() == 0
    assert run.outcomes() == {"not_needed": 10, "resolved": 10}

    with locked(money, "asking.lock", "set of books", "runs/another"):
        (run.output / "summary.json").unlink()
        assert run.score() == 0  # with nothing to ask it needs no turn
    assert server.stats()["billed"] == 10
