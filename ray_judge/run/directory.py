"""Everything that a run leaves on disk: layout, commit, resume, lock.

    <output>/run.json               what was asked, of which inputs; written once, never changed
    <output>/lock                   who works here now (on an object store: lock/<number>)
    <output>/judged/<chunk>.parquet local verdicts: the file's existence is the commit
    <output>/judged-2/ ...          the same of the second of several local judges, and so on
    <output>/ledger/  journal/      the money (escalation/)
    <output>/scored/<shard name>    input columns + verdict columns
    <output>/review.parquet         rows left to a person (strong.abstain_below)
    <output>/report.html            for people
    <output>/summary.json           for programs; written last: its existence means "finished"

A file has its final name only when it is complete, so "what is not there is still to do" is the
whole of resuming.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_judge import __version__
from ray_judge.config import RunConfig, differences, parse
from ray_judge.errors import (
    AlreadyExists,
    CorruptedError,
    RunChangedError,
    RunLockedError,
)
from ray_judge.records import Chunk, Shard
from ray_judge.run.columns import Columns
from ray_judge.storage.local import Storage, open_storage
from ray_judge.storage.lock import locked

LAYOUT = 1
"""Version of this layout; a directory of a newer one is refused."""
REVIEW = "review.parquet"


@dataclass(frozen=True)
class Plan:
    """What `run.json` says: the inputs as they were found, and how they are read."""

    shards: tuple[Shard, ...]
    columns: Columns
    chunk_rows: int

    @property
    def rows(self) -> int:
        """Rows of the whole run."""
        return sum(shard.rows for shard in self.shards)

    def chunks(self) -> Iterator[Chunk]:
        """Cut every shard, in order; a pure function of the plan."""
        for number, shard in enumerate(self.shards):
            for start in range(0, shard.rows, self.chunk_rows):
                yield Chunk(
                    name=f"{number:05d}-{start // self.chunk_rows:05d}",
                    shard=shard.path,
                    shard_name=shard.name,
                    start=start,
                    rows=min(self.chunk_rows, shard.rows - start),
                )

    def shard_chunks(self, shard: Shard) -> list[Chunk]:
        """The chunks of one shard, in order."""
        return [chunk for chunk in self.chunks() if chunk.shard == shard.path]


class RunDirectory:
    """One run's place in storage. Cheap to pickle: workers open it again by its URI."""

    def __init__(self, uri: str, folder: str = "judged") -> None:
        """Name the place; nothing is touched until something is read or written."""
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        self.storage: Storage = open_storage(self.uri)
        self._folder = folder

    def __reduce__(self) -> tuple[type[RunDirectory], tuple[str, str]]:
        """Pickle by URI."""
        return (RunDirectory, (self.uri, self._folder))

    def tier(self, number: int) -> RunDirectory:
        """The same run as a tier's judge sees it (0 is the first): its own judged chunks."""
        return RunDirectory(self.uri, f"judged-{number + 1}" if number else "judged")

    # -- run.json ------------------------------------------------------------------------------

    def plan(self) -> Plan | None:
        """Read the plan, or None where no run has begun."""
        document = self._document("run.json")
        if document is None:
            return None
        shards = tuple(Shard(**{**shard, "chunks": ()}) for shard in document["shards"])
        columns = document["columns"]
        columns = Columns(columns["text"], columns["id"], columns["label"], tuple(columns["extra"]))
        return Plan(shards, columns, document["chunk_rows"])

    def begin(self, config: RunConfig, plan: Plan) -> None:
        """Write run.json, once for ever."""
        shards = [asdict(shard) for shard in plan.shards]
        for shard in shards:
            del shard["chunks"]
        document = {
            "layout": LAYOUT,
            "ray_judge": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "digest": config.digest(),
            "config": config.document(),
            "rows": plan.rows,
            "chunk_rows": plan.chunk_rows,
            "columns": asdict(plan.columns),
            "shards": shards,
        }
        try:
            self.storage.create("run.json", json.dumps(document, indent=1).encode())
        except AlreadyExists:
            raise RunLockedError("another process began this run just now", run=self.uri) from None

    def config(self) -> RunConfig | None:
        """The configuration that the run began with, or None where no run has begun."""
        document = self._document("run.json")
        return None if document is None else parse(document["config"], file=f"{self.uri}/run.json")

    def check_config(self, config: RunConfig) -> None:
        """Refuse another configuration than the one the run began with, naming every key."""
        document = self._document("run.json")
        if document is None:
            return
        found = differences(document["config"], config.document())
        if found:
            raise RunChangedError(
                "this run directory was made by another configuration: "
                + "; ".join(found)
                + ". Choose another output, or go back to the first configuration",
                run=self.uri,
            )

    # -- judged/ -------------------------------------------------------------------------------

    def commit_judged(self, chunk: str, table: pa.Table) -> None:
        """Make a chunk's local verdicts durable under their final name, all at once."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self.storage.write(f"{self._folder}/{chunk}.parquet", sink.getvalue())

    def judged(self) -> set[str]:
        """Names of the chunks that are committed."""
        return {
            Path(name).name.removesuffix(".parquet")
            for name in self.storage.list(self._folder)
            if name.endswith(".parquet")
        }

    def has_judged(self, chunk: str) -> bool:
        """Whether a chunk is committed."""
        return self.storage.exists(f"{self._folder}/{chunk}.parquet")

    def read_judged(self, chunk: str) -> pa.Table:
        """One chunk's local verdicts. Raises CorruptedError when the file is damaged."""
        path = f"{self._folder}/{chunk}.parquet"
        try:
            return pq.read_table(io.BytesIO(self.storage.read(path)))
        except pa.ArrowException as error:
            raise CorruptedError(
                f"a file of this run is damaged ({error}): delete it to have it made again",
                file=f"{self.uri}/{path}",
            ) from None

    # -- scored/, summary.json -----------------------------------------------------------------

    def scored(self) -> set[str]:
        """Names of the shards that are scored."""
        return {name.removeprefix("scored/") for name in self.storage.list("scored")}

    def summary(self) -> dict[str, Any] | None:
        """The finished run's summary, or None."""
        return self._document("summary.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: the run is finished."""
        text = json.dumps(summary, indent=1, default=_plain)
        self.storage.write("summary.json", text.encode() + b"\n")

    def reopen(self) -> None:
        """Take back the end of a run that goes on (its cap was raised); the summary goes last."""
        for name in [*self.storage.list("scored"), REVIEW]:
            self.storage.delete(name)
        self.storage.delete("summary.json")

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
            raise CorruptedError(
                "this run was made by a newer ray_judge: use that one", file=f"{self.uri}/{path}"
            )
        return document

    # -- lock ----------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """Own the run directory, or raise RunLockedError naming who does.

        The ledger's fencing, not this lock, is what keeps two owners from spending.
        """
        return locked(self.uri, "lock", "run directory")


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")
