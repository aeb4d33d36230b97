"""What travels between the rooms: dataclasses and, beside them, their Arrow schemas.

Missing is always null with an enum or a sentence saying why: never NaN, -1, "" or a default
verdict. Money is `Decimal` US dollars (Arrow `decimal128(18, 9)`, nano-dollars).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Literal

import pyarrow as pa

Task = Literal["pairwise", "pointwise"]
Verdict = str | float
"""`A`, `B` or `tie` for a pair (in the input's orientation); a score for a single response."""

REQUIRED: Mapping[Task, tuple[str, ...]] = {
    "pairwise": ("instruction", "response_a", "response_b"),
    "pointwise": ("instruction", "response"),
}
OPTIONAL = ("input", "reference", "rubric")
PREFERENCE = ("chosen", "rejected")
"""Roles in place of `response_a` and `response_b`: which is which is drawn for each row."""
CHOSEN_IS = "chosen_is"
"""Column of a scored shard of preferences: the letter of the chosen response; the row's label."""
LOCAL = ("judge_verdict", "judge_probs", "judge_confidence", "judge_model")
PAIRWISE_ALTERNATIVES = ("A", "B", "tie")
MONEY = pa.decimal128(18, 9)
SURENESS = ["judge_confidence", "row_key"]
"""Least sure first; rows without a local verdict before all others; ties by row key."""


class Route(StrEnum):
    ACCEPT = "accept"
    ESCALATE = "escalate"
    AUDIT = "audit"


class Outcome(StrEnum):
    """What became of a row's escalation. An abstained row is left to a person."""

    NOT_NEEDED = "not_needed"
    RESOLVED = "resolved"
    ABSTAINED = "abstained"
    DENIED_BUDGET = "denied_budget"
    REFUSED = "refused"
    UNPARSEABLE = "unparseable"
    FAILED = "failed"
    PENDING = "pending"


class Source(StrEnum):
    JUDGE = "judge"
    STRONG = "strong"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to be judged. `responses` holds (A, B) for a pair and one text for a single.

    `turns`: (role, content) of the messages before the responses, the last one the user's; empty
    where `instruction` is the only one. Where there are turns, `instruction` is their text.
    """

    instruction: str
    responses: tuple[str, ...]
    input: str | None = None
    reference: str | None = None
    rubric: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    def swapped(self) -> Example:
        return replace(self, responses=self.responses[::-1])

    def single(self, response: str) -> Example:
        return replace(self, responses=(response,))


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer's tokens behind their prompt, to be scored by the base model."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True, slots=True)
class Judgment:
    """A local verdict on one row, or why there is none.

    `probs`: alternative → normalised probability, in the input's orientation. `mass`: probability
    of all alternatives together. `confidence`: null is as unsure as can be. `unseen`: how far the
    probabilities may be off, where a server showed only its likeliest tokens. `orders_agree`: with
    swap, whether both orders come to one verdict. `scored`: what the base model is still asked.
    """

    verdict: Verdict | None
    probs: Mapping[str, float] | None
    mass: float | None
    confidence: float | None
    error: str | None = None
    unseen: float | None = None
    orders_agree: bool | None = None
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one API answer, as billed; output includes reasoning. `estimated`: the server sent
    none, so they were counted here. `tier`: what the answer names ("default", "flex", ...).
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    tier: str = "default"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the strong judge, as the journal keeps it.

    `key`: SHA-256 (hex) of the canonical request. `final` is false for an answer that was paid
    for but could not be used and is asked again. `lease` and `slot` name the money it used.
    """

    key: str
    outcome: Outcome
    verdict: Verdict | None
    cost_usd: Decimal
    usage: Usage | None
    model: str | None
    response_id: str | None
    lease: str
    slot: int
    at: float
    """Unix time of arrival, seconds."""
    final: bool = True
    error: str | None = None
    run: str | None = None
    """Which run paid for it, where several share a journal; null: the only one."""
    limit: int | None = None
    """The output tokens at which it was cut: under a higher limit it is asked again."""


def verdict_type(task: Task) -> pa.DataType:
    return pa.string() if task == "pairwise" else pa.float64()


def judged_schema(task: Task, alternatives: Sequence[str]) -> pa.Schema:
    """One row per judged row of a chunk; `has_text` is false where nobody can be asked about it."""
    there = [("row", pa.int64()), ("row_key", pa.string()), ("has_text", pa.bool_())]
    return pa.schema(
        [
            *(pa.field(name, kind, nullable=False) for name, kind in there),
            ("judge_verdict", verdict_type(task)),
            ("judge_probs", pa.struct(dict.fromkeys(alternatives, pa.float64()))),
            ("judge_mass", pa.float64()),
            ("judge_unseen", pa.float64()),
            ("judge_orders_agree", pa.bool_()),
            ("judge_confidence", pa.float64()),
            ("judge_model", pa.string()),
            ("error", pa.string()),
        ]
    )


def verdict_schema(
    task: Task, alternatives: Sequence[str], *, strong_prob: bool = False
) -> pa.Schema:
    """What a scored shard has behind its input columns; `strong_prob` where votes are counted."""
    judged = judged_schema(task, alternatives)
    return pa.schema(
        [
            *(judged.field(name) for name in LOCAL),
            ("route", pa.string()),
            ("outcome", pa.string()),
            ("strong_verdict", verdict_type(task)),
            *([("strong_prob", pa.float64())] if strong_prob else []),
            ("strong_model", pa.string()),
            ("strong_cost_usd", MONEY),
            ("final_verdict", verdict_type(task)),
            ("final_source", pa.string()),
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of one shard: the unit of work, of retry and of commit."""

    name: str
    shard: str
    """Path or URI of the input shard."""
    shard_name: str
    """Name of the scored shard, relative to `scored/`."""
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file as planned: `fingerprint` changes whenever its bytes do."""

    path: str
    name: str
    rows: int
    fingerprint: str
    source: str | None = None
    """What was staged as `path`, where that is not the input itself; the fingerprint is of this."""

    @property
    def named(self) -> str:
        """The input's own path or URI."""
        return self.source or self.path
