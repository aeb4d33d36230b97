"""Making a calibration, binding it to its judges, planning and drift; sampling and pricing.

Of one judge and of two: a cascade of one is a cascade.
"""

import math
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.calibration.document import Calibration
from ray_judge.calibration.fit import make
from ray_judge.calibration.load import calibration_of, identity, pin_calibration, write_calibration
from ray_judge.commands.calibrate import as_text, judge_runs
from ray_judge.commands.plan import PolicyTable
from ray_judge.config import RouteConfig, RunConfig
from ray_judge.errors import ConfigError, InputError, RunChangedError
from ray_judge.escalation.books.books import Books
from ray_judge.records import Answer, Chunk, Outcome, Shard, Usage
from ray_judge.report.drift import measure_drift
from ray_judge.routing.cost import (
    Correction,
    correction,
    count_chunk,
    expected_nano_usd,
    output_tokens,
)
from ray_judge.routing.stream import Routed
from ray_judge.routing.tiers import Cascade
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.run.plan import plan_input
from ray_judge.run.sample import draw, labelled_rows, take, write_sample

from . import builders

ROWS = 1200


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap's own tests are in test_evaluation."""
    monkeypatch.setattr("ray_judge.calibration.correctness.DRAWS", 20)


def config(folder: Path, **changes: Any) -> RunConfig:
    run = {
        "input": str(folder / "in"),
        "output": str(folder / "out"),
        "judge": {"model": "Qwen/Qwen2.5-7B-Instruct"},
        "route": {"policy": "guarantee", "calibration": str(folder / "c.json")},
    }
    return builders.config(**{**run, **changes})


def pair(folder: Path, **changes: Any) -> RunConfig:
    """Two judges that have run, each with the same policy."""
    first = config(folder, **changes).route.model_dump(mode="json", exclude_none=True)
    judges = [
        {"engine": "columns", "model": name, "prob_columns": {"A": f"{name}_a", "B": f"{name}_b"}}
        for name in ("small", "large")
    ]
    return config(folder, judge=..., judges=[{**judges[0], "route": first}, judges[1]], **changes)


