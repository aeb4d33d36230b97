"""The journal: every answer, durable before anyone relies on it; the only cache there is.

Each actor writes its own log in `journal/` (lines of `lines.py`), so writers never meet. Readers
take all logs and the compacted Parquet files together, as one table. An attempt is identified by
(key, lease, slot); the same attempt read twice, as a crash in the middle of compaction leaves it,
is one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge.errors import CorruptedError, StorageError
from ray_judge.escalation.books.accounts import to_nanos, to_usd
from ray_judge.escalation.books.lines import LineLog, log_names, read_listed, read_log
from ray_judge.records import Answer, Outcome, Usage
from ray_judge.storage.local import Missing, Storage

FOLDER = "journal"
_TYPES: dict[pl.DataType, str] = {
    pl.String(): "key outcome verdict model response_id tier lease error run",
    pl.Float64(): "score at",
    pl.Decimal(18, 9): "cost_usd",
    pl.Int64(): "input_tokens output_tokens cached_input_tokens cache_write_tokens "
    "reasoning_tokens slot limit",
    pl.Boolean(): "estimated final",
}
SCHEMA = pl.Schema({name: kind for kind, names in _TYPES.items() for name in names.split()})
"""One row per attempt. A verdict is in `verdict` (A, B, tie) or in `score`, never in both; usage
is null where no answer arrived; `run` is who paid."""

_PLAIN = "key cost_usd model response_id lease slot at final error limit".split()
_EMPTY = SCHEMA.to_frame()
_LINES = pl.Schema({**SCHEMA, "cost_usd": pl.String()})
_NO_USAGE = pl.col("input_tokens").is_null()
_VERSION = b"1"
_UNREADABLE = (
    pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException,
    OSError, LookupError, ValueError,
)  # fmt: skip


class JournalWriter:
    """One actor's log. `append` and `sync` are the synchronous core; `put` groups them."""

    def __init__(
        self, storage: Storage, writer_id: str, *, run: str, linger_s: float = 0.0
    ) -> None:
        """Begin the log `journal/<writer_id>.log`; `AlreadyExists` when the id was used before.

        `run`: who pays. `linger_s`: how long a sync waits for company.
        """
        self._log = LineLog(storage.log(f"{FOLDER}/{writer_id}.log"))
        self._run, self._linger_s = run, linger_s
        self._durable = 0
        self._sync: asyncio.Task[None] | None = None

    def append(self, answer: Answer) -> int:
        """Buffer one answer and return its number; not durable before the next `sync`."""
        return self._log.append({"t": "answer", **_row(answer), "run": self._run})

    def sync(self) -> None:
        self._durable = self._log.sync()

    async def put(self, answer: Answer) -> None:
        """Append, and return when it is durable: what arrives during a sync shares the next one."""
        number = self.append(answer)
        while self._durable < number:
            if self._sync is None or self._sync.done():
                self._sync = asyncio.ensure_future(self._sync_soon())
            await asyncio.shield(self._sync)

    async def _sync_soon(self) -> None:
        if self._linger_s:
            await asyncio.sleep(self._linger_s)
        await asyncio.to_thread(self.sync)

    def close(self) -> None:
        """Mark the log as ended and let go of it.

        Raises `StorageError` where an answer is lost by it, and nobody was told before.
        """
        answers_at_stake = self._log.unsynced
        self._log.append({"t": "end"})
        with nullcontext() if answers_at_stake else suppress(StorageError):
            self._log.close()


class InVain(NamedTuple):
    """How often a question was asked without a final answer."""

    unusable: int = 0  # an answer came that is no verdict
    lost: int = 0  # an answer may have been computed, and did not arrive
    not_run: int = 0  # nothing was computed


