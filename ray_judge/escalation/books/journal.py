"""The journal: every answer, durable before anyone relies on it; the only cache there is.

Each actor writes its own log under `path` (lines of `lines.py`), so writers never meet. Readers
take all logs and the compacted Parquet file together. An attempt is identified by (key, lease,
slot); the same attempt read twice, as a crash in the middle of compaction leaves it, is one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.errors import CorruptedError
from ray_judge.escalation.books.accounts import parse_usd, to_nanos, to_usd
from ray_judge.escalation.books.lines import LineLog, log_names, read_log
from ray_judge.records import MONEY, Answer, Outcome, Usage
from ray_judge.storage.local import Missing, Storage

if TYPE_CHECKING:
    import polars as pl

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("verdict", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("cost_usd", MONEY, nullable=False),
        pa.field("model", pa.string()),
        pa.field("response_id", pa.string()),
        pa.field("input_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("cached_input_tokens", pa.int64()),
        pa.field("cache_write_tokens", pa.int64()),
        pa.field("reasoning_tokens", pa.int64()),
        pa.field("estimated", pa.bool_()),
        pa.field("tier", pa.string()),
        pa.field("lease", pa.string(), nullable=False),
        pa.field("slot", pa.int64(), nullable=False),
        pa.field("at", pa.float64(), nullable=False),
        pa.field("final", pa.bool_(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("verdict_prob", pa.float64()),
        pa.field("tie_prob", pa.float64()),
        pa.field("run", pa.string()),
    ]
)
"""One row per attempt. A verdict is in `verdict` (A, B, tie) or in `score`, never in both."""

_LATER = ("verdict_prob", "tie_prob", "run")
"""Not in lines that have none, nor in any file older than they are."""
_USAGE = tuple(Usage.__dataclass_fields__)
_VERSION = "1"
_COMPACTIONS_IN_A_ROW = 3


class JournalWriter:
    """One actor's log. `append` and `sync` are the synchronous core; `put` groups them."""

    def __init__(
        self,
        storage: Storage,
        path: str = "journal",
        *,
        writer_id: str,
        clock: Callable[[], float] = time.monotonic,
        linger_s: float = 0.0,
        run: str | None = None,
    ) -> None:
        """Begin the log `<path>/<writer_id>.log`; `AlreadyExists` when the id was used before.

        `linger_s`: how long a sync waits for company (0.1 keeps an object store's bill low).
        `run`: who pays, where several runs share the journal.
        """
        self._log = LineLog(storage.log(f"{path}/{writer_id}.log"))
        self._clock = clock
        self._linger_s = linger_s
        self._payer = {} if run is None else {"run": run}
        self._durable = 0
        self._sync: asyncio.Task[None] | None = None
        self.slowest_put_s = 0.0

    def append(self, answer: Answer) -> int:
        """Buffer one answer and return its number; not durable before the next `sync`."""
        return self._log.append({"t": "answer", **_row(answer, money=str), **self._payer})

    def sync(self) -> None:
        """Make all appended answers durable."""
        self._durable = self._log.sync()

    async def put(self, answer: Answer) -> None:
        """Append, and return when it is durable. Answers that arrive during a sync share the next.

        Raises `StorageError`; the log is dead then.
        """
        begun = self._clock()
        number = self.append(answer)
        while self._durable < number:
            if self._sync is None or self._sync.done():
                self._sync = asyncio.ensure_future(self._group())
            await asyncio.shield(self._sync)
        self.slowest_put_s = max(self.slowest_put_s, self._clock() - begun)

    async def _group(self) -> None:
        if self._linger_s:
            await asyncio.sleep(self._linger_s)
        await asyncio.to_thread(self.sync)

    def close(self) -> None:
        """Mark the log as ended and let go of it."""
        self._log.append({"t": "end"})
        self._log.close()


@dataclass(frozen=True, slots=True)
class Journal:
    """Everything that was ever paid for and recorded.

    `answers`: the final answer of each question, the earliest one if two were paid for (a crash
    between two of them). `paid`: cost of each attempt by (lease, slot), what recovery goes by.
    """

    rows: list[Answer]
    answers: dict[str, Answer]
    paid: dict[tuple[str, int], Decimal]

    def attempts(self, key: str) -> list[Answer]:
        """All attempts at one question, oldest first."""
        return [answer for answer in self.rows if answer.key == key]

    def unusable(self) -> dict[str, int]:
        """How often each question without a final answer got one that is no verdict."""
        counts: dict[str, int] = {}
        for answer in self.rows:
            # A lost answer has no usage, and says nothing about the question.
            if answer.usage is not None and not answer.final and answer.key not in self.answers:
                counts[answer.key] = counts.get(answer.key, 0) + 1
        return counts

    def frame(self) -> pl.DataFrame:
        """One row per attempt; columns as in `SCHEMA`."""
        import polars as pl

        return pl.DataFrame(pl.from_arrow(_table(self.rows)))


def load_journal(storage: Storage, path: str = "journal") -> Journal:
    """Read the whole journal. Torn tails are dropped; `CorruptedError` names file and line."""
    return _journal(_read(storage, path).all_rows())


@dataclass(slots=True)
class _Contents:
    """What lies under the path: attempts by file, less what a compacted file has replaced.

    `ended`: logs whose writer closed them. `replaced`: names that a crash left to be removed.
    """

    rows: dict[str, list[Answer]]
    ended: set[str]
    replaced: set[str]

    def all_rows(self) -> Iterable[Answer]:
        return chain.from_iterable(self.rows.values())


