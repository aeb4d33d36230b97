"""The cap binds, a raised cap asks only the rest, a question is paid for once, in every mode."""

from decimal import Decimal
from pathlib import Path

from ray_judge.report.status import status
from ray_judge.storage.lock import locked
from tests.provider import RunningServer

from .conftest import Runs, pairs


def test_a_small_cap_and_then_a_larger_one(runs: Runs, server: RunningServer) -> None:
    run = runs(pairs(120), pairs(80, first=120), route__fraction=0.6, strong__max_cost_usd="0.02")
    assert run.score() == 0
    first, summary = server.stats(), run.summary()
    asked = summary["outcomes"]["resolved"]
    assert 0 < asked < 120
    assert run.outcomes() == {
        "not_needed": 80, "resolved": asked, "denied_budget": 120 - asked,
    }  # fmt: skip
    assert Decimal(first["total_usd"]) == run.check_costs() <= Decimal("0.02")
    assert (summary["cap_usd"], summary["api_requests"]) == (0.02, asked)

    # As a crash in the last phase leaves it: one shard scored, the other not, no summary.
    (run.output / "summary.json").unlink()
    run.scored_paths()[1].unlink()
    assert run.score("strong.max_cost_usd=0.5") == 0
    assert run.outcomes() == {"not_needed": 80, "resolved": 120}
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"], stats["chat_requests"]) == (120, 0, 120)
    assert Decimal(stats["total_usd"]) == run.check_costs()

    # A cap that is lower than the first one is another run.
    assert run.score("strong.max_cost_usd=0.01") == 2
    assert server.stats()["requests"] == stats["requests"]


def test_answers_that_may_be_shorter_cost_less(runs: Runs, server: RunningServer) -> None:
    """What the cap denied is asked where its price has come down to what is left."""
    run = runs(pairs(60), route__fraction=1, strong__max_cost_usd="0.01")
    assert run.score() == 0
    first = run.outcomes()
    assert run.score("strong.max_output_tokens=20") == 0
    assert run.outcomes()["resolved"] > first["resolved"] and first["denied_budget"]
    assert Decimal(server.stats()["total_usd"]) == run.check_costs() <= Decimal("0.01")
    assert server.stats()["billed_twice"] == 0


def test_a_batch_over_two_nights(runs: Runs, server: RunningServer) -> None:
    batch = {"max_requests": 30, "poll_s": 0.05}
    run = runs(pairs(60), pairs(60, first=60), strong__mode="batch", strong__batch=batch)
    run.document["route"]["fraction"] = 0.5
    assert run.score("strong.batch.wait_s=0") == 4
    assert "batch pending: 0 of 59 requests done" in run.said  # the first was asked online
    assert not (run.output / "summary.json").exists()
    assert run.score("strong.batch.wait_s=0.1") == 4
    for one in server.batches():
        while server.advance_batch(one["id"])["status"] != "completed":
            pass
    assert run.score() == 0
    stats = server.stats()
    assert stats["batch_creations"] == 2 and stats["billed_twice"] == 0
    assert stats["billed"] == 60
    assert run.outcomes() == {"not_needed": 60, "resolved": 60}
    assert run.check_costs() == Decimal(stats["total_usd"])
    assert [bill["tier"] for bill in server.bills()] == ["default"] + ["batch"] * 59


def test_what_is_pending_is_not_asked(runs: Runs, server: RunningServer, tmp_path: Path) -> None:
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


def test_a_run_that_waits_long_pauses(runs: Runs, server: RunningServer, tmp_path: Path) -> None:
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
