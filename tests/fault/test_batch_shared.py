"""Two at once in batch mode: runs that share their books, and two processes of one run.

What one has in a pending batch the other does not ask.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_judge.errors import LedgerFenced, PausedError
from tests.provider import RunningServer

from .batch_night import CrashAt, Night, end

DEAD = "ignore:unclosed file:ResourceWarning"  # the dead close nothing
pytestmark = pytest.mark.filterwarnings(DEAD)
STRIDE = 3
SHARES = [0, *(pytest.param(first, marks=pytest.mark.long) for first in range(1, STRIDE))]
"""Which steps are met: every third in `make test`, the others in `make test-long`."""


@pytest.fixture
def books(tmp_path: Path) -> str:
    return str(tmp_path / "books")


def answered(night: Night) -> int:
    """How many of its questions a run finds in the journal."""
    return sum(count for outcome, count in night.outcomes().items() if outcome != "none")


def run_beside(night: Night) -> None:
    """Let another process work to its end while this one stands still."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(night.run).result()


def check_bills(server: RunningServer, billed: int) -> None:
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (billed, 0)
    assert sum(one["request_counts"]["total"] for one in server.batches()) == billed


@pytest.mark.parametrize("first_step", SHARES)
def test_another_run_comes_after_a_crash_at_any_step(
    tmp_path: Path, server: RunningServer, first_step: int
) -> None:
    """The other run asks all, or leaves to the dead one what its batch may be asking."""
    step, crash = first_step, CrashAt()
    while step == first_step or crash.crashed:
        server.reset()
        folder, crash = tmp_path / str(step), CrashAt(step)
        first, second = (Night(folder / name, server, books=str(folder)) for name in "ab")
        first.crashes(crash)
        pending = sum(record.requests for record in first.records() if not record.over)
        with contextlib.suppress(PausedError):
            second.run()
        assert answered(second) == 12 or pending, crash.steps
        first.run()
        second.run()
        assert answered(first) == answered(second) == 12
        check_bills(server, 12)
        step += STRIDE
    assert step > 30


def test_a_deleted_record_lets_another_run_ask(
    tmp_path: Path, server: RunningServer, books: str
) -> None:
    """As the message says: where the first run is gone for good. Its money counts as spent."""
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


def test_the_books_are_free_while_batches_are_pending(
    tmp_path: Path, server: RunningServer, books: str
) -> None:
    """The queue has room for one batch; while it is pending another run asks the rest."""
    limits = {"enqueued_tokens": 900, "max_requests": 4}
    first = Night(tmp_path / "a", server, books=books, batch=limits)
    second = Night(tmp_path / "b", server, books=books)
    said: list[str] = []

    def meanwhile() -> None:
        if not said:
            said.append("once")
            with pytest.raises(PausedError, match="asked by pending batches"):
                run_beside(second)
        end(server)

    first.clock.meanwhile = meanwhile
    first.run()
    second.run()
    assert said and answered(first) == answered(second) == 12
    asked = [sum(record.requests for record in night.records()) for night in (first, second)]
    assert min(asked) > 0
    check_bills(server, 12)


# --- two processes of one run: an object store frees the lock of an owner that was silent ---


@pytest.mark.parametrize("first_step", SHARES)
def test_a_stalled_process_goes_on_while_its_successor_takes_over(
    tmp_path: Path, server: RunningServer, first_step: int
) -> None:
    """It sleeps before any write or request while another one does everything, and wakes up."""
    step, over = first_step, False
    while not over:
        server.reset()
        night, steps = Night(tmp_path / str(step), server), []

        def asleep(
            name: str, night: Night = night, steps: list[str] = steps, at: int = step
        ) -> None:
            steps.append(name)
            if len(steps) - 1 == at:
                run_beside(night)

        with contextlib.suppress(LedgerFenced):
            night.run(asleep)
        over = len(steps) <= step
        night.run()
        night.check(billed=12)
        step += STRIDE
    assert step > 30