def _read(storage: Storage, path: str) -> _Contents:
    for _ in range(_COMPACTIONS_IN_A_ROW):
        try:
            return _read_once(storage, path)
        except Missing:
            continue  # a compaction removed what we had listed: list again
    return _read_once(storage, path)


def _read_once(storage: Storage, path: str) -> _Contents:
    paths = storage.list(path)
    contents = _Contents({}, set(), set())
    for name in sorted((p for p in paths if p.endswith(".parquet")), reverse=True):
        if name in contents.replaced:
            continue
        table = pq.read_table(storage.open_input(name))
        metadata = table.schema.metadata or {}
        if metadata.get(b"version") != _VERSION.encode():
            raise CorruptedError("not a journal of this version", file=name)
        contents.replaced.update(metadata[b"replaced"].decode().split("\n"))
        contents.rows[name] = [_answer(row) for row in table.to_pylist()]
    for log, parts in log_names(paths).items():
        if log in contents.replaced:
            continue
        rows = contents.rows[log] = []
        for record in read_log(storage, log, parts):
            if record["t"] == "end":
                contents.ended.add(log)
            elif record["t"] == "answer":
                rows.append(_answer(record))
            else:
                raise CorruptedError(f"an unknown kind of record: {record['t']}", file=log)
    return contents


def _journal(rows: Iterable[Answer]) -> Journal:
    attempts: dict[tuple[str, str, int], Answer] = {}
    for answer in sorted(rows, key=lambda a: (a.at, a.key, a.lease, a.slot)):
        attempts.setdefault((answer.key, answer.lease, answer.slot), answer)
    kept = list(attempts.values())
    answers: dict[str, Answer] = {}
    paid: dict[tuple[str, int], Decimal] = {}
    for answer in kept:
        if answer.final:
            answers.setdefault(answer.key, answer)
        slot = (answer.lease, answer.slot)
        paid[slot] = max(answer.cost_usd, paid.get(slot, Decimal(0)))
    return Journal(kept, answers, paid)


def compact(
    storage: Storage,
    path: str = "journal",
    *,
    no_writers: bool = False,
    token: str | None = None,
) -> int:
    """Fold logs into one Parquet file; return how many attempts it holds.

    Folds the logs that their writers closed; with `no_writers` (the caller holds the run's lock
    and knows that nobody is writing) also those whose writers died. A crash at any step loses
    nothing and doubles nothing: the new file appears at once and names what it replaces, readers
    skip what it names, and only then is that removed. Several runs may fold at the same time: each
    file has a name of its own (`token`; default: random), holds all that it replaces, and is read
    beside the others; under one name the later file would take the earlier one's answers away.
    """
    contents = _read(storage, path)
    _remove(storage, path, contents.replaced)
    compacted = [name for name in contents.rows if name.endswith(".parquet")]
    logs = [name for name in contents.rows if name.endswith(".log")]
    if not no_writers:
        logs = [log for log in logs if log in contents.ended]
    rows = _journal(chain.from_iterable(contents.rows[name] for name in logs + compacted)).rows
    if not logs:
        return len(rows)
    newest = max((int(name.split("compacted-")[-1][:8]) for name in compacted), default=0)
    new = f"{path}/compacted-{newest + 1:08d}-{token or secrets.token_hex(4)}.parquet"
    table = _table(rows).replace_schema_metadata(
        {"version": _VERSION, "replaced": "\n".join(sorted(logs + compacted))}
    )
    with storage.write_stream(new) as file:
        pq.write_table(table, file, compression="zstd")
    _remove(storage, path, logs + compacted)
    return len(rows)


def _remove(storage: Storage, path: str, names: Iterable[str]) -> None:
    logs = log_names(storage.list(path))
    for name in sorted(names):
        for part in logs.get(name, [name]):
            storage.delete(part)


def _row(answer: Answer, *, money: Callable[[Decimal], Any]) -> dict[str, Any]:
    usage: Mapping[str, Any] = asdict(answer.usage) if answer.usage else {}
    is_score = isinstance(answer.verdict, int | float)
    return {
        "key": answer.key,
        "outcome": str(answer.outcome),
        "verdict": None if is_score else answer.verdict,
        "score": float(answer.verdict) if is_score and answer.verdict is not None else None,
        "cost_usd": money(to_usd(to_nanos(answer.cost_usd))),
        "model": answer.model,
        "response_id": answer.response_id,
        **{name: usage.get(name) for name in _USAGE},
        "lease": answer.lease,
        "slot": answer.slot,
        "at": answer.at,
        "final": answer.final,
        "error": answer.error,
        **{name: value for name in _LATER if (value := getattr(answer, name)) is not None},
    }


def _answer(row: Mapping[str, Any]) -> Answer:
    usage = None
    if row["input_tokens"] is not None:
        usage = Usage(**{name: row[name] for name in _USAGE})
    return Answer(
        key=row["key"],
        outcome=Outcome(row["outcome"]),
        verdict=row["verdict"] if row["score"] is None else row["score"],
        cost_usd=to_usd(parse_usd(str(row["cost_usd"]))),
        usage=usage,
        model=row["model"],
        response_id=row["response_id"],
        lease=row["lease"],
        slot=row["slot"],
        at=row["at"],
        final=row["final"],
        error=row["error"],
        **{name: row.get(name) for name in _LATER},
    )


def _table(rows: Iterable[Answer]) -> pa.Table:
    return pa.Table.from_pylist([_row(row, money=lambda usd: usd) for row in rows], schema=SCHEMA)
