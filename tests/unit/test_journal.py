"""The journal: what was put is there after any crash, once, to the nano-dollar."""

import asyncio
import io
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal as D
from typing import Any

import polars as pl
import pytest

from ray_judge.errors import CorruptedError, StorageError
from ray_judge.escalation.books.journal import InVain, JournalWriter, compact, load_journal
from ray_judge.records import Answer, Outcome, Usage
from ray_judge.storage.local import Storage

from .memory import MemoryStorage


def answer(number: int = 0, **changes: Any) -> Answer:
    cost_usd, usage = D("0.001234567") + number, Usage(120, 7, 64, tier="flex")
    said = Outcome.RESOLVED, "A", cost_usd, usage, "gpt-4.1-2025-04-14", f"r{number}"
    return replace(Answer(f"{number:064x}", *said, "abc-1", number, 1000.0 + number), **changes)


def in_vain(number: int, **changes: Any) -> Answer:
    useless = {"outcome": Outcome.UNPARSEABLE, "verdict": None, "final": False, "error": "?"}
    return answer(number, **useless, **changes)


def answers(count: int) -> list[Answer]:
    return [answer(number) for number in range(count)]


def write(storage: Storage, name: str, *written: Answer, run: str = "run") -> JournalWriter:
    writer = JournalWriter(storage, name, run=run)
    for one in written:
        writer.append(one)
    writer.sync()
    return writer


nobody: Callable[[str], bool] = lambda writer_id: False
everybody: Callable[[str], bool] = lambda writer_id: True


def rows(storage: Storage) -> list[Answer]:
    return load_journal(storage).rows


def test_everything_comes_back_as_it_was() -> None:
    storage = MemoryStorage()
    written = [
        answer(0),
        answer(1, verdict=7.5, usage=None),
        in_vain(2, usage=Usage(1, 2, estimated=True)),
        answer(3, model=None, response_id=None, error='a "bad"\nline'),
        answer(4, cost_usd=D(0)),
        answer(5, cost_usd=D("0.000000001")),
        answer(6, cost_usd=D("999999999.999999999")),
        answer(0, at=1008.0, slot=8, response_id="paid twice"),
    ]
    assert rows(storage) == []
    write(storage, "w1", *written[:2])
    write(storage, "w2", *written[2:]).close()
    for _ in range(2):
        journal = load_journal(storage)
        final = {one.key: one for one in reversed(written) if one.final}  # the earliest
        assert journal.rows == written
        unanswered = {written[2].key: written[2]}
        assert (journal.answered, journal.answers()) == (set(final), final | unanswered)
        asked = {written[1].key: written[1], **unanswered}
        assert journal.answers([*asked, "another"]) == asked
        assert compact(storage, everybody) == len(written)
    write(storage, "w3", answer(9, at=2e9, error="half a \ud83d character", model="\udc00")).close()
    assert compact(storage, nobody) == len(written) + 1
    assert (rows(storage)[-1].error, rows(storage)[-1].model) == ("half a ? character", "?")


@pytest.mark.parametrize(("limit", "final"), [(300, True), (200, True), (301, False)])
def test_an_answer_that_was_cut_is_open_under_a_higher_limit(limit: int, final: bool) -> None:
    storage = MemoryStorage()
    write(storage, "w1", replace(in_vain(0), final=True, limit=300)).close()
    for _ in range(2):
        journal = load_journal(storage, limit)
        assert journal.answered == ({answer(0).key} if final else set())
        assert bool(journal.in_vain()) is not final
        assert journal.answers()[answer(0).key].final is final
        assert compact(storage, everybody) == 1


def test_each_run_is_told_what_it_paid() -> None:
    storage = MemoryStorage()
    write(storage, "w1", answer(0), in_vain(1), answer(1, slot=7), run="runs/monday").close()
    write(storage, "w2", answer(2, lease="abc-2"), run="runs/tuesday")
    first, second, third = (one.cost_usd for one in answers(3))
    for _ in range(2):
        journal = load_journal(storage)
        assert journal.costs("runs/monday") == {answer(0).key: first, answer(1).key: second * 2}
        assert (journal.requests("runs/monday"), journal.requests("other")) == (3, 0)
        assert journal.paid(["abc-2", "other"]) == {("abc-2", 2): third}
        compact(storage, nobody)


@pytest.mark.parametrize(
    ("attempts", "counted"),
    [
        ([in_vain(0), in_vain(1)], InVain(unusable=2)),
        ([in_vain(0), in_vain(1, usage=None)], InVain(unusable=1, lost=1)),
        ([in_vain(0, usage=None, cost_usd=D(0))], InVain(not_run=1)),
        ([in_vain(0), answer(1)], None),
    ],
)
def test_questions_in_vain_are_counted(attempts: list[Answer], counted: InVain | None) -> None:
    storage = MemoryStorage()
    write(storage, "w", *(replace(one, key="k") for one in attempts), answer(9))
    assert load_journal(storage).in_vain() == ({"k": counted} if counted else {})


