"""Batch mode, killed before every write and every request: no batch twice, no answer twice."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_judge.errors import PausedError
from tests.provider import RunningServer

from .batch_night import CrashAt, Night, end

DEAD = "ignore:unclosed file:ResourceWarning"  # the dead close nothing
pytestmark = pytest.mark.filterwarnings(DEAD)


def test_killed_at_every_step(tmp_path: Path, server: RunningServer) -> None:
    step, crash = 0, CrashAt()
    while step == 0 or crash.crashed:
        server.reset()
        night, crash = Night(tmp_path / str(step), server), CrashAt(step)
        assert night.crashes(crash) == crash.crashed
        night.run()
        night.check(billed=12)
        assert night.outcomes() == {"resolved": 12}, crash.steps
        assert len(server.batches()) == 2, "as many as without the kill"
        step += 1
    asked = Counter(name.partition(" ")[0] for name in crash.steps)
    assert asked["upload"] == asked["download"] == 2
    assert step == len(crash.steps) + 1 > 30


# --- runs that share their books: what one has in a pending batch the other does not ask ---


def answered(night: Night) -> int:
    """How many of its questions a run finds in the journal."""
    return sum(count for outcome, count in night.outcomes().items() if outcome != "none")


def check_bills(server: RunningServer, billed: int) -> None:
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (billed, 0)
    assert sum(one["request_counts"]["total"] for one in server.batches()) == billed


def test_a_deleted_record_lets_another_run_ask(tmp_path: Path, server: RunningServer) -> None:
    """As the message says: where the first run is gone for good. Its money counts as spent."""
    books = str(tmp_path / "books")
    first, second = (Night(tmp_path / name, server, books=books) for name in "ab")
    assert first.crashes(CrashAt(name="retrieve"))
    with pytest.raises(PausedError, match="delete its batch's record"):
        second.run()
    server.reset()
    held = first.books.recorded()[1]
    for record in first.records():
        second.books.storage.delete(f"batches/{record.id}.json")
    slept = second.clock.slept
    second.run()
    assert answered(second) == 12 and first.books.recorded()[1] == held > 0
    assert second.clock.slept - slept >= 200, "it might still have been answered"
    check_bills(server, 12)


def test_books_are_free_while_batches_are_pending(tmp_path: Path, server: RunningServer) -> None:
    """The queue has room for one batch; while it is pending another run asks the rest."""
    books, limits = str(tmp_path / "books"), {"enqueued_tokens": 900, "max_requests": 4}
    first = Night(tmp_path / "a", server, books=books, batch=limits)
    second = Night(tmp_path / "b", server, books=books)
    said: list[str] = []

    def meanwhile() -> None:
        if not said:
            said.append("once")
            with (
                ThreadPoolExecutor(1) as pool,  # another process, while this one stands still
                pytest.raises(PausedError, match="asked by pending batches"),
            ):
                pool.submit(second.run).result()
        end(server)

    first.clock.meanwhile = meanwhile
    first.run()
    second.run()
    assert said and answered(first) == answered(second) == 12
    asked = [sum(record.requests for record in night.records()) for night in (first, second)]
    assert min(asked) > 0
    check_bills(server, 12)