class Journal:
    """Everything that was ever paid for and recorded, at the moment of reading."""

    def __init__(self, frames: Iterable[pl.DataFrame], limit: int = 0) -> None:
        """`limit`: the output tokens of a request now; answers that were cut below it are open."""
        self._limit = limit
        attempt = ["key", "lease", "slot"]
        frame = pl.concat([_EMPTY, *frames]).sort("at", *attempt)
        self.frame = frame.unique(attempt, keep="first", maintain_order=True)
        """Every attempt once, the oldest first; columns as in `SCHEMA`."""

    @cached_property
    def final(self) -> pl.DataFrame:
        """The final answer of each question, the earliest one if two were paid for."""
        cut_before = pl.col("limit").is_not_null() & (pl.col("limit") < self._limit)
        ended = self.frame.filter(pl.col("final") & ~cut_before)
        return ended.unique("key", keep="first", maintain_order=True)

    @cached_property
    def answered(self) -> set[str]:
        return set(self.final["key"])

    def answers(self, keys: Iterable[str] | None = None) -> dict[str, Answer]:
        """Key → final answer, else the last attempt, of these questions or of all."""
        open_ones = self.frame.join(self.final.select("key"), on="key", how="anti")
        last = open_ones.unique("key", keep="last", maintain_order=True).with_columns(final=False)
        rows = pl.concat([self.final, last])
        if keys is not None:
            rows = rows.filter(pl.col("key").is_in(list(keys)))
        return {row["key"]: _answer(row) for row in rows.iter_rows(named=True)}

    def in_vain(self) -> dict[str, InVain]:
        """Key → how often it was asked in vain, of each question without a final answer."""
        unanswered = self.frame.join(self.final.select("key"), on="key", how="anti")
        counts = unanswered.group_by("key").agg(
            unusable=(~_NO_USAGE).sum(),
            lost=(_NO_USAGE & (pl.col("cost_usd") > 0)).sum(),
            not_run=(_NO_USAGE & (pl.col("cost_usd") == 0)).sum(),
        )
        return {key: InVain(*count) for key, *count in counts.iter_rows()}

    def paid(self, leases: Collection[str]) -> dict[tuple[str, int], Decimal]:
        """(lease, slot) → dollars of the attempt that the slot paid for, of these leases."""
        slots = self.frame.filter(pl.col("lease").is_in(list(leases))).group_by("lease", "slot")
        costs = slots.agg(pl.col("cost_usd").max())
        return {(lease, slot): cost for lease, slot, cost in costs.iter_rows()}

    def costs(self, run: str) -> dict[str, Decimal]:
        """Key → dollars of this run's own attempts."""
        ours = self.frame.filter(run=run).group_by("key")
        return dict(ours.agg(pl.col("cost_usd").sum()).iter_rows())

    def usages(self) -> pl.DataFrame:
        """Per question, run and model the tokens of all attempts that a server counted."""
        tokens = pl.col("input_tokens", "output_tokens", "cached_input_tokens").sum()
        counted = self.frame.filter(~_NO_USAGE, estimated=False)
        return counted.group_by("key", "run", "model").agg(tokens)

    def cached(self, run: str) -> dict[str, tuple[int, int]]:
        """Service tier → input tokens of this run that a prompt cache gave, and that it took."""
        tokens = pl.col("cached_input_tokens", "cache_write_tokens").sum()
        ours = self.frame.filter(~_NO_USAGE, run=run).group_by("tier").agg(tokens)
        return {tier: (read, written) for tier, read, written in ours.iter_rows()}

    def usable(self, run: str) -> int:
        """How many verdicts this run has paid for."""
        return self.frame.filter(run=run, outcome=Outcome.RESOLVED.value).height

    def requests(self, run: str) -> int:
        """How many attempts are this run's own."""
        return int((self.frame["run"] == run).sum())

    @property
    def rows(self) -> list[Answer]:
        return [_answer(row) for row in self.frame.iter_rows(named=True)]


def load_journal(storage: Storage, limit: int = 0) -> Journal:
    """Read every answer. Raises `CorruptedError` (file and line), `StorageError`."""
    return Journal(_read(storage).frames.values(), limit)


class _Contents(NamedTuple):
    """Attempts by file, logs that their writers closed, names that a crash left to be removed."""

    frames: dict[str, pl.DataFrame]
    ended: set[str]
    replaced: set[str]


def _read(storage: Storage) -> _Contents:
    return read_listed(storage, FOLDER, lambda paths: _read_once(storage, paths))


