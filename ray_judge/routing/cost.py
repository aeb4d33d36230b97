"""What asking about each row is expected to cost: its questions rendered and their tokens counted.

An estimate, for planning; the cap stands on upper bounds and on the provider's own figures. Where
the journal already holds answers to these rows, their usage corrects it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from ray_judge.cluster import call_each
from ray_judge.config import RunConfig, StrongConfig
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.pricing import cost, text_token_estimate
from ray_judge.escalation.questions import TIERS, QuestionMaker, price_of_strong
from ray_judge.records import Answer, Chunk, Usage
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan

FEWEST_ANSWERS = 20
"""So many answers on file correct the estimate; fewer could be odd ones."""
NANO = Decimal(10) ** 9
_SCHEMA = {"chunk": pl.String, "row": pl.Int64, "key": pl.String, "input_tokens": pl.Int64}


@dataclass(frozen=True, slots=True)
class Correction:
    """What answers on file say of the estimate: a factor on input, and output tokens each."""

    input_factor: float
    output_tokens: float
    answers: int


def count_tokens(config: RunConfig, plan: Plan) -> pl.DataFrame:
    """Count, on the cluster, the tokens of all questions of a run; see `count_chunk`."""
    calls = [(config, plan.columns, chunk) for chunk in plan.chunks()]
    parts: list[pl.DataFrame] = list(call_each(count_chunk, calls))
    return pl.concat(parts).sort("chunk", "row")


def count_chunk(config: RunConfig, columns: Columns, chunk: Chunk) -> pl.DataFrame:
    """One row per question: `chunk`, `row`, `key`, `input_tokens` (estimated)."""
    places = range(chunk.start, chunk.start + chunk.rows)
    made = QuestionMaker(config, columns).of_rows(chunk, places)
    found = [(chunk.name, row, q.key, q.tokens) for row, asked in made.items() for q in asked]
    return pl.DataFrame(found, schema=_SCHEMA, orient="row")


def correction(config: RunConfig, counted: pl.DataFrame) -> Correction | None:
    """Compare the estimate with the usage of answers on file to the very same questions."""
    return corrected(counted, Books.of(config).journal().answers(counted["key"]))


def corrected(counted: pl.DataFrame, answers: Mapping[str, Answer]) -> Correction | None:
    """See `correction`; None where too few of these questions are answered."""
    estimates = dict(counted.select("key", "input_tokens").rows())
    usages = {key: answer.usage for key, answer in answers.items() if key in estimates}
    paid = {key: usage for key, usage in usages.items() if usage and not usage.estimated}
    if len(paid) < FEWEST_ANSWERS:
        return None
    factor = sum(u.input_tokens for u in paid.values()) / sum(estimates[key] for key in paid)
    return Correction(factor, sum(u.output_tokens for u in paid.values()) / len(paid), len(paid))


def output_tokens(config: RunConfig) -> float:
    """Tokens of an answer: the mean over what the schema allows. Reasoning is not in it."""
    texts = QuestionMaker(config).answer_texts()
    return sum(text_token_estimate(text) for text in texts) / len(texts)


def expected_nano_usd(
    strong: StrongConfig, tokens: Sequence[int], answer_tokens: float, tier: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What answers to questions of so many input tokens cost, in billionths of a dollar, (n,).

    Nothing is taken to be cached. Prices are linear below the long-context threshold, so each
    distinct count is priced once.
    """
    price = price_of_strong(strong)
    known: dict[int, int] = {}
    for count in set(tokens):
        whole = int(answer_tokens)
        low = cost(price, Usage(count, whole, tier=tier))
        high = cost(price, Usage(count, whole + 1, tier=tier))
        known[count] = int((low + (high - low) * Decimal(answer_tokens - whole)) * NANO)
    return np.array([known[count] for count in tokens], dtype=np.int64)


def row_costs(
    config: RunConfig, counted: pl.DataFrame, fix: Correction | None, mode: str
) -> pl.DataFrame:
    """Expected cost of each row's questions: `chunk`, `row`, `tokens`, `cost_nano_usd`."""
    tokens = counted["input_tokens"].to_numpy()
    if fix is not None:
        tokens = np.rint(tokens * fix.input_factor).astype(np.int64)
    answer = output_tokens(config) if fix is None else fix.output_tokens
    nano = expected_nano_usd(config.strong, tokens.tolist(), answer, TIERS[mode])
    priced = counted.with_columns(tokens=pl.Series(tokens) + round(answer), cost_nano_usd=nano)
    return priced.group_by("chunk", "row").agg(pl.col("tokens", "cost_nano_usd").sum())
