"""The commands on what three real judges and a person said of 500 pairs, end to end.

The figures are real, the texts around them are made up.
"""

from __future__ import annotations

import itertools
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.calibration.load import read_calibration
from ray_judge.cli import main
from ray_judge.demo.command import write_pairs
from tests.provider import RunningServer

from .conftest import Run, Runs

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

MISTRAL = {
    "judge__prob_columns": {"A": "mistral_7b_instruct_p_a", "B": "mistral_7b_instruct_p_b"},
    "route__fraction": 0.3,
}


@pytest.fixture
def arena_path(data: Path, tmp_path: Path) -> Path:
    rows = pl.read_parquet(data / "arena_replay.parquet")
    texts = {
        "instruction": [f"Question {n}: what is it?" for n in range(rows.height)],
        "response_a": [f"{n} is " + "one thing, and " * (n % 60) for n in range(rows.height)],
        "response_b": [f"{n} is " + "the other, or " * (n % 37) for n in range(rows.height)],
    }
    path = tmp_path / "arena.parquet"
    rows.with_columns(pl.Series(name, text) for name, text in texts.items()).write_parquet(path)
    return path


@pytest.fixture
def strong(server: RunningServer, tmp_path: Path, arena_path: Path) -> RunningServer:
    """The provider answering with GPT-4-turbo's verdicts."""
    answer_with(server, tmp_path / "answers.json", arena_path, flipped=False)
    return server


def answer_with(server: RunningServer, path: Path, source: Path, *, flipped: bool) -> None:
    wins = pl.col("gpt_4_turbo_p_a") >= pl.col("gpt_4_turbo_p_b")
    wins = ~wins if flipped else wins
    verdict = pl.when(wins).then(pl.lit("A")).otherwise(pl.lit("B"))
    pl.read_parquet(source).select(
        "instruction", "response_a", "response_b", verdict=verdict
    ).write_json(path)
    server.configure(truth=str(path))


def arena(runs: Runs, source: Path | None, **changes: Any) -> Run:
    columns = {"A": "gpt_3_5_turbo_p_a", "B": "gpt_3_5_turbo_p_b"}
    values = {"judge__prob_columns": columns, "columns": {"label": "human"}, "chunk_rows": 250}
    return runs(source=source, **{**values, **changes})


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
    run = arena(runs, arena_path, chunk_rows=70, **MISTRAL)
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
    run = arena(runs, None, chunk_rows=37, **MISTRAL)
    for number, part in enumerate(parts):
        pq.write_table(part, run.folder / "in" / f"part-{number}.parquet", row_group_size=50)
    assert run.score() == 0
    check(run, source, strong)


def test_from_calibration_to_a_promise_that_is_kept_and_one_that_is_broken(
    runs: Runs,
    strong: RunningServer,
    arena_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = arena(runs, arena_path)
    place = tmp_path / "calibration.json"
    command = ["calibrate", str(run.yaml), "--quiet", "--alpha", "0.25", "--delta", "0.1"]
    assert main([*command, "--against", "strong", "--to", str(place)]) == 0
    made = read_calibration(str(place))
    assert made.label_kind == "strong" and made.attainable and made.labels >= 490
    bought = strong.stats()["requests"]
    assert bought >= 490
    said = capsys.readouterr().out
    assert "Use probability" in said and "gpt-4.1's verdicts" in said
    assert main([*command, "--against", "strong", "--to", str(place)]) == 0
    assert strong.stats()["requests"] == bought  # continued: nothing is bought twice

    route = {"policy": "guarantee", "calibration": str(place), "audit": 0.3, "audit_by": "human"}
    kept = arena(runs, arena_path, route=route)
    assert kept.score() == 0
    summary = kept.summary()
    assert summary["promise"]["kept"] is not False and summary["drift"]["verdict"] == "stable"
    assert summary["threshold"] == pytest.approx(made.tiers[0].threshold)
    assert summary["audit"]["n"] == summary["routes"]["audit"] > 20
    assert {part["group"] for part in summary["audit"]["by_column"]} == {"A", "B"}
    audited = kept.scored().filter(route="audit")
    assert (audited["final_source"] == "strong").all()
    assert (audited["final_verdict"] == audited["strong_verdict"]).all()
    page = (kept.output / "report.html").read_text()
    assert "Audit: accepted verdicts" in page and "Drift of confidence" in page

    answer_with(strong, tmp_path / "flipped.json", arena_path, flipped=True)
    broken = arena(runs, arena_path, route=route)
    assert broken.score(capsys=capsys) == 5
    assert "the audit contradicts the guarantee" in broken.said[-1]
    assert broken.summary()["promise"]["kept"] is False
    assert broken.score() == 5  # a finished run says it again

    other = arena(runs, arena_path, route=route, judge__confidence="margin")
    assert other.score(capsys=capsys) == 2
    assert "confidence: 'probability' in the calibration, 'margin' in the run" in other.said[-1]


def test_plan_budget_and_evaluation(
    runs: Runs, strong: RunningServer, arena_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = arena(runs, arena_path, route__fraction=1)
    assert main(["plan", str(run.yaml), "--quiet", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert strong.stats()["requests"] == 0
    assert run.score() == 0
    spent = float(run.summary()["spent_usd"])
    assert planned["policies"][-1]["dollars"]["online"] == pytest.approx(spent, rel=0.05)

    capsys.readouterr()
    assert main(["report", str(run.output), "--labels"]) == 0
    assert "of the rows asked the cascade is right in" in capsys.readouterr().out
    found = json.loads((run.output / "evaluation.json").read_text())
    assert found["judges"]["local judge"]["accuracy"] == 0.756
    assert "Evaluation against the labels" in (run.output / "report.html").read_text()

    budget = arena(runs, arena_path, route={"policy": "budget", "budget_usd": 0.1})
    assert budget.score() == 0
    dollars = float(budget.summary()["spent_usd"])
    assert 0.09 < dollars <= 0.1
    assert budget.summary()["cap_usd"] == 0.1


@pytest.mark.parametrize("source", ["llmbar", "demo"])
def test_a_plans_dollars_are_the_ledgers(
    runs: Runs,
    server: RunningServer,
    source: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within 5 %. What the local judge says has no part in it, so its probabilities are drawn."""
    if source == "llmbar":
        rows = pl.read_parquet(request.getfixturevalue("texts_data") / "llmbar.parquet")
    else:
        rows = write_pairs(tmp_path / "pairs", 1500, 2026)
    rng = random.Random(1)
    p_a = [0.5 + rng.random() / 2 for _ in range(rows.height)]
    table: pa.Table = rows.with_columns(p_a=pl.Series(p_a), p_b=1 - pl.Series(p_a)).to_arrow()
    run = runs(table, route__fraction=0.3, chunk_rows=1000, columns={"label": None})
    assert main(["plan", str(run.yaml), "--quiet", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["policies"][-1]
    assert server.stats()["requests"] == 0
    assert run.score() == 0
    summary = run.summary()
    assert planned["rows"] == summary["routes"]["escalate"]
    assert planned["dollars"]["online"] == pytest.approx(float(summary["spent_usd"]), rel=0.05)
