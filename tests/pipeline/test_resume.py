"""A run that was killed goes on: the same output, and nothing done or paid twice."""

import os
import signal
import time
from decimal import Decimal
from pathlib import Path
from subprocess import Popen

import polars as pl
import pytest

from ray_judge.config import load
from ray_judge.demo.command import MODEL
from ray_judge.escalation.books.books import Books
from ray_judge.run.directory import RunDirectory
from tests.provider import RunningServer

from .conftest import Runs, pairs

CHUNKS = 30


def wait_for_files(folder: Path, count: int, process: Popen[str]) -> None:
    """Return when so many files are committed; fails when the process ends before."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("[!.]*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a poll of another process's files, not a guess at its speed


def test_kill_9_while_judging(runs: Runs, server: RunningServer, ray_session: str) -> None:
    shards = [pairs(CHUNKS * 2), pairs(CHUNKS * 2, first=CHUNKS * 2)]
    whole, torn = runs(*shards, chunk_rows=4), runs(*shards, chunk_rows=4)
    torn.document["input"] = whole.document["input"]
    assert whole.score() == 0
    process = torn.start(ray_session)
    wait_for_files(torn.output / "judged" / "1", 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    committed = RunDirectory(str(torn.output)).judged(0)
    assert 3 <= len(committed) < CHUNKS, "the kill came too late to be one"
    assert server.stats()["billed"] == CHUNKS * 2  # only the first run's
    judged = torn.output / "judged" / "1"
    old = {name: (judged / f"{name}.parquet").stat().st_mtime_ns for name in committed}
    (judged / ".tmp-dead").write_bytes(b"half a chunk")

    assert torn.score() == 0  # the kernel has dropped the lock of the killed process
    for name, written in old.items():
        assert (judged / f"{name}.parquet").stat().st_mtime_ns == written
    first, second = whole.scored(), torn.scored()
    assert first.drop("strong_cost_usd").equals(second.drop("strong_cost_usd"))
    summaries = [run.summary() for run in (whole, torn)]
    for summary in summaries:
        del summary["seconds"], summary["spent_usd"]
    assert summaries[0] == summaries[1]
    assert torn.check_costs() == whole.check_costs()


def tell(process: Popen[str], *signals: signal.Signals) -> None:
    """Tell a run to stop: it ends soon, with one sentence and its own exit code."""
    for told in signals:
        process.send_signal(told)
    _, said = process.communicate(timeout=25)
    assert process.returncode == 130, said
    assert said.count("\n") == 1 and "the same command continues" in said


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_while_asking(
    runs: Runs, server: RunningServer, ray_session: str, told: signal.Signals
) -> None:
    """What is in flight is waited for and kept: nothing is lost, nothing asked again."""
    server.configure(latency={"min_ms": 200, "max_ms": 400})
    run = runs(pairs(200), route__fraction=1)
    process = run.start(ray_session)
    while server.stats()["billed"] < 20 and process.poll() is None:
        time.sleep(0.01)
    tell(process, told)
    stats = server.stats()
    assert 20 <= stats["billed"] < 200 and stats["billed_twice"] == 0
    books = Books.of(load(run.yaml))
    assert books.recorded() == (Decimal(stats["total_usd"]), 0)
    assert run.score() == 0 and run.outcomes() == {"resolved": 200}
    assert (server.stats()["billed"], server.stats()["billed_twice"]) == (200, 0)


def test_told_to_stop_while_the_judge_starts(runs: Runs, ray_session: str) -> None:
    """An engine may load for minutes: it is not waited for, and Ray's complaints are not shown."""
    judge = {"format": "demo", "model": str(MODEL), "dtype": "float32"}
    run = runs(pairs(40), judge=judge)
    process = run.start(ray_session)
    while process.poll() is None and "the local judge starts" not in run.progress():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=25)
    assert process.returncode == 130 and said.count("\n") == 1, said
    assert "ray-judge: stopped: everything is kept" in said


