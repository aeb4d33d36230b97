"""The record of each batch, in the books: how far its submission is.

    <books>/batches/<id>.json    replaced at every step

`<id>` is ours: it goes to the provider as metadata, and the batch is found again by it. What a
batch asks stands in its lease, whose actor is `batch:<id>`: as long as the record is there and not
over, the lease is alive, whoever owns the books.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from ray_judge.errors import CorruptedError
from ray_judge.storage.local import Storage

FOLDER = "batches"
ACTOR = "batch:"
"""What the name of a batch's actor in the ledger begins with; its id follows."""
VERSION = 1


class Stage(StrEnum):
    """How far a batch is; each is written before the next thing is done."""

    INTENT = "intent"
    CREATING = "creating"
    """The provider may have been asked to create it: it is looked for before anything else."""
    SUBMITTED = "submitted"
    READ = "read"
    ABANDONED = "abandoned"
    """Nothing of it ran, and its lease was given back."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch as `batches/<id>.json` keeps it.

    `run`: whose it is. `tokens`: prompt tokens, estimated. `at`: Unix seconds of the intent.
    `file`, `batch`: the provider's ids. `words`: asked without `response_format`; `refused`: the
    server answered that it does not take it.
    """

    id: str
    run: str
    requests: int
    tokens: int
    at: float
    stage: Stage = Stage.INTENT
    file: str | None = None
    batch: str | None = None
    words: bool = False
    refused: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing of it is to be done any more."""
        return self.stage in (Stage.READ, Stage.ABANDONED)

    @property
    def actor(self) -> str:
        """Under which name the ledger holds its lease: no other batch ever has it."""
        return f"{ACTOR}{self.id}"


def path_of(batch: str) -> str:
    return f"{FOLDER}/{batch}.json"


def save(storage: Storage, record: BatchRecord) -> None:
    """Make a step durable."""
    document = {"version": VERSION, **asdict(record)}
    storage.write(path_of(record.id), json.dumps(document).encode())


def load(storage: Storage, run: str) -> list[BatchRecord]:
    """Every batch of a run, oldest first. Raises CorruptedError."""
    records = [load_record(storage, path) for path in storage.list(FOLDER)]
    ours = [record for record in records if record.run == run]
    return sorted(ours, key=lambda record: (record.at, record.id))


def load_record(storage: Storage, path: str) -> BatchRecord:
    """One batch. Raises CorruptedError, Missing."""
    try:
        document = json.loads(storage.read(path))
        if document.pop("version") == VERSION:
            return BatchRecord(**{**document, "stage": Stage(document["stage"])})
    except (ValueError, LookupError, AttributeError, TypeError):
        pass
    file = f"{storage.uri}/{path}"
    raise CorruptedError("a batch's record is damaged, or from a newer version", file=file)
