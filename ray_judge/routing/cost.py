"""What asking about each row is expected to cost: its questions rendered and their tokens counted.

An estimate, for planning; the cap stands on upper bounds and on the provider's own figures. Where
the books already hold answers of the strong judge, their usage corrects it: nobody can guess how
much a model reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from ray_judge.cluster import call_each
from ray_judge.config import RunConfig, StrongConfig
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.pricing import cost, spellings, text_token_estimate
from ray_judge.escalation.questions import TIERS, QuestionMaker, price_of_strong
from ray_judge.records import Chunk, Usage
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan

FEWEST_ANSWERS = 20
"""So many answers on file correct the estimate; fewer could be odd ones."""
NANO = Decimal(10) ** 9
_SCHEMA = {"chunk": pl.String, "row": pl.Int64, "key": pl.String, "input_tokens": pl.Int64}


@dataclass(frozen=True, slots=True)
class Correction:
    """What answers on file say of the estimate: a factor on input, and output tokens each.

    `cached_share`: of the input tokens, which a prompt cache gave.
    """

    input_factor: float
    output_tokens: float
    answers: int
    cached_share: float = 0.0


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


def correction(config: RunConfig, counted: pl.DataFrame, *, own: bool = True) -> Correction | None:
    """What the run's books say of its questions, and those of its calibration: see `corrected`.

    `own`: whether answers to this very run count. They come while it goes on: what is routed by
    them would be another set of rows after each stop.
    """
    books, strong = Books.of(config), config.strong
    found = [books.journal().usages()]
    if not books.shared:
        bought = strong.model_copy(update={"books": f"{config.output.rstrip('/')}/calibration"})
        found.append(Books.of(config.model_copy(update={"strong": bought})).journal().usages())
    usages = pl.concat(found)
    usages = usages if own else usages.filter(pl.col("run") != books.run)
    names = {*spellings(strong.model)}
    models = usages["model"].unique().drop_nulls()
    alike = [name for name in models if names.intersection(spellings(name))]
    ours = (pl.col("run") == books.run) | pl.col("model").is_in(alike)
    return corrected(counted, usages, usages.filter(ours))


def corrected(counted: pl.DataFrame, usages: pl.DataFrame, ours: pl.DataFrame) -> Correction | None:
    """Compare the estimate with what servers counted; None where `ours` are too few.

    `usages`: all on file, see `Journal.usages`; those of the very questions in `counted` correct
    the input. `ours`: those of this run, or of its model; they say how long answers are, in all
    attempts at a question together.
    """
    answers = ours["key"].n_unique()
    if answers < FEWEST_ANSWERS:
        return None
    said = counted.unique("key").select("key", estimate="input_tokens")
    same = usages.join(said, on="key").select(pl.col("input_tokens", "estimate").sum(), n=pl.len())
    counts, estimates, n = same.row(0)
    factor = counts / estimates if n >= FEWEST_ANSWERS else 1.0
    taken, cached, written = ours.select(
        pl.col("input_tokens", "cached_input_tokens", "output_tokens").sum()
    ).row(0)
    return Correction(factor, written / answers, answers, cached / taken)


def output_tokens(config: RunConfig) -> float:
    """Tokens of an answer: the mean over what the schema allows. Reasoning is not in it."""
    texts = QuestionMaker(config).answer_texts()
    return sum(text_token_estimate(text) for text in texts) / len(texts)


def expected_nano_usd(
    strong: StrongConfig,
    tokens: Sequence[int],
    answer_tokens: float,
    tier: str,
    cached_share: float = 0.0,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What answers to questions of so many input tokens cost, in billionths of a dollar, (n,).

    Prices are linear below the long-context threshold, so each distinct count is priced once.
    """
    price = price_of_strong(strong)
    known: dict[int, int] = {}
    for count in set(tokens):
        whole, cached = int(answer_tokens), round(count * cached_share)
        low = cost(price, Usage(count, whole, cached, tier=tier))
        high = cost(price, Usage(count, whole + 1, cached, tier=tier))
        known[count] = int((low + (high - low) * Decimal(answer_tokens - whole)) * NANO)
    return np.array([known[count] for count in tokens], dtype=np.int64)


def row_costs(
    config: RunConfig, counted: pl.DataFrame, fix: Correction | None, mode: str
) -> pl.DataFrame:
    """Expected cost of each row's questions: `chunk`, `row`, `tokens`, `cost_nano_usd`.

    `tokens`: as they count towards a rate, with all that an answer may have.
    """
    fix = fix or Correction(1.0, output_tokens(config), 0)
    tokens = np.rint(counted["input_tokens"].to_numpy() * fix.input_factor).astype(np.int64)
    answer, cached = fix.output_tokens, fix.cached_share
    nano = expected_nano_usd(config.strong, tokens.tolist(), answer, TIERS[mode], cached)
    most = config.strong.max_output_tokens
    priced = counted.with_columns(tokens=pl.Series(tokens) + most, cost_nano_usd=nano)
    return priced.group_by("chunk", "row").agg(pl.col("tokens", "cost_nano_usd").sum())