def _read_once(storage: Storage, paths: Sequence[str]) -> _Contents:
    contents, compacted = _Contents({}, set(), set()), _compacted(paths)
    for name in reversed(compacted):
        if name not in contents.replaced:
            contents.frames[name], replaced = _read_compacted(storage, name)
            contents.replaced.update(replaced)
    for log, parts in log_names(paths).items():
        if log in contents.replaced:
            continue
        records = read_log(storage, log, parts)
        if unknown := {record["t"] for record in records} - {"answer", "end"}:
            raise CorruptedError(f"an unknown kind of record: {unknown.pop()}", file=log)
        if records and records[-1]["t"] == "end":
            contents.ended.add(log)
        answers = [record for record in records if record["t"] == "answer"]
        contents.frames[log] = _frame(answers) if answers else _EMPTY
    # A listing that comes in pages, beside a compaction, can miss the new file, which was not yet
    # there, and then the logs, which are gone. One that begins now shows the new file.
    if _compacted(storage.list(FOLDER)) != compacted:
        raise Missing("compacted while it was read", path=FOLDER)
    return contents


def _frame(answers: list[dict[str, Any]]) -> pl.DataFrame:
    money = pl.col("cost_usd").cast(SCHEMA["cost_usd"])
    return pl.DataFrame(answers, schema=_LINES).with_columns(money)


def _compacted(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if path.endswith(".parquet"))


def _read_compacted(storage: Storage, name: str) -> tuple[pl.DataFrame, list[str]]:
    """The attempts of a compacted file, and the names of the files that it replaces."""
    try:
        table = pq.read_table(storage.open_input(name), page_checksum_verification=True)
        metadata = table.schema.metadata or {}
        if metadata.get(b"version") == _VERSION:
            frame = pl.DataFrame(pl.from_arrow(table.select(SCHEMA.names()))).cast(SCHEMA)
            return frame, metadata[b"replaced"].decode().split("\n")
        problem = "not a journal of this version"
    except _UNREADABLE as error:
        problem = f"a damaged journal ({str(error).partition(chr(10))[0]})"
    raise CorruptedError(problem, file=f"{storage.uri}/{name}")


def compact(storage: Storage, may_fold: Callable[[str], bool], token: str | None = None) -> int:
    """Fold logs into one Parquet file; return how many attempts it holds.

    Folds the logs that their writers ended, and those for whose writer id `may_fold` is true: that
    writer surely is dead. A crash at any step loses and doubles nothing: the new file appears at
    once and names what it replaces, readers skip that, and only then is it removed. Several runs
    may fold at once: each file has a name of its own (`token`; default: random), since under one
    name the later file would take the earlier one's answers away.
    """
    ids = {log: log[len(FOLDER) + 1 : -len(".log")] for log in log_names(storage.list(FOLDER))}
    dead = {log for log, writer_id in ids.items() if may_fold(writer_id)}  # before it is read
    contents = _read(storage)
    _remove(storage, contents.replaced)
    compacted = _compacted(contents.frames)
    logs = [log for log in contents.frames if log in contents.ended | dead]
    frame = Journal(contents.frames[name] for name in logs + compacted).frame
    if not logs:
        return frame.height
    newest = max((int(name.split("compacted-")[-1][:8]) for name in compacted), default=0)
    new = f"{FOLDER}/compacted-{newest + 1:08d}-{token or secrets.token_hex(4)}.parquet"
    table = frame.to_arrow().replace_schema_metadata(
        {"version": _VERSION, "replaced": "\n".join(sorted(logs + compacted))}
    )
    with storage.write_stream(new) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    _remove(storage, logs + compacted)
    return frame.height


def _remove(storage: Storage, names: Iterable[str]) -> None:
    logs = log_names(storage.list(FOLDER))
    for name in sorted(names):
        for part in logs.get(name, [name]):
            storage.delete(part)


def _row(answer: Answer) -> dict[str, Any]:
    """The line of an answer, as plain JSON: what is null in it is left out."""
    row = asdict(answer)
    row |= row.pop("usage") or {}
    if isinstance(answer.verdict, int | float):
        row |= {"verdict": None, "score": float(answer.verdict)}
    row["cost_usd"] = str(to_usd(to_nanos(answer.cost_usd)))
    for name, value in row.items():
        if isinstance(value, str):  # of a server, maybe: half a surrogate pair is in no encoding
            row[name] = value.encode(errors="replace").decode()
    return {name: row[name] for name in SCHEMA if row.get(name) is not None}


def _answer(row: Mapping[str, Any]) -> Answer:
    usage = {name: row[name] for name in Usage.__dataclass_fields__}
    return Answer(
        outcome=Outcome(row["outcome"]),
        verdict=row["verdict"] if row["score"] is None else row["score"],
        usage=None if row["input_tokens"] is None else Usage(**usage),
        **{name: row[name] for name in _PLAIN},
    )
