"""The journal: what was put is there after any crash, once, to the nano-dollar."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from decimal import Decimal as D
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.errors import AlreadyExists, CorruptedError, StorageError
from ray_judge.escalation.books.journal import JournalWriter, compact, load_journal
from ray_judge.records import Answer, Outcome, Usage
from ray_judge.storage.local import LocalStorage, open_storage

pytestmark = pytest.mark.timeout(60)


def answer(number: int = 0, **changes: object) -> Answer:
    return replace(
        Answer(
            key=f"{number:064x}",
            outcome=Outcome.RESOLVED,
            verdict="A",
            cost_usd=D("0.001234567") + number,
            usage=Usage(120, 7, 64, tier="flex"),
            model="gpt-4.1-2025-04-14",
            response_id=f"r{number}",
            lease="abc-1",
            slot=number,
            at=1000.0 + number,
        ),
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


def write(storage: LocalStorage, writer_id: str, *answers: Answer) -> JournalWriter:
    writer = JournalWriter(storage, writer_id=writer_id)
    for one in answers:
        writer.append(one)
    writer.sync()
    return writer


def test_everything_comes_back_as_it_was(storage: LocalStorage) -> None:
    answers = [
        answer(0),
        answer(1, verdict=7.5, usage=None),
        answer(2, verdict=None, outcome=Outcome.UNPARSEABLE, final=False, error='a "bad"\nline'),
        answer(3, model=None, response_id=None, usage=Usage(1, 2, estimated=True)),
    ]
    write(storage, "w1", *answers[:2])
    write(storage, "w2", *answers[2:]).close()
    journal = load_journal(storage)
    assert journal.rows == answers
    assert set(journal.answers) == {a.key for a in answers if a.final}
    assert journal.paid == {(a.lease, a.slot): a.cost_usd for a in answers}
    assert load_journal(storage, "nothing").rows == []


def test_who_paid_is_kept_where_runs_share_a_journal(storage: LocalStorage) -> None:
    for number, run in enumerate(("runs/monday", "runs/tuesday", None)):
        writer = JournalWriter(storage, writer_id=f"w{number}", run=run)
        writer.append(answer(number))
        writer.close()
    wanted = ["runs/monday", "runs/tuesday", None]
    assert [one.run for one in load_journal(storage).rows] == wanted
    compact(storage)
    assert load_journal(storage).frame()["run"].to_list() == wanted


def test_probabilities_are_kept_where_there_are_any(storage: LocalStorage) -> None:
    answers = [answer(0, verdict_prob=0.625, tie_prob=0.0), answer(1, verdict_prob=0.1), answer(2)]
    write(storage, "w", *answers).close()
    assert load_journal(storage).rows == answers
    assert compact(storage) == 3
    assert load_journal(storage).rows == answers
    assert load_journal(storage).frame()["verdict_prob"].to_list() == [0.625, 0.1, None]


def test_journals_older_than_the_probabilities_are_read(storage: LocalStorage) -> None:
    """Lines without them are what they were before; a compacted file had no such columns."""
    write(storage, "old", answer(0), answer(1)).close()
    assert b"prob" not in storage.read("journal/old.log")
    compact(storage)
    (name,) = storage.list("journal")
    table = pq.read_table(storage.open_input(name))
    storage.delete(name)
    with storage.write_stream("journal/compacted-00000001.parquet") as file:  # as it was called
        pq.write_table(table.drop_columns(["verdict_prob", "tie_prob"]), file)
    write(storage, "new", answer(2, verdict_prob=0.5)).close()
    rows = [answer(0), answer(1), answer(2, verdict_prob=0.5)]
    assert load_journal(storage).rows == rows
    compact(storage)
    assert load_journal(storage).rows == rows


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**15))
def test_money_round_trips(nanos: int) -> None:
    import tempfile

    cost = D(nanos).scaleb(-9)
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(folder)
        write(storage, "w", answer(0, cost_usd=cost)).close()
        assert load_journal(storage).rows[0].cost_usd == cost
        compact(storage)
        assert load_journal(storage).rows[0].cost_usd == cost
        assert load_journal(storage).frame()["cost_usd"].to_list() == [cost]


def test_unusable_answers_of_open_questions_are_counted(storage: LocalStorage) -> None:
    """Not the lost ones, which have no usage, nor those of a question that has its answer."""
    writer = JournalWriter(storage, writer_id="a")
    vain = {"outcome": Outcome.UNPARSEABLE, "verdict": None, "final": False}
    for number, change in enumerate(
        ({"key": "open"}, {"key": "open"}, {"key": "lost", "usage": None}, {"key": "closed"})
    ):
        writer.append(answer(number, **vain, **change))
    writer.append(answer(9, key="closed"))
    writer.sync()
    assert load_journal(storage).unusable() == {"open": 2}


def test_two_answers_to_one_question_leave_the_earlier(storage: LocalStorage) -> None:
    write(storage, "w1", answer(0, at=20.0, slot=5, response_id="late"))
    write(storage, "w2", answer(0, at=10.0, slot=6, response_id="early", final=False))
    write(storage, "w3", answer(0, at=15.0, slot=7, response_id="middle"))
    journal = load_journal(storage)
    assert journal.answers[answer(0).key].response_id == "middle"
    assert [a.response_id for a in journal.attempts(answer(0).key)] == ["early", "middle", "late"]


def test_a_log_cut_at_any_byte_keeps_its_whole_lines(storage: LocalStorage, tmp_path: Path) -> None:
    write(storage, "w", *(answer(n) for n in range(4)))
    data = storage.read("journal/w.log")
    for cut in range(len(data) + 1):
        (tmp_path / "journal/w.log").write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        assert load_journal(storage).rows == [answer(n) for n in range(whole)]


def test_damage_in_the_middle_names_the_line(storage: LocalStorage, tmp_path: Path) -> None:
    write(storage, "w", *(answer(n) for n in range(4)))
    lines = storage.read("journal/w.log").split(b"\n")
    lines[2] = lines[2].replace(b"0.001", b"0.000") + b" "
    (tmp_path / "journal/w.log").write_bytes(b"\n".join(lines))
    with pytest.raises(CorruptedError, match=r"w\.log.*line=3"):
        load_journal(storage)


def test_a_writers_name_is_used_once(storage: LocalStorage) -> None:
    write(storage, "w")
    with pytest.raises(AlreadyExists):
        JournalWriter(storage, writer_id="w")


def test_compaction_is_readable_by_polars(storage: LocalStorage, tmp_path: Path) -> None:
    write(storage, "w1", answer(0)).close()
    write(storage, "w2", answer(1))  # still open
    assert compact(storage, token="a") == 1
    assert storage.list("journal") == ["journal/compacted-00000001-a.parquet", "journal/w2.log"]
    frame = pl.read_parquet(tmp_path / "journal/compacted-00000001-a.parquet")
    assert frame["cost_usd"].dtype == pl.Decimal(18, 9)
    assert load_journal(storage).rows == [answer(0), answer(1)]
    assert compact(storage, no_writers=True, token="b") == 2
    assert storage.list("journal") == ["journal/compacted-00000002-b.parquet"]
    assert load_journal(storage).rows == [answer(0), answer(1)]
    assert compact(storage, no_writers=True) == 2
    assert load_journal(storage).frame().height == 2


class Overtaken(LocalStorage):
    """Before its first file is written, another run closes a log and folds everything."""

    other: JournalWriter | None = None

    def write_stream(self, path: str):  # type: ignore[no-untyped-def]
        if self.other is not None:
            self.other.close()
            self.other = None
            assert compact(open_storage(self.uri), token="other") == 2
        return super().write_stream(path)


def test_two_runs_that_fold_at_the_same_time_take_nothing_from_each_other(tmp_path: Path) -> None:
    storage = Overtaken(str(tmp_path))
    write(storage, "w1", answer(0)).close()
    storage.other = write(storage, "w2", answer(1))
    compact(storage)
    assert load_journal(storage).rows == [answer(0), answer(1)]
    assert compact(storage) == 2
    assert load_journal(storage).rows == [answer(0), answer(1)]


class Crash(Exception):
    """The process ends here."""


class CrashingStorage(LocalStorage):
    """Dies before the n-th change."""

    changes_left = 10**9

    def _change(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise Crash

    def delete(self, path: str) -> None:
        self._change()
        super().delete(path)

    def write_stream(self, path: str):  # type: ignore[no-untyped-def]
        self._change()
        return super().write_stream(path)


def test_a_crash_at_any_step_of_compaction_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for step in range(8):
        storage = CrashingStorage(str(tmp_path / str(step)))
        write(storage, "w1", answer(0), answer(1)).close()
        compact(storage)
        write(storage, "w2", answer(2)).close()
        write(storage, "w3", answer(3))
        expected = [answer(n) for n in range(4)]
        storage.changes_left = step
        try:
            compact(storage, no_writers=True)
        except Crash:
            pass
        storage.changes_left = 10**9
        assert load_journal(storage).rows == expected
        assert compact(storage, no_writers=True) == 4
        assert load_journal(storage).rows == expected
        assert len(storage.list("journal")) == 1


# --- group commit -----------------------------------------------------------------------------


class SlowLog:
    """A log whose sync takes as long as the test wants."""

    def __init__(self) -> None:
        import threading

        self.pending, self.stored, self.syncs = b"", b"", 0
        self.go = threading.Event()
        self.go.set()
        self.broken = False

    def append(self, data: bytes) -> None:
        self.pending += data

    def sync(self) -> None:
        data, self.pending = self.pending, b""
        self.go.wait(10)
        if self.broken:
            raise StorageError("disk full")
        self.stored += data
        self.syncs += 1

    def close(self) -> None:
        self.sync()


class SlowStorage(LocalStorage):
    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.slow = SlowLog()

    def log(self, path: str) -> SlowLog:
        return self.slow


def test_put_returns_when_durable_and_shares_syncs() -> None:
    async def scenario() -> None:
        storage = SlowStorage()
        writer = JournalWriter(storage, writer_id="w")
        storage.slow.go.clear()
        first = asyncio.create_task(writer.put(answer(0)))
        while not writer._sync or storage.slow.pending:
            await asyncio.sleep(0)
        others = [asyncio.create_task(writer.put(answer(n))) for n in range(1, 50)]
        await asyncio.sleep(0)
        assert not first.done()
        storage.slow.go.set()
        await asyncio.gather(first, *others)
        assert storage.slow.stored.count(b"\n") == 50
        assert storage.slow.syncs <= 3

    asyncio.run(scenario())


def test_a_cancelled_put_does_not_stop_the_others() -> None:
    async def scenario() -> None:
        storage = SlowStorage()
        writer = JournalWriter(storage, writer_id="w")
        storage.slow.go.clear()
        first = asyncio.create_task(writer.put(answer(0)))
        second = asyncio.create_task(writer.put(answer(1)))
        await asyncio.sleep(0)
        first.cancel()
        storage.slow.go.set()
        await second
        assert storage.slow.stored.count(b"\n") == 2

    asyncio.run(scenario())


def test_a_failed_sync_is_heard_by_everyone_who_waits() -> None:
    async def scenario() -> None:
        storage = SlowStorage()
        writer = JournalWriter(storage, writer_id="w")
        storage.slow.broken = True
        results = await asyncio.gather(
            *(writer.put(answer(n)) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, StorageError) for result in results)

    asyncio.run(scenario())


def test_on_a_real_disk_many_answers_share_few_syncs(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer waits for more than the sync under way and its own: within 250 ms on any disk."""
    syncs, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (syncs.append(handle), real(handle)))

    async def scenario() -> None:
        writer = JournalWriter(storage, writer_id="w")
        opened = len(syncs)
        await asyncio.gather(*(writer.put(answer(n)) for n in range(500)))
        assert 1 <= len(syncs) - opened <= 3

    asyncio.run(scenario())
    assert len(load_journal(storage).rows) == 500