@pytest.mark.parametrize(
    ("folder", "told"),
    [("", signal.SIGTERM), ("judged/1", signal.SIGINT), ("judged/1", signal.SIGTERM),
     ("scored", signal.SIGTERM)],
)  # fmt: skip
def test_told_to_stop_before_and_after_asking(
    runs: Runs, server: RunningServer, ray_session: str, folder: str, told: signal.Signals
) -> None:
    """While Ray starts, while rows are judged, while shards are written: what is done is kept."""
    shards = [pairs(10, first=first) for first in range(0, 200, 10)]
    run = runs(*shards, chunk_rows=2, route__fraction=0.2)
    process = run.start(ray_session)
    wait_for_files(run.output / folder, 2, process)
    tell(process, told)
    files = {name: how for name, how in run.everything().items() if "/.tmp-" not in name}
    done = {name: how for name, how in files.items() if name.startswith("judged")}
    assert run.score() == 0 and run.summary()["rows"] == 200
    assert done.items() <= run.everything().items()
    assert (server.stats()["billed"], server.stats()["billed_twice"]) == (40, 0)


def test_told_twice_to_stop(runs: Runs, server: RunningServer, ray_session: str) -> None:
    """It waits for nobody: what was in flight counts as spent, and is asked again."""
    server.configure(latency={"min_ms": 90_000, "max_ms": 90_000})
    run = runs(pairs(40), route__fraction=1)
    process = run.start(ray_session)
    while not server.stats()["in_flight"] and process.poll() is None:
        time.sleep(0.01)
    tell(process, signal.SIGTERM, signal.SIGINT)
    assert Books.of(load(run.yaml)).recorded()[1] > 0
    server.configure(latency={"min_ms": 0, "max_ms": 0})
    assert run.score() == 0 and run.outcomes() == {"resolved": 40}


def test_a_crash_after_any_phase(runs: Runs, server: RunningServer) -> None:
    """Whatever of the run's files is missing is made again, and nothing else; nobody is asked."""
    run = runs(pairs(60), pairs(60, first=60), chunk_rows=20)
    assert run.score() == 0
    wanted, asked = run.scored(), server.stats()["requests"]
    judged = sorted((run.output / "judged" / "1").iterdir())
    for missing in (judged[1], run.scored_paths()[0]):
        (run.output / "summary.json").unlink()
        (run.output / "report.html").unlink()
        missing.unlink()
        before = run.everything()
        assert run.score() == 0
        after, made = run.everything(), str(missing.relative_to(run.output))
        assert run.scored().equals(wanted)
        assert server.stats()["requests"] == asked
        assert set(before) | {made, "summary.json", "report.html"} == set(after)
        changed = {name for name in before if before[name] != after[name]}
        assert changed <= {"lock", "progress.json"}
    assert run.summary()["api_requests"] == asked
    assert pl.Series(run.summary()["outcomes"].values()).sum() == 120


def test_a_raised_cap_and_an_empty_account_lose_nothing(runs: Runs, server: RunningServer) -> None:
    """Yesterday's shards stay until today's take their place."""
    run = runs(pairs(40), pairs(40, first=40), route__fraction=1)
    assert run.score("strong.max_cost_usd=0.01") == 0
    assert run.outcomes()["denied_budget"] > 0
    yesterday = run.scored()
    server.configure(quota_usd="0.01")
    for _ in range(2):
        assert run.score("strong.max_cost_usd=1") == 4 and "insufficient_quota" in run.said
        # 5 s are promised, which `tests.fault.quota` measures; a busy machine takes its time.
        assert time.monotonic() - server.stats()["quota_told_monotonic"] < 60
        assert run.scored().equals(yesterday)
        assert (run.output / "report.html").exists()
    server.configure(quota_usd=None)
    assert run.score("strong.max_cost_usd=1") == 0
    assert run.outcomes() == {"resolved": 80}
    assert server.stats()["billed_twice"] == 0
    assert run.check_costs() == Decimal(server.stats()["total_usd"])