TABLE = io.BytesIO()
pl.DataFrame({"key": ["k"]}).write_parquet(TABLE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data: TABLE.getvalue(),  # another table
    ],
)
def test_a_damaged_compacted_file_is_named(damage: Callable[[bytes], bytes]) -> None:
    storage = MemoryStorage()
    write(storage, "w", *answers(20)).close()
    compact(storage, nobody)
    (name,) = storage.files
    storage.files[name] = damage(storage.files[name])
    with pytest.raises(CorruptedError, match=f"journal.*{name}"):
        load_journal(storage)


def test_compaction_folds_what_was_ended_and_is_readable_by_polars() -> None:
    storage = MemoryStorage()
    write(storage, "w1", answer(0)).close()
    write(storage, "w2", answer(1))  # still open
    assert compact(storage, nobody, token="a") == 1
    assert storage.list("journal") == ["journal/compacted-00000001-a.parquet", "journal/w2.log"]
    frame = pl.read_parquet(storage.files["journal/compacted-00000001-a.parquet"])
    assert frame.schema == load_journal(storage).frame.schema
    assert rows(storage) == answers(2)
    assert compact(storage, lambda writer_id: writer_id == "w2", token="b") == 2
    assert storage.list("journal") == ["journal/compacted-00000002-b.parquet"]
    assert rows(storage) == answers(2)


def test_a_listing_in_pages_beside_a_compaction_misses_nothing() -> None:
    storage = MemoryStorage()

    def once(wanted: str, happens: Callable[[], object]) -> None:
        """Before the next operation of this kind something else happens."""

        def before(operation: str, path: str) -> None:
            if operation == wanted:
                storage.before = lambda *_: None
                happens()

        storage.before = before

    for number in range(2):  # the second time the file that is replaced has been listed
        write(storage, f"w{number}", answer(number)).close()
        once("page", lambda: compact(storage, nobody))
        assert rows(storage) == answers(number + 1)
        assert len(storage.files) == 1
    write(storage, "w", answer(2), answer(3))
    first, second = storage.files.pop("journal/w.log").splitlines(keepends=True)
    storage.files["journal/w.log.00000002"] = second  # a later segment and not an earlier
    with pytest.raises(CorruptedError, match=r"gone.*w\.log\.00000001"):
        load_journal(storage)
    once("read", lambda: storage.write("journal/w.log.00000001", first))
    assert rows(storage) == answers(4)


def test_a_writer_that_dies_after_another_answer_loses_nothing() -> None:
    storage = MemoryStorage()
    writer = write(storage, "w", answer(0))

    def is_dead(writer_id: str) -> bool:
        writer.append(answer(1))
        writer.sync()
        return True

    assert compact(storage, is_dead) == 2
    assert rows(storage) == answers(2)


@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_any_step_of_compaction_loses_and_doubles_nothing(step: int) -> None:
    storage = MemoryStorage()
    write(storage, "w1", *answers(2)).close()
    compact(storage, nobody)
    write(storage, "w2", answer(2)).close()
    write(storage, "w3", answer(3))
    changes = []

    def crash(operation: str, path: str) -> None:
        changes.extend([path] * (operation in ("write", "delete")))
        if len(changes) > step:
            raise KeyboardInterrupt

    storage.before = crash
    with pytest.raises(KeyboardInterrupt) if step < 5 else nullcontext():
        compact(storage, everybody)
    storage.before = lambda *_: None
    for _ in range(2):
        assert rows(storage) == answers(4)
        assert compact(storage, everybody) == 4
        assert len(storage.files) == 1


def test_put_returns_when_durable_and_shares_syncs() -> None:
    async def scenario() -> None:
        go, syncs = threading.Event(), []
        storage = MemoryStorage()
        writer = JournalWriter(storage, "w", run="run")

        def slow(operation: str, path: str) -> None:
            syncs.append(operation)
            go.wait(10)

        storage.before = slow
        first = asyncio.create_task(writer.put(answer(0)))
        while not syncs:
            await asyncio.sleep(0)
        others = [asyncio.create_task(writer.put(answer(n))) for n in range(1, 50)]
        await asyncio.sleep(0)
        others[0].cancel()  # nobody else's answer waits for it
        assert not first.done()
        go.set()
        await asyncio.gather(first, *others[1:])
        assert len(syncs) <= 3
        assert rows(storage) == answers(50)

    asyncio.run(scenario())


def test_a_failed_sync_is_told_to_everyone_who_waits_and_not_again_at_the_end() -> None:
    def full(operation: str, path: str) -> None:
        if operation == "sync":
            raise StorageError("disk full")

    async def scenario() -> None:
        writer = JournalWriter(MemoryStorage(before=full), "w", run="run")
        puts = (writer.put(answer(n)) for n in range(3))
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(result, StorageError) for result in results)
        writer.close()

    asyncio.run(scenario())
    untold = JournalWriter(MemoryStorage(before=full), "w", run="run")
    untold.append(answer(0))
    with pytest.raises(StorageError, match="disk full"):
        untold.close()
