"""Two at once in batch mode: runs that share a journal, and two processes of one run.

What one has in a pending batch the other does not ask.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from ray_judge.errors import CorruptedError, LedgerFenced, PausedError
from ray_judge.escalation.batch.notices import FOLDER, BatchNotices
from ray_judge.escalation.books.journal import load_journal
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.storage.local import open_storage
from tests.provider import RunningServer

from .batch_night import CrashAt, Night, end

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "money"


def notices(journal: Path) -> list[Path]:
    return sorted((journal / FOLDER).glob("*"))


def answered(night: Night) -> int:
    """How many of its questions a run finds in the journal it shares."""
    found = load_journal(open_storage(str(night.config.strong.books))).answers
    return sum(key in found for key in night.keys)


def test_a_pending_batch_is_not_asked_again(
    tmp_path: Path, server: RunningServer, journal: Path
) -> None:
    """12 of the second run's 20 questions are in a batch of the first one."""
    server.configure(batches={"manual": True})
    first = Night(tmp_path / "a", server, 12, books=str(journal), batch={"wait_s": 0})
    second = Night(tmp_path / "b", server, 20, books=str(journal), batch={"wait_s": 0})
    with pytest.raises(PausedError, match="0 of 12 requests done"):
        first.run()
    assert len(notices(journal)) == 2
    with pytest.raises(PausedError, match="0 of 8 requests done"):
        second.run()
    end(server)
    for _ in range(2):  # its own are done, and it waits for those of the first run
        with pytest.raises(PausedError, match="12 questions are asked by pending batches") as said:
            second.run()
        assert str(tmp_path / "a" / "out") in said.value.message
        assert str(said.value.where["file"]).startswith(str(journal / FOLDER))
    assert len(notices(journal)) == 2
    first.run()
    assert not notices(journal)
    second.run()
    assert (answered(first), answered(second)) == (12, 20)
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (20, 0)
    assert sum(batch["request_counts"]["total"] for batch in server.batches()) == 20


@pytest.mark.parametrize("step", range(28))
def test_another_run_comes_after_a_crash_at_any_step(
    tmp_path: Path, server: RunningServer, journal: Path, step: int
) -> None:
    """The other run asks all, or leaves to the dead one what its batch may be asking."""
    first = Night(tmp_path / "a", server, books=str(journal))
    second = Night(tmp_path / "b", server, books=str(journal))
    crash = CrashAt(step)
    assert first.crashes(crash)
    asking = crash.steps.count("stored") - crash.steps.count("read")
    assert len(notices(journal)) == asking
    if asking and answered(second) < 12:
        with pytest.raises(PausedError, match="asked by pending batches"):
            second.run()
        assert answered(second) < 12
    else:
        second.run()
        assert answered(second) == 12
    first.run()
    second.run()
    assert answered(first) == answered(second) == 12
    assert not notices(journal)
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (12, 0)


def test_what_waits_for_a_batch_may_be_asked_by_another_run(
    tmp_path: Path, server: RunningServer, journal: Path
) -> None:
    """The queue has room for one batch; while it is pending another run asks the rest."""
    limits = {"enqueued_tokens": 900, "max_requests": 4}
    first = Night(tmp_path / "a", server, books=str(journal), batch=limits)
    second = Night(tmp_path / "b", server, books=str(journal))
    rest, said = first.clock.sleep, []

    def meanwhile(seconds: float) -> None:
        if not said:
            with pytest.raises(PausedError, match="asked by pending batches") as error:
                second.run()
            said.append(error.value)
        rest(seconds)

    first.clock.sleep = meanwhile  # type: ignore[method-assign]
    first.run()
    assert said and answered(first) == 12
    second.run()
    asked = [sum(state.requests for state in night.states()) for night in (first, second)]
    assert sum(asked) == 12 and min(asked) > 0
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (12, 0)