def verdicts(label: np.ndarray, sure: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """A judge that is right as often as it says, and a strong one that is right in 95 %."""
    other = np.where(label == "A", "B", "A")
    verdict = np.where(rng.random(len(label)) < sure, label, other)
    probs = pl.DataFrame({"A": np.where(verdict == "A", sure, 1 - sure)})
    probs = probs.with_columns(B=1 - pl.col("A"), tie=pl.lit(None, pl.Float64))
    columns = {
        "label": label,
        "judge_verdict": verdict,
        "judge_confidence": sure,
        "judge_probs": probs.to_struct(),
        "strong_verdict": np.where(rng.random(len(label)) < 0.95, label, other),
    }
    return pl.DataFrame(columns)


def judged(rows: int = ROWS, seed: int = 1) -> list[pl.DataFrame]:
    """An honest small judge and a better large one, on the same rows."""
    rng = np.random.default_rng(seed)
    label = rng.choice(["A", "B"], rows)
    small, large = 0.5 + rng.random(rows) / 2, 0.7 + 0.3 * rng.random(rows)
    return [verdicts(label, small, rng), verdicts(label, large, rng)]


def made(frames: list[pl.DataFrame], settings: RunConfig, **changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "alpha": 0.2, "delta": 0.1, "label_kind": "human", "label_column": "label",
        "data": "d" * 64, "strong_model": "gpt-4.1", **changes,
    }  # fmt: skip
    judges = [identity(tier) for tier in settings.tiers()]
    return make(frames, judges, "pairwise", Calibration(**values))


def one(folder: Path, rows: int = 400, seed: int = 1, **changes: Any) -> Calibration:
    return made(judged(rows, seed)[:1], config(folder), **changes)


def test_a_calibration_of_one_judge(tmp_path: Path) -> None:
    found = one(tmp_path)
    (tier,) = found.tiers
    assert found.attainable and not found.warnings and tier.selection.rows == 400
    assert tier.correct(np.array([0.55]))[0] < tier.correct(np.array([0.95]))[0]
    assert 0.03 < found.strong_error < 0.12
    assert tier.strong(np.array([0.7]))[0] > 0.85
    assert tier.comparison.use == "probability"
    assert [method.method for method in tier.comparison.methods] == ["probability", "margin"]
    against = one(tmp_path, label_kind="strong", label_column=None)
    assert against.strong_error is None and "gpt-4.1's verdicts" in against.promise()


def test_too_few_labels_say_how_many_would_do(tmp_path: Path) -> None:
    found = one(tmp_path, 50)
    assert not found.attainable and "judge 1 (Qwen/" in found.warnings[0]
    assert "50 labelled rows test it, too few for a guarantee" in found.warnings[0]
    assert "at least 63 are needed" in found.warnings[0]
    strict = one(tmp_path, alpha=0.04)
    assert "not attainable" in strict.warnings[0] and math.isinf(strict.tiers[0].threshold)
    few = made(judged(120), pair(tmp_path))
    assert not few.attainable
    assert "judge 1 (small): 60 labelled rows test it" in few.warnings[0]
    assert "labels in all" in few.warnings[0] and "accepts no row" in few.warnings[0]
    assert "judge 2 (large): 60 labelled rows" in few.warnings[1]  # the first one accepts nothing


def test_what_cannot_be_calibrated(tmp_path: Path) -> None:
    frames = [frame.with_columns(label=pl.lit("A")) for frame in judged(400)]
    with pytest.raises(InputError, match=r"^judge 1 \(small\): all 400 labels are A"):
        made(frames, pair(tmp_path))


def test_each_judge_has_its_part_and_the_rows_that_reach_it(tmp_path: Path) -> None:
    frames = judged()
    found = made(frames, pair(tmp_path))
    small, large = found.tiers
    assert not found.warnings and found.labels == ROWS
    assert small.selection.rows == ROWS // 2
    assert small.selection.delta == large.selection.delta == 0.05
    left = frames[0]["judge_confidence"] < small.threshold
    assert small.reference.rows == ROWS and large.reference.rows == left.sum()
    assert abs(large.selection.rows - int(left.sum()) / 2) < 60  # its half of what is left
    assert [tier.comparison and tier.comparison.use for tier in found.tiers] == ["probability"] * 2
    said = as_text(found, "c.json")
    assert "judge 1 (small)" in said and "judge 2 (large)" in said
    assert said.count("labelled rows that test it would be accepted") == 2
    assert said.count("Promise: ") == 1
    write_calibration(str(tmp_path / "c.json"), found)
    assert calibration_of(pair(tmp_path)) == found


def test_a_judge_that_no_row_reaches(tmp_path: Path) -> None:
    frames = judged()
    number, label = np.arange(ROWS), frames[0]["label"]
    other = label.replace({"A": "B", "B": "A"})
    verdict = label.zip_with(pl.Series(number % 100 > 0), other)
    sure = pl.Series(0.9 + number % 10 / 100)
    frames[0] = frames[0].with_columns(judge_confidence=sure, judge_verdict=verdict)
    found = made(frames, pair(tmp_path))
    assert found.attainable and found.tiers[0].threshold == 0.9
    nobody = found.tiers[1]
    assert (nobody.selection.rows, nobody.threshold) == (0, math.inf)
    assert nobody.reference.rows == 0 and len(nobody.correct.confidence) > 1
    assert "judge 2 (large): no labelled row reaches it" in found.warnings[0]
    assert "those of all 1200 labelled rows" in found.warnings[1]
    assert "judge 2 (large): no labelled row" in as_text(found, "c.json")


def test_rows_without_a_verdict_go_on(tmp_path: Path) -> None:
    frames = judged()
    spoken = pl.when(pl.int_range(pl.len()) % 3 > 0).then("judge_confidence")
    frames[0] = frames[0].with_columns(judge_confidence=spoken)
    found = made(frames, pair(tmp_path))
    gone = (frames[0]["judge_confidence"] >= found.tiers[0].threshold).fill_null(value=False)
    assert found.tiers[0].reference.rows == ROWS * 2 // 3
    assert found.tiers[1].reference.rows == ROWS - gone.sum()


def fraction(share: str) -> RouteConfig:
    return RouteConfig.model_validate({"policy": "fraction", "fraction": share})


def test_only_the_first_judges_run_can_spend(tmp_path: Path) -> None:
    first, second = judge_runs(pair(tmp_path).model_copy(update={"route": fraction("1")}))
    assert (first.route.fraction, first.strong.max_cost_usd) == (1, 1)
    assert (second.route.fraction, second.strong.max_cost_usd) == (0, 0)
    assert first.output != second.output
    assert (first.judge.model, second.judge.model) == ("small", "large")
    (single,) = judge_runs(config(tmp_path))
    assert single.output == config(tmp_path).output


def test_a_judge_is_known_by_its_prompt_and_its_settings(tmp_path: Path) -> None:
    named = identity(config(tmp_path))
    assert named["model"] == "Qwen/Qwen2.5-7B-Instruct" and len(named["template"]) == 64
    rubric = identity(config(tmp_path, judge__rubric="Be brief."))
    assert rubric["template"] != named["template"]
    assert identity(config(tmp_path, judge__replicas=8)) == named  # how many is not who
    assert identity(config(tmp_path, judge__swap=True))["swap"] is True
    http = {"engine": "http", "model": "m", "http": {"base_url": "http://a:1/v1"}}
    there = identity(config(tmp_path, judge=http, judge__http__base_url="http://b:2/v1"))
    assert identity(config(tmp_path, judge=http)) == there  # and where its server is, neither
    columns = {"engine": "columns", "prob_columns": {"A": "a", "B": "b"}}
    assert identity(config(tmp_path, judge=columns))["template"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge__confidence": "margin"}, "confidence: 'probability' in the calibration, 'margin'"),
        ({"judge__revision": "abc"}, "revision: None in the calibration, 'abc' in the run"),
        ({"judge__rubric": "Be brief."}, "rubric: .*template: "),
        ({"judge__swap": True}, "swap: None in the calibration, True in the run"),
        ({"route__alpha": 0.1}, "route.alpha is 0.1, and this calibration was made for 0.2"),
        ({"route__calibration": "/nowhere/c.json"}, "there is no calibration here"),
        ({"strong__model": "gpt-4o"}, "strong.model is gpt-4o, and this .* was made for gpt-4.1"),
    ],
)
def test_a_calibration_must_fit_the_run(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    kind: dict[str, Any] = {"label_kind": "strong", "label_column": None}
    found = one(tmp_path, **(kind if "strong__model" in changes else {}))
    write_calibration(str(tmp_path / "c.json"), found)
    assert calibration_of(config(tmp_path)) == found
    with pytest.raises(ConfigError, match=said):
        calibration_of(config(tmp_path, **changes))
    with pytest.raises(ConfigError, match=r"for 1 local judge\(s\), the run has 2.*file=.*c.json"):
        calibration_of(pair(tmp_path))


def test_a_run_keeps_its_calibration(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    first = one(tmp_path)
    pin_calibration(run, first)
    pin_calibration(run, first)
    with pytest.raises(RunChangedError, match="not the one that this run began with"):
        pin_calibration(run, one(tmp_path, seed=2))


def sampled(frames: list[pl.DataFrame], least: float) -> pl.DataFrame:
    """As the cascade leaves them: rows below `least` are the second judge's."""
    first, second = (frame["judge_confidence"] for frame in frames)
    on, rows = first < least, len(first)
    columns = {
        "row": range(rows),
        "row_key": [f"{n:05d}" for n in range(rows)],
        "judge_confidence": second.zip_with(on, first),
        "tier": on.cast(pl.Int32),
    }
    costs = dict.fromkeys(("cost_nano_usd", "online", "flex", "batch", "most"), 1000)
    same = {"chunk": "c", "has_text": True, "tokens": 100, **costs}
    return pl.DataFrame(columns).with_columns(**{name: pl.lit(one) for name, one in same.items()})


def test_policies_are_tried_on_the_rows_that_reach_the_last_judge(tmp_path: Path) -> None:
    settings = pair(tmp_path)
    calibration = made(judged(), settings)
    night = judged(seed=2)
    rows = sampled(night, calibration.tiers[0].threshold)
    table = PolicyTable(settings, calibration, rows, ROWS * 10)
    on = int(rows["tier"].sum())
    assert table.reached() == [ROWS * 10, on * 10]
    half = table.line(fraction("0.5"), "0.5")
    assert half["rows"] == on * 5 and half["share"] == on * 5 / (ROWS * 10)
    assert half["dollars"]["online"] == pytest.approx(on * 5 * 1000 / 1e9)
    promised = table.line(settings.route, "route: guarantee")
    passed = rows.filter(pl.col("judge_confidence") < calibration.tiers[1].threshold, tier=1)
    assert promised["rows"] == passed.height * 10
    none = table.line(fraction("0"), "0")
    right = [frame["judge_verdict"] == frame["label"] for frame in night]
    truth = right[1].zip_with(rows["tier"] == 1, right[0])
    assert none["accuracy"]["low"] < float(truth.mean() or 0) < none["accuracy"]["high"]
    assert none["accuracy"]["high"] - none["accuracy"]["low"] < 0.12
    table = PolicyTable(settings, calibration, sampled(night, 0.0), ROWS)
    line = table.line(fraction("1"), "1")
    assert table.reached() == [ROWS, 0], "nothing reaches the last judge"
    assert (line["rows"], line["calls"], line["threshold"]) == (0, 0, None)
    assert 0.6 < line["accuracy"]["value"] < 0.9


def night(folder: Path, *judged: dict[int, float]) -> tuple[Plan, RunDirectory]:
    """A run directory with each judge's confidence in the rows that came to it, in one chunk."""
    rows = len(judged[0])
    shard = Shard(name="a.parquet", path="a.parquet", rows=rows, fingerprint="f")
    plan = Plan((shard,), Columns({}), rows)
    run = RunDirectory(str(folder))
    (chunk,) = plan.chunks()
    for number, confidences in enumerate(judged):
        found = (
            {"row": row, "judge_verdict": "A", "judge_confidence": sure}
            for row, sure in confidences.items()
        )
        if confidences:
            run.commit_judged(number, chunk.name, builders.judged(*found))
    return plan, run


def scored(rows: int, escalated: int) -> pl.DataFrame:
    return pl.DataFrame({"route": ["escalate"] * escalated + ["accept"] * (rows - escalated)})


def test_drift_of_each_judge(tmp_path: Path) -> None:
    calibration = made(judged(), pair(tmp_path))
    small, large = (frame["judge_confidence"].to_numpy() for frame in judged(seed=3))
    on = small < calibration.tiers[0].threshold
    everywhere = dict(enumerate(small))
    plan, run = night(tmp_path / "run", everywhere, {n: large[n] - 0.25 for n in on.nonzero()[0]})
    cascade = Cascade(pair(tmp_path), plan, run, calibration)
    (chunk,) = plan.chunks()
    assert cascade.passed_on(0) == {chunk.name: np.flatnonzero(on).tolist()}
    routed = Routed(cascade, (chunk.name for _ in "x"))
    (frame,) = routed
    unsure = large[on] - 0.25 < calibration.tiers[1].threshold
    assert frame.filter(route="escalate").height == unsure.sum() > 0
    assert routed.threshold() == calibration.tiers[1].threshold
    found = measure_drift(cascade, scored(ROWS, 100))
    assert found is not None
    first, second = found["judges"]
    assert (first["verdict"], second["verdict"]) == ("stable", "shifted")
    assert (found["verdict"], found["psi"]) == ("shifted", second["psi"])
    assert (first["reached"], second["reached"]) == (ROWS, int(on.sum()))
    assert first["passed_on"] == on.sum() / ROWS
    assert abs(first["passed_on"] - first["passed_on_then"]) < 0.06
    assert second["passed_on"] == 100 / on.sum()
    assert found["escalated"] == 100 / ROWS
    then = first["passed_on_then"] * second["passed_on_then"]
    assert found["escalated_then"] == pytest.approx(then)

    # the first judge routes by a threshold of the user's: other rows than then come to the second
    other = pair(tmp_path, route={"policy": "threshold", "threshold": 0.8})
    mixed = measure_drift(Cascade(other, plan, run, calibration), scored(ROWS, 100))
    assert mixed is not None
    assert mixed["judges"][1]["psi"] is None and mixed["verdict"] == "stable"
    assert mixed["escalated_then"] is None

    plan, run = night(tmp_path / "other", everywhere, {})
    found = measure_drift(Cascade(pair(tmp_path), plan, run, calibration), scored(ROWS, 0))
    assert found is not None
    second = found["judges"][1]
    assert (second["reached"], second["psi"], second["passed_on"]) == (0, None, None)


def test_a_sample_is_those_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    text = [f"t{n}" for n in range(100)]
    columns = dict.fromkeys(("instruction", "response_a", "response_b"), text)
    table = pa.table({**columns, "human": [None if n % 3 else "A" for n in range(100)]})
    pq.write_table(table[:30], tmp_path / "in" / "a.parquet", row_group_size=7)
    pq.write_table(table[30:], tmp_path / "in" / "b.parquet", row_group_size=50)
    shards = plan_input(config(tmp_path), ()).shards
    known = labelled_rows(shards, "human")
    assert known.tolist() == list(range(0, 100, 3))
    chosen = draw(known, 12)
    assert len(set(chosen)) == 12 and set(chosen) <= set(known) and (np.diff(chosen) > 0).all()
    assert draw(known, 500).tolist() == known.tolist()
    sample = take(shards, chosen, ["instruction", "human"])
    assert sample["instruction"].to_pylist() == [f"t{n}" for n in chosen]
    assert pq.read_table(write_sample(str(tmp_path / "s"), sample)).equals(sample)
    with pytest.raises(InputError, match="no such column"):
        labelled_rows(shards, "humn")


def test_tokens_are_counted_per_question(tmp_path: Path) -> None:
    columns = Columns({"instruction": "i", "response_a": "a", "response_b": "b"})
    path = str(tmp_path / "s.parquet")
    table = pa.table({"i": ["", "x" * 400, None, "x" * 800], "a": ["y"] * 4, "b": ["z"] * 4})
    pq.write_table(table, path)
    swapped = config(tmp_path, strong__swap=True)
    both = count_chunk(swapped, columns, Chunk("c", path, "s", 1, 2))
    assert both["row"].to_list() == [1, 1] and both["key"].n_unique() == 2
    longer = count_chunk(config(tmp_path), columns, Chunk("c", path, "s", 3, 1))
    assert longer["input_tokens"][0] - both["input_tokens"][0] == 100


def test_costs_are_those_of_the_price_table(tmp_path: Path) -> None:
    strong = config(tmp_path).strong
    assert output_tokens(config(tmp_path)) == pytest.approx(13 / 3)
    # gpt-4.1: $2 and $8 per million tokens
    online = expected_nano_usd(strong, [1000, 1000, 500], 5, "default")
    assert online.tolist() == [2_040_000, 2_040_000, 1_040_000]
    assert expected_nano_usd(strong, [1000], 5, "batch").tolist() == [1_020_000]
    assert expected_nano_usd(strong, [1000], 4.5, "default").tolist() == [2_036_000]
    assert expected_nano_usd(strong, [1000], 5, "default", 0.4).tolist() == [1_440_000]


def on_file(made: RunConfig, keys: Iterable[str], model: str = "m", **usage: Any) -> None:
    """Two attempts at each of these questions, in the books of a run."""
    writer, cost = Books.of(made).writer(f"{Path(made.output).name}-{model}"), Decimal("0.001")
    paid = Usage(110, 900, 22, **usage), model, "r", "lease"
    for key in keys:
        for slot in (0, 1):
            writer.append(Answer(key, Outcome.RESOLVED, "A", cost, *paid, slot, 0.0))
    writer.close()


KEYS = [f"k{n}" for n in range(40)]
COUNTED = pl.DataFrame({"key": KEYS, "input_tokens": [200] * 40})


def test_answers_on_file_correct_the_estimate(tmp_path: Path) -> None:
    """In all attempts together; the input by the very questions, the output by all of the model."""
    run = config(tmp_path, output=str(tmp_path / "run"))
    on_file(run, KEYS[:19])
    on_file(run, KEYS[30:], "guessed", estimated=True)
    assert correction(run, COUNTED) is None
    on_file(run, ["other"], "m2")
    assert correction(run, COUNTED) == Correction(1.0, 1800.0, 20, 0.2)
    on_file(run, KEYS[20:26], "m3")
    assert correction(run, COUNTED) == Correction(1.1, 1800.0, 26, 0.2)
    assert correction(run, COUNTED, own=False) is None


def test_answers_to_other_runs_count_where_the_model_is_the_same(tmp_path: Path) -> None:
    books = str(tmp_path / "books")
    nights = [
        config(tmp_path, output=str(tmp_path / n), strong__books=books) for n in ("one", "two")
    ]
    on_file(nights[0], [f"n{n}" for n in range(30)], "gpt-4o")
    assert correction(nights[1], COUNTED) is None
    on_file(nights[0], [f"m{n}" for n in range(30)], "gpt-4.1-2025-04-14")
    assert correction(nights[1], COUNTED) == Correction(1.0, 1800.0, 30, 0.2)
    alone = config(tmp_path, output=str(tmp_path / "run"))
    assert correction(alone, COUNTED) is None
    on_file(config(tmp_path, strong__books=f"{alone.output}/calibration"), KEYS, "gpt-4.1")
    bought = Correction(1.1, 1800.0, 40, 0.2)  # by `calibrate`
    assert correction(alone, COUNTED) == correction(alone, COUNTED, own=False) == bought
