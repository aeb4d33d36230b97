"""The questions of routed rows, in order, by a thread that ends when it is told to."""

from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.errors import InputError, RayJudgeError
from ray_judge.escalation.questions import Question
from ray_judge.escalation.source import PER_TAKE, RoutedQuestions
from ray_judge.records import Chunk
from ray_judge.routing.stream import Routed
from ray_judge.routing.tiers import Cascade
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory

from . import builders
from .test_questions import ROLES, maker


def frame(chunk: str, rows: dict[int, float | None], route: str = "escalate") -> pl.DataFrame:
    """Routed rows of one chunk: row → confidence."""
    return pl.DataFrame(
        {
            "chunk": [chunk] * len(rows),
            "row": list(rows),
            "row_key": [f"{chunk}-{row:05d}" for row in rows],
            "judge_confidence": list(rows.values()),
            "route": [route] * len(rows),
        },
        schema_overrides={"judge_confidence": pl.Float64},
    )


@pytest.fixture
def chunks(tmp_path: Path) -> dict[str, Chunk]:
    path, rows = str(tmp_path / "in.parquet"), 2000
    numbers = [8 if n == 9 else n for n in range(rows)]  # two rows are equal
    pq.write_table(pa.table({role: [f"{role} {n}" for n in numbers] for role in ROLES}), path)
    return {f"c{n}": Chunk(f"c{n}", path, "in", 1000 * n, 1000) for n in range(2)}


def source(frames: Any, chunks: dict[str, Chunk], whole: bool = False, **strong: Any) -> Any:
    made = RoutedQuestions(iter(frames), chunks, maker(**strong), whole=whole)
    made._thread.join(30)
    return made


def taken(made: RoutedQuestions) -> list[list[Question]]:
    lots = []
    while (lot := made.take()) is not None:
        lots.append(lot)
    return lots


def places(lot: list[Question]) -> list[tuple[Any, ...]]:
    return [question.row or () for question in lot]


def test_the_least_sure_first_and_audited_before_all(chunks: dict[str, Chunk]) -> None:
    frames = [
        pl.concat([
            frame("c0", {1: 0.9, 2: 0.5, 3: None, 4: 0.5}),
            frame("c0", {5: 0.99}, "audit"),
            frame("c0", {6: 0.1}, "accept"),
        ]),
        frame("c1", {1001: 0.1, 1000: 0.2}),
    ]  # fmt: skip
    lots = taken(source(frames, chunks))
    assert [[row for _, row, _ in places(lot)] for lot in lots] == [[5, 3, 2, 4, 1], [1001, 1000]]
    made = source(frames, chunks, whole=True)
    (whole,) = taken(made)
    assert [row for _, row, _ in places(whole)] == [5, 3, 1001, 1000, 2, 4, 1]
    assert all(question.body is None for question in whole), "a night's bodies fill no memory"
    again = maker().bodies(whole, chunks)
    assert [question.key for question in again] == [question.key for question in whole]
    asked = made.asked()
    keys = dict(zip(asked["row"], asked["question_keys"].to_list(), strict=True))
    assert keys == {question.row[1]: [question.key] for question in whole if question.row}


def test_equal_rows_ask_the_same_in_each_order_and_sample(chunks: dict[str, Chunk]) -> None:
    made = source([frame("c0", {8: 0.2, 9: 0.3})], chunks, swap=True, samples=2)
    (lot,) = taken(made)
    keys = [question.key for question in lot]
    assert places(lot) == [("c0", row, n) for row in (8, 9) for n in range(4)]
    assert keys[:4] == keys[4:] and len(set(keys)) == 4
    assert made.asked()["question_keys"].to_list() == [keys[:4]] * 2


def test_questions_are_made_when_they_are_taken(chunks: dict[str, Chunk]) -> None:
    """A cap that binds early costs no rendering of what is never asked."""
    rows = dict.fromkeys(range(2 * PER_TAKE + 9), 0.5)
    made = source([frame("c0", rows)], chunks)
    assert made.asked().height == 0
    assert len(made.take() or []) == PER_TAKE == made.asked().height
    assert [len(lot) for lot in taken(made)] == [PER_TAKE, 9]


def test_nothing_now_is_not_the_end(chunks: dict[str, Chunk]) -> None:
    more = Event()

    def frames() -> Iterator[pl.DataFrame]:
        assert more.wait(30)
        yield frame("c0", {1: 0.5})

    made = RoutedQuestions(frames(), chunks, maker(), whole=False)
    assert made.take() == []
    more.set()
    made.stop()
    assert len(taken(made)) <= 1


@pytest.mark.parametrize("error", [InputError("a page is damaged"), ZeroDivisionError("oh")])
def test_what_ends_the_judging_is_told(error: Exception, chunks: dict[str, Chunk]) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        yield frame("c0", {1: 0.5})
        raise error

    made = source(frames(), chunks)
    for told in (made.check, made.take):
        with pytest.raises(RayJudgeError, match=str(error)):
            told()


def test_a_source_that_is_stopped_closes_its_maker(chunks: dict[str, Chunk]) -> None:
    closed = []

    def frames() -> Iterator[pl.DataFrame]:
        try:
            for _ in count():
                yield frame("c0", {1: 0.5})
        finally:
            closed.append(True)

    made = RoutedQuestions(frames(), chunks, maker(), whole=False)
    made.stop()
    assert closed and not made._thread.is_alive()


def test_routing_that_is_left_stops_the_judging(tmp_path: Path) -> None:
    route = {"policy": "threshold", "threshold": 0.5}
    config = builders.config(output=str(tmp_path), route=route)
    run = RunDirectory(str(tmp_path))
    made: list[Any] = []

    def judged() -> Generator[str, None, None]:
        try:
            for number in count():
                run.commit_judged(0, f"c{number}", builders.judged({"judge_confidence": 0.6}))
                made.append(number)
                yield f"c{number}"
        finally:
            made.append("closed")

    for part in Routed(Cascade(config, Plan((), Columns({}), 1), run), judged()):
        assert part["route"].to_list() == ["accept"]
        break
    assert made == [0, "closed"]