def test_what_a_batch_did_not_answer_is_free_again(
    tmp_path: Path, server: RunningServer, journal: Path
) -> None:
    """A run set its question aside for a batch that then came to nothing: it asks it itself."""
    first = Night(tmp_path / "a", server, books=str(journal), batch={"wait_s": 0})
    second = Night(tmp_path / "b", server, 20, books=str(journal))
    server.configure(batches={"manual": True})
    with pytest.raises(PausedError, match="batch pending"):
        first.run()
    rest, gone = second.clock.sleep, []

    def meanwhile(seconds: float) -> None:
        if not gone:
            for notice in notices(journal):
                if str(first.config.output) in notice.read_text():
                    gone.append(notice)
                    notice.unlink()  # as its run does, or as a person may
            server.configure(batches={"manual": False})
        rest(seconds)

    second.clock.sleep = meanwhile  # type: ignore[method-assign]
    second.run()
    assert gone and answered(second) == 20


def test_a_damaged_notice_is_not_guessed_at(
    tmp_path: Path, server: RunningServer, journal: Path
) -> None:
    night = Night(tmp_path / "a", server, books=str(journal))
    (journal / FOLDER).mkdir(parents=True)
    for text in ("{", "[]", '{"version": 2, "run": "x", "keys": []}', '{"version": 1}'):
        (journal / FOLDER / "rj-1.json").write_text(text)
        with pytest.raises(CorruptedError, match=r"notice of a pending batch.*rj-1\.json"):
            night.run()
    assert not server.batches()


def test_a_run_with_a_journal_of_its_own_puts_up_nothing(
    tmp_path: Path, server: RunningServer
) -> None:
    night = Night(tmp_path, server)
    night.run()
    assert not list(tmp_path.rglob(FOLDER))
    assert BatchNotices(night.config).others() == {}


# --- two processes of one run: an object store frees the lock of an owner that was silent ---


LAST = 15
"""The step behind which both batches are submitted."""


class Stalled:
    """A process of a run that comes to a stop behind its n-th step, and goes on when it is told to.

    It runs in a thread, as nothing else stops at a point of one's choice.
    """

    def __init__(self, night: Night, step: int) -> None:
        self._left, self._still, self._on = step, Event(), Event()
        self._session = night.session(self._behind)
        self._end = ThreadPoolExecutor(1).submit(self._session.run)
        self._end.add_done_callback(lambda _: self._still.set())
        assert self._still.wait(30)

    def _behind(self, name: str) -> None:
        self._left -= 1
        if self._left < 0:
            self._still.set()
            assert self._on.wait(30)
            self._on.clear()

    def goes_on(self, steps: int) -> None:
        """Let it do so many steps more, or come to its end."""
        self._left = steps - 1
        self._still.clear()
        self._on.set()
        assert self._still.wait(30)

    def ends(self) -> BaseException | None:
        """Let it go on to its end."""
        self.goes_on(1000)
        self._session.close()
        return self._end.exception(30)


@pytest.mark.parametrize("step", range(LAST + 1))
def test_a_stalled_process_goes_on_while_its_successor_takes_over(
    tmp_path: Path, server: RunningServer, step: int
) -> None:
    """The successor has looked at the records; the stalled one submits; only then the successor
    owns the ledger. It must look again, or it asks the same."""
    night = Night(tmp_path, server)
    stalled = Stalled(night, step)
    successor = night.session()
    claim, claims = successor._books.ledger, []

    def claiming() -> Ledger:
        if not claims:
            claims.append(step)
            if step < LAST:
                stalled.goes_on(LAST - step)
        return claim()

    successor._books.ledger = claiming  # type: ignore[method-assign]
    successor.run()
    successor.close()
    assert claims
    assert isinstance(stalled.ends(), LedgerFenced | None)
    night.run()
    night.check()
    assert len(server.batches()) == 2
    assert server.stats()["billed"] == 12


def test_a_process_that_slept_sees_what_its_successor_asked(
    tmp_path: Path, server: RunningServer
) -> None:
    """It had let go of the ledger, and owns it again after somebody else did."""
    night = Night(tmp_path, server, batch={"enqueued_tokens": 900, "max_requests": 4})
    rest, others = night.clock.sleep, []

    def asleep(seconds: float) -> None:
        rest(seconds)
        if not others:
            others.append(CrashAt(name="submitted"))
            assert night.crashes(others[0])

    night.clock.sleep = asleep  # type: ignore[method-assign]
    night.run()
    night.check()
    assert others and server.stats()["billed"] == 12
