"""What a batch is made of: the lines of its input file, and our own records of it.

    batches/<id>.requests.json   which questions, in which slots of the lease; written once, first
    batches/<id>.json            how far the submission is; replaced at every step

`<id>` is ours: it goes to the provider as metadata, and the batch is found again by it. No
network here; the steps and their order are in `batch.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

import polars as pl

from ray_judge.config import RunConfig
from ray_judge.errors import CorruptedError
from ray_judge.escalation.pricing import (
    Price,
    input_token_bound,
    input_token_estimate,
    max_cost,
)
from ray_judge.escalation.question import StrongQuestion, in_words
from ray_judge.records import Chunk
from ray_judge.routing.policies import in_asking_order
from ray_judge.run.columns import Columns
from ray_judge.run.plan import read_examples, read_rows
from ray_judge.storage.local import Storage

FOLDER = "batches"
URL = "/v1/chat/completions"
VERSION = 1


class Stage(StrEnum):
    """How far a batch is; each is written before the next thing is done."""

    INTENT = "intent"
    LEASED = "leased"
    UPLOADED = "uploaded"
    CREATING = "creating"
    """The provider may have been asked to create it: it is looked for before anything else."""
    SUBMITTED = "submitted"
    READ = "read"
    ABANDONED = "abandoned"
    """Nothing of it ran, and its lease was given back."""


@dataclass(frozen=True, slots=True)
class BatchState:
    """One batch as `batches/<id>.json` keeps it.

    `tokens`: prompt tokens, estimated. `at`: Unix seconds of the intent. `unanswered`: slots of a
    batch that was read whose questions did not run. `words`: asked without `response_format`;
    `refused`: the server answered that it does not take it.
    """

    id: str
    requests: int
    tokens: int
    at: float
    stage: Stage = Stage.INTENT
    lease: str | None = None
    file: str | None = None
    batch: str | None = None
    unanswered: tuple[int, ...] = ()
    words: bool = False
    refused: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing of it is to be done any more."""
        return self.stage in (Stage.READ, Stage.ABANDONED)

    @property
    def actor(self) -> str:
        """Under which name the ledger holds its lease: no other batch ever has it."""
        return f"batch:{self.id}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One slot of a batch: its question, input tokens at most, and the dollars that it holds."""

    key: str
    input_bound: int
    max_cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class Wanted:
    """A question that a row asks: the row's chunk and position, and which of its orders."""

    chunk: Chunk
    row: int
    key: str
    order: int


@dataclass(frozen=True, slots=True)
class Request:
    """A line of an input file, ready to be sent. `tokens`: prompt tokens, estimated."""

    asked: Asked
    line: bytes
    tokens: int


class BatchFolder:
    """The records of a run's batches."""

    def __init__(self, storage: Storage) -> None:
        """Keep them in the run directory `storage`."""
        self._storage = storage

    def states(self) -> list[BatchState]:
        """Every batch of the run, oldest first. Raises CorruptedError."""
        states = []
        for path in self._storage.list(FOLDER):
            if path.endswith(".json") and not path.endswith(".requests.json"):
                document = self._document(path)
                document["stage"] = Stage(document["stage"])
                document["unanswered"] = tuple(document["unanswered"])
                states.append(BatchState(**document))
        return sorted(states, key=lambda state: (state.at, state.id))

    def begin(self, state: BatchState, asked: Sequence[Asked]) -> None:
        """Write down what is going to be submitted; the state last, as it makes the batch known."""
        slots = [[slot.key, slot.input_bound, str(slot.max_cost_usd)] for slot in asked]
        document = {"version": VERSION, "slots": slots}
        self._storage.write(self._requests(state.id), json.dumps(document).encode())
        self.save(state)

    def save(self, state: BatchState) -> None:
        """Make a step durable."""
        document = {"version": VERSION, **asdict(state)}
        self._storage.write(f"{FOLDER}/{state.id}.json", json.dumps(document).encode())

    def asked(self, batch: str) -> list[Asked]:
        """The slots of a batch, in order. Raises CorruptedError."""
        slots = self._document(self._requests(batch))["slots"]
        return [Asked(key, bound, Decimal(cost)) for key, bound, cost in slots]

    def _requests(self, batch: str) -> str:
        return f"{FOLDER}/{batch}.requests.json"

    def _document(self, path: str) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self._storage.read(path))
            version = document.pop("version")
        except (ValueError, LookupError, AttributeError):
            raise CorruptedError(
                "a record of a batch is damaged", file=f"{self._storage.uri}/{path}"
            ) from None
        if version != VERSION:
            raise CorruptedError(
                "a record of a batch is from a newer version", file=f"{self._storage.uri}/{path}"
            )
        return document


def wanted(routed: pl.DataFrame, chunks: Mapping[str, Chunk]) -> list[Wanted]:
    """Every question of a run once, the least sure row of the whole run first."""
    found: dict[str, Wanted] = {}
    asked = in_asking_order(routed).select("chunk", "row", "question_keys")
    for chunk, row, keys in asked.rows():
        for order, key in enumerate(keys):
            if key not in found:
                found[key] = Wanted(chunks[chunk], row, key, order)
    return list(found.values())


class RequestReader:
    """Makes request lines from the run's input."""

    def __init__(self, config: RunConfig, columns: Columns, price: Price) -> None:
        """Read what `columns` names; `price` is for the leases."""
        self._strong = config.strong
        self._question = StrongQuestion(config)
        self._columns = columns
        self._price = price

    def read(self, questions: Sequence[Wanted], *, words: bool) -> dict[str, Request]:
        """Key → line. Every chunk is read once. `words`: without `response_format`."""
        by_chunk: dict[str, list[Wanted]] = {}
        for question in questions:
            by_chunk.setdefault(question.chunk.name, []).append(question)
        made = {}
        for asks in by_chunk.values():
            first = min(ask.row for ask in asks)
            rows = max(ask.row for ask in asks) + 1 - first
            table = read_rows(asks[0].chunk.shard, first, rows, self._columns.needed())
            examples = read_examples(table, self._columns)
            for ask in asks:
                example = examples[ask.row - first]
                assert not isinstance(example, str)  # routing asks about no such row
                body = self._question.bodies(example)[ask.order]
                made[ask.key] = self._request(ask.key, body, words=words)
        return made

    def _request(self, key: str, body: Mapping[str, Any], *, words: bool) -> Request:
        messages, extra = body["messages"], body.get("response_format")
        bound, output = input_token_bound(messages, extra), self._strong.max_output_tokens
        cost = max_cost(self._price, input_tokens=bound, output_tokens=output, tier="batch")
        sent = in_words(body) if words else body
        line = {"custom_id": key, "method": "POST", "url": URL, "body": sent}
        # In ASCII: some readers of JSONL end a line at U+2028 as well.
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        return Request(Asked(key, bound, cost), text, input_token_estimate(messages, extra))
