"""Everything that a run leaves on disk: layout, commit, resume, lock.

    <output>/run.json               what was asked, of which inputs; written once, never changed
    <output>/staged/                the input's JSON lines and CSV as Parquet
    <output>/lock                   who works here now
    <output>/progress.json          what the run does, and waits for, now (progress.py)
    <output>/judged/1/<chunk>.parquet   verdicts of the first local judge: the file is the commit
    <output>/judged/2/ ...          those of the second of several, and so on
    <output>/ledger/  journal/      the money (escalation/)
    <output>/scored/<shard name>    input columns + verdict columns
    <output>/outdated               while there is more to know than what is scored tells
    <output>/review.parquet         rows left to a person (strong.abstain_below)
    <output>/report.html            for people
    <output>/summary.json           for programs; written last: its existence means "finished"

A file has its final name only when it is complete: to resume is to do what is not there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge import __version__
from ray_judge.config import RunConfig, differences, is_asked, parse
from ray_judge.errors import AlreadyExists, CorruptedError, RunChangedError, RunLockedError
from ray_judge.records import Chunk, Shard
from ray_judge.run.columns import Columns
from ray_judge.storage.local import Storage, open_storage
from ray_judge.storage.lock import locked

LAYOUT = 1
"""Version of this layout; a directory of a newer one is refused."""
REVIEW = "review.parquet"
OUTDATED = "outdated"
PARTS = (("config", dict), ("columns", dict), ("shards", list), ("chunk_rows", int),
         ("not_taken", list))  # fmt: skip
"""What run.json is made of."""


@dataclass(frozen=True)
class Plan:
    """What `run.json` says: the inputs as they were found, and how they are read."""

    shards: tuple[Shard, ...]
    columns: Columns
    chunk_rows: int
    not_taken: tuple[str, ...] = ()
    """Files of the input that are none of its shards, each with the reason."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def chunks(self) -> Iterator[Chunk]:
        for number in range(len(self.shards)):
            yield from self.chunks_of(number)

    def chunks_of(self, number: int) -> list[Chunk]:
        """The chunks of one shard (the first is 0), in order."""
        shard, size = self.shards[number], self.chunk_rows
        return [
            Chunk(f"{number:05d}-{part:05d}", shard.path, shard.name, start, rows)
            for part, start in enumerate(range(0, shard.rows, size))
            for rows in [min(size, shard.rows - start)]
        ]


