"""From routed rows to units of questions, by a thread that ends when it is told to."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from decimal import Decimal
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from ray_judge.config import parse
from ray_judge.errors import EngineError, InputError, RayJudgeError
from ray_judge.escalation.escalate import Answers, escalate
from ray_judge.escalation.feed import PER_UNIT, Feed, units
from ray_judge.escalation.turn import LOCK
from ray_judge.records import Chunk, Shard, judged_schema
from ray_judge.routing.stream import Routed
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.storage.lock import locked

pytestmark = pytest.mark.timeout(60)

CHUNKS = {name: Chunk(name, "/in/a.parquet", "a.parquet", 0, 1000) for name in ("c0", "c1")}


def frame(chunk: str, keys: list[list[str]], confidence: list[float] | None = None) -> pl.DataFrame:
    """Routed rows of one chunk, all escalated."""
    rows = len(keys)
    return pl.DataFrame(
        {
            "chunk": [chunk] * rows,
            "row": range(rows),
            "row_key": [f"{chunk}-{n:05d}" for n in range(rows)],
            "judge_confidence": confidence or [n / rows for n in range(rows)],
            "question_keys": keys,
            "route": ["escalate"] * rows,
        }
    )


def test_every_question_is_in_one_unit_the_least_sure_row_first() -> None:
    seen: set[str] = set()
    first = frame("c0", [["k"], ["l", "l2"], ["k"], ["m"]], [0.9, 0.5, 0.1, 0.7])
    (unit,) = units(first, CHUNKS, seen)
    assert unit.asks == ((2, "k", 0), (1, "l", 0), (1, "l2", 1), (3, "m", 0))
    assert list(units(frame("c1", [["k"], ["l2"]]), CHUNKS, seen)) == []
    assert seen == {"k", "l", "l2", "m"}


def test_accepted_rows_ask_nothing() -> None:
    accepted = frame("c0", [["k"]]).with_columns(route=pl.lit("accept"))
    assert list(units(accepted, CHUNKS, set())) == []


def test_a_large_chunk_is_several_units() -> None:
    keys = [[f"k{n}"] for n in range(2 * PER_UNIT + 1)]
    sizes = [len(unit.asks) for unit in units(frame("c0", keys), CHUNKS, set())]
    assert sizes == [PER_UNIT, PER_UNIT, 1]


def drained(feed: Feed) -> list[str]:
    feed._thread.join(30)
    assert feed.poll()
    return [key for unit in feed.units for _, key, _ in unit.asks]


def test_the_feed_gives_all_and_says_that_it_is_over() -> None:
    feed = Feed(iter([frame("c0", [["k"]]), frame("c1", [["l"], ["k"]])]), CHUNKS)
    assert drained(feed) == ["k", "l"]
    assert feed.poll()


@pytest.mark.parametrize("error", [InputError("a page is damaged"), ZeroDivisionError("oh")])
def test_what_ends_the_judging_is_told(error: Exception) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        yield frame("c0", [["k"]])
        raise error

    feed = Feed(frames(), CHUNKS)
    feed._thread.join(30)
    with pytest.raises(RayJudgeError, match=str(error)):
        feed.poll()
    assert len(feed.units) == 1  # what came before it is not lost


def test_a_feed_that_is_stopped_closes_its_maker() -> None:
    closed = []

    def frames() -> Iterator[pl.DataFrame]:
        try:
            for number in count():
                yield frame("c0", [[f"k{number}"]])
        finally:
            closed.append(True)

    feed = Feed(frames(), CHUNKS)
    feed.stop()
    assert closed and not feed._thread.is_alive()


def test_the_judge_dies_while_its_run_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard of at once, not when the run that has the turn is done."""
    monkeypatch.setattr("ray_judge.escalation.turn.POLL_S", 0.01)
    money, waits = str(tmp_path / "money"), Event()
    config = parse(
        {
            "input": "i",
            "output": str(tmp_path / "out"),
            "judge": {"model": "m"},
            "route": {"policy": "threshold", "threshold": 0.5},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1, "books": money},
        }
    )
    shard = Shard("/in/a.parquet", "a.parquet", 1, "")
    plan = Plan((shard,), Columns({}), 1000)

    def frames() -> Iterator[pl.DataFrame]:
        yield frame("00000-00000", [["k"]])
        assert waits.wait(30)
        raise EngineError("the judge died")

    def said(figures: Mapping[str, Any]) -> None:
        assert "for runs/another" in figures["waits"]
        waits.set()

    with (
        locked(money, LOCK, "set of books", "runs/another"),
        pytest.raises(EngineError, match="the judge died"),
    ):
        escalate(config, plan, frames(), said)
    assert not list((tmp_path / "money").glob("ledger*")), "nothing was opened without its turn"


def test_routing_that_is_left_stops_the_judging(tmp_path: Path) -> None:
    config = parse(
        {
            "input": "i",
            "output": str(tmp_path),
            "judge": {"model": "m"},
            "route": {"policy": "threshold", "threshold": 0.5},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
        }
    )
    run = RunDirectory(str(tmp_path))
    rows = pa.Table.from_pylist(
        [{"row": 0, "row_key": "r", "judge_confidence": 0.6, "has_text": True}],
        schema=judged_schema("pairwise", ("A", "B", "tie")),
    )
    made = []

    def judged() -> Generator[str, None, None]:
        try:
            for number in count():
                run.commit_judged(0, f"c{number}", rows)
                made.append(number)
                yield f"c{number}"
        finally:
            made.append("closed")  # type: ignore[arg-type]

    routed = Routed(config, Plan((), Columns({}), 1), run, judged())
    for part in routed:
        assert part["route"].to_list() == ["accept"]
        break
    assert made == [0, "closed"]


def test_a_question_that_was_paid_for_and_never_answered_has_its_cost() -> None:
    answers = Answers({}, {"k": Decimal("0.5")}, 1, Decimal("0.5"), Decimal(0))
    assert answers.paid() == {"k": (None, Decimal("0.5"))}
