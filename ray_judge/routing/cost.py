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
import pyarrow as pa

from ray_judge.cluster import call_each
from ray_judge.config import RunConfig, StrongConfig
from ray_judge.errors import InputChangedError
from ray_judge.escalation.books.journal import load_journal
from ray_judge.escalation.books.places import journal_storage
from ray_judge.escalation.pricing import cost, text_token_estimate
from ray_judge.escalation.questions import TIERS, QuestionMaker, price_of_strong
from ray_judge.records import Answer, Chunk, Route, Usage
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan
from ray_judge.run.plan import read_examples, read_rows

FEWEST_ANSWERS = 20
"""So many answers on file correct the estimate; fewer could be odd ones."""
NANO = Decimal(10) ** 9


@dataclass(frozen=True, slots=True)
class Correction:
    """What answers on file say of the estimate: a factor on input, and output tokens each."""

    input_factor: float
    output_tokens: float
    answers: int


def count_tokens(config: RunConfig, columns: Columns, chunks: Sequence[Chunk]) -> pl.DataFrame:
    """One row per question: `chunk`, `row`, `key`, `input_tokens` (estimated).

    A row without text has none; others have `strong.samples` in each order.
    """
    calls = [(config, columns, chunk) for chunk in chunks]
    parts = [pl.DataFrame(pl.from_arrow(part)) for part in call_each(count_chunk, calls)]
    return pl.concat(parts).sort("chunk", "row") if parts else pl.DataFrame(schema=_SCHEMA)


_SCHEMA = {"chunk": pl.String, "row": pl.Int64, "key": pl.String, "input_tokens": pl.Int64}


def count_chunk(config: RunConfig, columns: Columns, chunk: Chunk) -> pa.Table:
    """Count the tokens of one chunk's questions."""
    table = read_rows(chunk.shard, chunk.start, chunk.rows, columns.needed())
    return count_rows(config, columns, table, chunk.name, chunk.start)


def with_questions(config: RunConfig, plan: Plan, routed: pl.DataFrame) -> pl.DataFrame:
    """Add `question_keys` to the rows that are asked: `strong.samples` of them in each order."""
    maker = QuestionMaker(config, plan.columns)
    columns = [("chunk", pl.String()), ("row", pl.Int64()), ("question_keys", pl.List(pl.String))]
    schema = pl.Schema(columns)
    parts = [pl.DataFrame(schema=schema)]
    routed_on = routed.filter(pl.col("route") != Route.ACCEPT.value)
    for (name,), rows in routed_on.group_by("chunk", maintain_order=True):
        chunk = plan.chunk(str(name))
        keys = [
            [q.key for q in made] for made in maker.of_rows(chunk, rows["row"].to_list()).values()
        ]
        if not all(keys):
            raise InputChangedError("this shard changed since the run began", file=chunk.shard)
        found = rows.select("chunk", "row").with_columns(question_keys=pl.Series(keys))
        parts.append(found.cast(schema))
    return routed.join(pl.concat(parts), on=["chunk", "row"], how="left", maintain_order="left")


def count_rows(
    config: RunConfig, columns: Columns, table: pa.Table, chunk: str, start: int
) -> pa.Table:
    """Count the tokens of the questions about these rows, the first of which is row `start`."""
    maker = QuestionMaker(config)
    found: list[tuple[int, str, int]] = []
    for number, example in enumerate(read_examples(table, columns), start):
        if isinstance(example, str):
            continue
        found += [(number, asked.key, asked.tokens) for asked in maker.of_example(example)]
    rows, keys, tokens_in = zip(*found, strict=True) if found else ((), (), ())
    return pa.table(
        {
            "chunk": pa.array([chunk] * len(found), pa.large_string()),
            "row": pa.array(rows, pa.int64()),
            "key": pa.array(keys, pa.large_string()),
            "input_tokens": pa.array(tokens_in, pa.int64()),
        }
    )


def correction(config: RunConfig, counted: pl.DataFrame) -> Correction | None:
    """Compare the estimate with the usage of answers on file to the very same questions."""
    return corrected(counted, load_journal(*journal_storage(config)).answers)


def corrected(counted: pl.DataFrame, answers: Mapping[str, Answer]) -> Correction | None:
    """See `correction`; None where too few of these questions are answered."""
    estimated, paid_in, paid_out, count = 0, 0, 0, 0
    for key, tokens in counted.select("key", "input_tokens").unique("key").rows():
        answer = answers.get(key)
        if answer is None or answer.usage is None or answer.usage.estimated:
            continue
        count += 1
        estimated += tokens
        paid_in += answer.usage.input_tokens
        paid_out += answer.usage.output_tokens
    if count < FEWEST_ANSWERS:
        return None
    return Correction(paid_in / estimated, paid_out / count, count)


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


def row_costs(config: RunConfig, counted: pl.DataFrame, mode: str | None = None) -> pl.DataFrame:
    """Expected cost of each row's questions: `chunk`, `row`, `tokens`, `cost_nano_usd`."""
    fix = correction(config, counted)
    tokens = counted["input_tokens"].to_numpy()
    if fix is not None:
        tokens = np.rint(tokens * fix.input_factor).astype(np.int64)
    answer = output_tokens(config) if fix is None else fix.output_tokens
    tier = TIERS[mode or config.strong.mode]
    nano = expected_nano_usd(config.strong, tokens.tolist(), answer, tier)
    return (
        counted.with_columns(
            cost_nano_usd=pl.Series(nano), tokens=pl.Series(tokens) + round(answer)
        )
        .group_by("chunk", "row")
        .agg(pl.col("tokens").sum(), pl.col("cost_nano_usd").sum())
    )