class RunDirectory:
    """One run's place in storage. A `tier` is the number of a local judge, from 0."""

    def __init__(self, uri: str) -> None:
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        self.storage: Storage = open_storage(self.uri)

    def plan(self) -> Plan | None:
        """Read the plan, or None where no run has begun."""
        document = self._begun()
        if document is None:
            return None
        shards = tuple(Shard(**shard) for shard in document["shards"])
        columns = Columns(**document["columns"] | {"extra": tuple(document["columns"]["extra"])})
        return Plan(shards, columns, document["chunk_rows"], tuple(document["not_taken"]))

    def begin(self, config: RunConfig, plan: Plan) -> None:
        """Write run.json, once."""
        document = {
            "layout": LAYOUT,
            "ray_judge": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "digest": config.digest(),
            "config": config.document(),
            "rows": plan.rows,
            "chunk_rows": plan.chunk_rows,
            "not_taken": plan.not_taken,
            "columns": asdict(plan.columns),
            "shards": [asdict(shard) for shard in plan.shards],
        }
        try:
            self.storage.create("run.json", json.dumps(document, indent=1).encode())
        except AlreadyExists:
            raise RunLockedError("another process began this run just now", run=self.uri) from None

    def config(self) -> RunConfig | None:
        """The configuration that the run began with, or None where no run has begun."""
        document = self._begun()
        return None if document is None else parse(document["config"], file=f"{self.uri}/run.json")

    def check_config(self, config: RunConfig, answered: Callable[[], int]) -> bool:
        """Refuse another configuration than the one the run began with, naming every key.

        Give whether the strong judge is asked otherwise now, which may be as long as it gave no
        verdict (`answered` counts them): see `change`.
        """
        document = self._begun()
        found = differences(document["config"], config.document()) if document else {}
        if not found:
            return False
        usable = answered() if all(map(is_asked, found)) else None
        if usable == 0:
            return True
        told = f"; {usable} verdicts of the strong judge are on file" if usable else ""
        raise RunChangedError(
            f"this run directory was made by another configuration: {'; '.join(found.values())}"
            f"{told}. Choose another output, or go back to the first configuration",
            run=self.uri,
        )

    def change(self, config: RunConfig) -> None:
        """Keep this configuration as the one that the run began with."""
        document = self._begun() or {}
        document |= {"digest": config.digest(), "config": config.document()}
        self.storage.write("run.json", json.dumps(document, indent=1).encode())

    def commit_judged(self, tier: int, chunk: str, table: pa.Table) -> None:
        """Make a judge's verdicts on a chunk durable under their final name, all at once."""
        with self.storage.write_stream(_judged(tier, chunk)) as sink:
            pq.write_table(table, sink, compression="zstd")

    def judged(self, tier: int) -> set[str]:
        """Names of the chunks that a judge has committed."""
        return {Path(name).stem for name in self.storage.list(f"judged/{tier + 1}")}

    def has_judged(self, tier: int, chunk: str) -> bool:
        return self.storage.exists(_judged(tier, chunk))

    def read_judged(self, tier: int, chunk: str) -> pa.Table:
        """A judge's verdicts on a chunk. Raises CorruptedError when the file is damaged."""
        path = _judged(tier, chunk)
        try:
            return pq.read_table(io.BytesIO(self.storage.read(path)))
        except pa.ArrowException as error:
            raise CorruptedError(
                f"a file of this run is damaged ({error}): delete it to have it made again",
                file=f"{self.uri}/{path}",
            ) from None

    def scored(self) -> set[str]:
        """Names of the shards that are scored, none of them outdated."""
        if self.storage.exists(OUTDATED):
            return set()
        return {name.removeprefix("scored/") for name in self.storage.list("scored")}

    @property
    def progress_s(self) -> float:
        """How often, in seconds, its progress may be kept: on an object store each put costs."""
        return 30.0 if "://" in self.storage.uri else 2.0

    def keep_progress(self, document: bytes) -> None:
        self.storage.write("progress.json", document)

    def progress(self) -> dict[str, Any] | None:
        return self._document("progress.json")

    def summary(self) -> dict[str, Any] | None:
        return None if self.storage.exists(OUTDATED) else self._document("summary.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        text = json.dumps(summary, indent=1, default=float)
        self.storage.write("summary.json", text.encode() + b"\n")
        self.storage.delete(OUTDATED)

    def reopen(self) -> None:
        """Have what is scored scored anew; every file stays until its successor takes its place."""
        if self.storage.list("scored"):
            self.storage.write(OUTDATED, b"")

    def _begun(self) -> dict[str, Any] | None:
        document = self._document("run.json")
        if document is not None and any(not isinstance(document.get(k), t) for k, t in PARTS):
            raise CorruptedError("this file of the run is damaged", file=f"{self.uri}/run.json")
        return document

    def _document(self, path: str) -> dict[str, Any] | None:
        if not self.storage.exists(path):
            return None
        try:
            document = json.loads(self.storage.read(path))
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise CorruptedError("this file of the run is damaged", file=f"{self.uri}/{path}")
        if document.get("layout", LAYOUT) > LAYOUT:
            said = "this run was made by a newer ray_judge: use that one"
            raise CorruptedError(said, file=f"{self.uri}/{path}")
        return document

    def locked(self) -> AbstractContextManager[None]:
        """Own the run directory, or raise RunLockedError naming who does."""
        return locked(self.uri, "lock", "run directory")


def _judged(tier: int, chunk: str) -> str:
    return f"judged/{tier + 1}/{chunk}.parquet"
