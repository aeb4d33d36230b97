"""The commands on what three real judges and a person said of 500 pairs, end to end.

The figures are real, the texts around them are made up.
"""

import itertools
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.calibration.load import read_calibration
from tests.provider import RunningServer

from .conftest import Run, Runs, answer_with, command

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

MISTRAL = {"A": "mistral_7b_instruct_p_a", "B": "mistral_7b_instruct_p_b"}
GPT_35 = {"A": "gpt_3_5_turbo_p_a", "B": "gpt_3_5_turbo_p_b"}
WINS = pl.col("gpt_4_turbo_p_a") >= pl.col("gpt_4_turbo_p_b")


@pytest.fixture
def pairs(data: Path) -> pl.DataFrame:
    rows = pl.read_parquet(data / "arena_replay.parquet")
    verdict = pl.when(WINS).then(pl.lit("A")).otherwise(pl.lit("B"))
    return rows.with_columns(
        pl.Series("instruction", [f"Question {n}: what is it?" for n in range(500)]),
        pl.Series("response_a", [f"{n} is " + "one thing, and " * (n % 60) for n in range(500)]),
        pl.Series("response_b", [f"{n} is " + "the other, or " * (n % 37) for n in range(500)]),
        verdict.alias("verdict"),
    )


@pytest.fixture
def strong(server: RunningServer, pairs: pl.DataFrame, tmp_path: Path) -> RunningServer:
    """The provider answering with GPT-4-turbo's verdicts."""
    answer_with(server, tmp_path, pairs)
    return server


def arena(runs: Runs, *shards: pl.DataFrame, **changes: Any) -> Run:
    values = {"judge__prob_columns": GPT_35, "columns": {"label": "human"}, "chunk_rows": 250}
    return runs(*(shard.to_arrow() for shard in shards), **{**values, **changes})


