"""Real judges' probabilities and verdicts on 500 pairs with human labels, end to end."""

from __future__ import annotations

import itertools
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.provider import RunningServer

from .conftest import Run, Runs

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def arena_path(data: Path) -> Path:
    """500 pairs; the session skips where the data is not."""
    return data / "arena_replay.parquet"


@pytest.fixture
def strong(server: RunningServer, tmp_path: Path, arena_path: Path) -> RunningServer:
    """The provider answering with GPT-4-turbo's verdicts."""
    p_a, p_b = pl.col("gpt_4_turbo_p_a"), pl.col("gpt_4_turbo_p_b")
    verdict = pl.when(p_a >= p_b).then(pl.lit("A")).otherwise(pl.lit("B"))
    path = tmp_path / "answers.json"
    pl.read_parquet(arena_path).select(
        "instruction", "response_a", "response_b", verdict=verdict
    ).write_json(path)
    server.configure(truth=str(path))
    return server


def arena(runs: Runs, **changes: object) -> Run:
    return runs(
        judge__prob_columns={"A": "mistral_7b_instruct_p_a", "B": "mistral_7b_instruct_p_b"},
        route__fraction=0.3,
        **{"columns": {"label": "human"}, **changes},
    )


def check(run: Run, source: pa.Table, server: RunningServer) -> None:
    """The figures of the paper's replay; every row and every input column as it was."""
    summary = run.summary()
    assert summary["rows"] == 500
    assert summary["routes"] == {"accept": 350, "escalate": 150, "audit": 0}
    assert run.outcomes() == {"not_needed": 350, "resolved": 150}
    assert summary["label_accuracy"] == {"judge": 0.75, "final": 0.792}
    stats = server.stats()
    assert stats["billed"] == stats["chat_requests"] == 150
    assert stats["unknown_questions"] == stats["billed_twice"] == 0
    assert run.check_costs() == Decimal(stats["total_usd"])
    scored = pa.concat_tables(pq.read_table(path) for path in run.scored_paths())
    kept = scored.select(source.column_names)
    assert kept.schema.equals(source.schema, check_metadata=True)
    assert kept.equals(source)


def test_one_shard_and_the_same_run_again(
    runs: Runs, strong: RunningServer, arena_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = arena(runs, source=arena_path, chunk_rows=70)
    assert run.score() == 0
    check(run, pq.read_table(arena_path), strong)
    assert run.scored_paths() == [run.output / "scored" / arena_path.name]

    before, asked = run.everything(), strong.stats()["requests"]
    monkeypatch.delenv("OPENAI_API_KEY")  # there is nobody to be asked
    assert run.score() == 0
    assert run.score("strong.max_cost_usd=50", "strong.concurrency=3") == 0
    assert run.everything() == before
    assert strong.stats()["requests"] == asked


def test_several_shards_and_chunks_come_to_the_same(
    runs: Runs, strong: RunningServer, arena_path: Path
) -> None:
    source = pq.read_table(arena_path)
    cuts = [0, 1, 200, 333, 500]
    parts = [source.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
    run = arena(runs, source=None, chunk_rows=37)
    for number, part in enumerate(parts):
        pq.write_table(part, run.folder / "in" / f"part-{number}.parquet", row_group_size=50)
    assert run.score() == 0
    check(run, source, strong)