@pytest.mark.parametrize(
    ("cuts", "chunk_rows"), [([0, 500], 70), ([0, 1, 200, 333, 500], 37)], ids=["one", "several"]
)
def test_shards_and_the_same_run_again(
    runs: Runs, strong: RunningServer, pairs: pl.DataFrame, cuts: list[int], chunk_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The figures of the paper's replay; every row and every input column as it was."""
    shards = [pairs[a:b] for a, b in itertools.pairwise(cuts)]
    changes = {"judge__prob_columns": MISTRAL, "route__fraction": 0.3, "chunk_rows": chunk_rows}
    run = arena(runs, *shards, **changes)
    assert run.score() == 0
    summary = run.summary()
    assert summary["rows"] == 500
    assert summary["routes"] == {"accept": 350, "escalate": 150, "audit": 0}
    assert run.outcomes() == {"not_needed": 350, "resolved": 150}
    assert summary["label_accuracy"] == {"judge": 0.75, "final": 0.792}
    stats = strong.stats()
    assert stats["billed"] == stats["chat_requests"] == 150
    assert stats["unknown_questions"] == stats["billed_twice"] == 0
    assert run.check_costs() == Decimal(stats["total_usd"])
    source = pq.read_table(run.folder / "in")
    scored = pa.concat_tables(pq.read_table(path) for path in run.scored_paths())
    kept = scored.select(source.column_names)
    assert kept.schema.equals(source.schema, check_metadata=True)
    assert kept.equals(source)
    names = [path.name for path in run.scored_paths()]
    assert names == [f"part-{n:03d}.parquet" for n in range(len(shards))]

    before = run.everything()
    monkeypatch.delenv("OPENAI_API_KEY")  # there is nobody to be asked
    assert run.score() == 0
    assert run.score("strong.max_cost_usd=50", "strong.concurrency=3") == 0
    assert run.everything() == before
    assert strong.stats()["requests"] == stats["requests"]


def test_from_calibration_to_a_promise_that_is_kept_and_one_that_is_broken(
    runs: Runs, strong: RunningServer, pairs: pl.DataFrame, tmp_path: Path
) -> None:
    run = arena(runs, pairs)
    place = str(tmp_path / "calibration.json")
    wish = ("--alpha", "0.25", "--delta", "0.1", "--against", "strong", "--to", place)
    said = run.command("calibrate", *wish)
    assert "Use probability" in said and "gpt-4.1's verdicts" in said
    made = read_calibration(place)
    assert made.label_kind == "strong" and made.attainable and made.labels >= 490
    bought = strong.stats()["requests"]
    assert bought >= 490
    run.command("calibrate", *wish)
    assert strong.stats()["requests"] == bought  # continued: nothing is bought twice

    route = {"policy": "guarantee", "calibration": place, "audit": 0.3, "audit_by": "human"}
    kept = arena(runs, pairs, route=route)
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

    flipped = pl.when(WINS).then(pl.lit("B")).otherwise(pl.lit("A"))
    answer_with(strong, tmp_path, pairs.with_columns(verdict=flipped))
    broken = arena(runs, pairs, route=route)
    assert broken.score() == 5
    assert "the audit contradicts the guarantee" in broken.said
    assert broken.summary()["promise"]["kept"] is False
    assert broken.score() == 5  # a finished run says it again

    other = arena(runs, pairs, route=route, judge__confidence="margin")
    assert other.score() == 2
    assert "confidence: 'probability' in the calibration, 'margin' in the run" in other.said


def test_recorded_rewards_give_the_same_cascade(
    runs: Runs, strong: RunningServer, pairs: pl.DataFrame, tmp_path: Path
) -> None:
    """Rewards that are logs of recorded probabilities, three times as far apart as they were."""

    columns = {"A": "reward_A", "B": "reward_B"}
    judge = {"engine": "columns", "format": "reward", "reward_columns": columns}
    shard = pairs.with_columns(
        (3 * pl.col(GPT_35[side]).log()).alias(f"reward_{side}") for side in "AB"
    )
    known = arena(runs, shard), arena(runs, shard, judge=judge)
    kept, tiers = [], []
    for number, before in enumerate(known):
        place = str(tmp_path / f"{number}.json")
        levels = ("--alpha", "0.25", "--delta", "0.1", "--labels", "human", "--to", place)
        before.command("calibrate", *levels)
        tiers += read_calibration(place).tiers
        route = {"policy": "guarantee", "calibration": place}
        kept.append(arena(runs, shard, judge=before.document["judge"], route=route))
        assert kept[-1].score() == 0
    assert kept[0].summary()["routes"] == kept[1].summary()["routes"]
    assert kept[0].summary()["routes"]["accept"] > 100
    finals = [one.scored()["final_verdict"].to_list() for one in kept]
    assert finals[0] == finals[1]
    logit = 3 * math.log(1 / (1 / tiers[0].threshold - 1))  # those of a row sum to about 1
    assert tiers[1].threshold == pytest.approx(logit, rel=1e-3)
    temperature = tiers[1].temperature
    assert temperature is not None and tiers[0].temperature is None
    rows = kept[1].scored()
    margin, p_a = rows["reward_A"] - rows["reward_B"], rows["judge_probs"].struct.field("A")
    wanted = 1 / (1 + (-margin / temperature).exp())
    assert p_a.to_list() == pytest.approx(wanted.to_list())
    labels = (shard["human"] == "A").cast(pl.Float64)
    raw, fitted = (((p - labels) ** 2).mean() for p in (1 / (1 + (-margin).exp()), p_a))
    assert fitted < raw, "fitted probabilities predict the labels better"


def test_plan_budget_and_evaluation(runs: Runs, strong: RunningServer, pairs: pl.DataFrame) -> None:
    run = arena(runs, pairs, route__fraction=1)
    planned = json.loads(run.command("plan", "--json"))
    assert strong.stats()["requests"] == 0
    assert run.score() == 0
    spent = float(run.summary()["spent_usd"])
    assert planned["policies"][-1]["dollars"]["online"] == pytest.approx(spent, rel=0.05)

    said = command("report", str(run.output), "--labels")
    assert "of the rows asked the cascade is right in" in said
    found = json.loads((run.output / "evaluation.json").read_text())
    assert found["judges"]["local judge"]["accuracy"] == 0.756
    assert "Evaluation against the labels" in (run.output / "report.html").read_text()

    budget = arena(runs, pairs, route={"policy": "budget", "budget_usd": 0.1})
    assert budget.score() == 0
    assert 0.09 < float(budget.summary()["spent_usd"]) <= 0.1
    assert budget.summary()["cap_usd"] == 0.1
