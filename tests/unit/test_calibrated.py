"""Making a calibration, binding it to a judge, sampling, pricing questions: without Ray."""

from __future__ import annotations

import math
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
from ray_judge.calibration.load import (
    calibration_of,
    identity,
    pin_calibration,
    read_calibration,
    template_hash,
    write_calibration,
)
from ray_judge.config import RunConfig, parse
from ray_judge.errors import ConfigError, InputError, RunChangedError
from ray_judge.records import Answer, Outcome, Usage
from ray_judge.routing.cost import corrected, count_rows, expected_nano_usd, output_tokens
from ray_judge.run.columns import Columns
from ray_judge.run.directory import RunDirectory
from ray_judge.run.plan import plan_input
from ray_judge.run.sample import draw, labelled_rows, take, write_sample

pytestmark = pytest.mark.timeout(60)


def config(folder: Path, **changes: Any) -> RunConfig:
    document: dict[str, Any] = {
        "input": str(folder / "in"),
        "output": str(folder / "out"),
        "judge": {"model": "Qwen/Qwen2.5-7B-Instruct"},
        "route": {"policy": "guarantee", "calibration": str(folder / "c.json")},
        "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = document
        for parent in parents:
            node = node[parent]
        node[last] = value
    return parse(document)


def rows(n: int = 400, seed: int = 1) -> pl.DataFrame:
    """A judge whose probability is honest, and a strong one that is right in 95 %."""
    rng = np.random.default_rng(seed)
    p = 0.5 + rng.random(n) / 2
    label = rng.choice(["A", "B"], n)
    other = np.where(label == "A", "B", "A")
    verdict = np.where(rng.random(n) < p, label, other)
    return pl.DataFrame(
        {
            "label": label,
            "judge_verdict": verdict,
            "judge_confidence": p,
            "judge_probs": [
                {"A": c if v == "A" else 1 - c, "B": c if v == "B" else 1 - c, "tie": None}
                for c, v in zip(p, verdict, strict=True)
            ],
            "strong_verdict": np.where(rng.random(n) < 0.95, label, other),
        },
        schema_overrides={
            "judge_probs": pl.Struct({"A": pl.Float64, "B": pl.Float64, "tie": pl.Float64})
        },
    )


def made(frame: pl.DataFrame, settings: RunConfig, **changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "task": "pairwise", "judges": [identity(settings)], "alpha": 0.2, "delta": 0.1,
        "label_kind": "human", "column": "label", "data": "d" * 64, "strong_model": "gpt-4.1",
        **changes,
    }  # fmt: skip
    return make([frame], **values)


# -- making ----------------------------------------------------------------------------------------


def test_a_calibration_from_rows(tmp_path: Path) -> None:
    found = made(rows(), config(tmp_path))
    tier = found.tiers[0]
    assert found.attainable and not found.warnings and tier.selection.rows == 400
    assert tier.correct(np.array([0.55]))[0] < tier.correct(np.array([0.95]))[0]
    assert found.strong_error is not None and 0.03 < found.strong_error < 0.12
    assert tier.strong is not None and tier.strong(np.array([0.7]))[0] > 0.85
    assert found.comparison["use"] == "probability"
    assert [one["method"] for one in found.comparison["methods"]] == ["probability", "margin"]
    against = made(rows(), config(tmp_path), label_kind="strong", column=None)
    assert against.strong_error is None and "gpt-4.1's verdicts" in against.promise()


def test_too_few_labels_say_how_many_would_do(tmp_path: Path) -> None:
    found = made(rows(50), config(tmp_path))
    assert not found.attainable
    assert "50 labelled rows are too few" in found.warnings[0]
    assert "at least 63 are needed" in found.warnings[0]
    strict = made(rows(400), config(tmp_path), alpha=0.04, delta=0.1)
    assert "not attainable" in strict.warnings[0] and math.isinf(strict.tiers[0].threshold)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pl.lit("A").alias("label"), "all 400 labels are A"),
        (pl.lit("X").alias("label"), "'X', not one of A, B, tie"),
        (pl.lit(0.7).alias("judge_confidence"), "confidence is 0.7 on every labelled row"),
        (pl.lit(None, dtype=pl.String).alias("label"), "0 rows have both"),
    ],
)
def test_what_cannot_be_calibrated(tmp_path: Path, change: pl.Expr, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(rows().with_columns(change), config(tmp_path))


# -- whose it is -----------------------------------------------------------------------------------


def test_a_judge_is_known_by_its_prompt_and_its_settings(tmp_path: Path) -> None:
    plain = config(tmp_path)
    named = identity(plain)
    assert named["model"] == "Qwen/Qwen2.5-7B-Instruct" and len(named["template"]) == 64
    rubric = config(tmp_path, judge__rubric="Be brief.")
    assert template_hash(rubric) != template_hash(plain)
    assert identity(config(tmp_path, judge__replicas=8)) == named  # how many is not who
    assert identity(config(tmp_path, judge__swap=True))["swap"] is True
    columns = {"engine": "columns", "prob_columns": {"A": "a", "B": "b"}}
    assert template_hash(config(tmp_path, judge=columns)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge__confidence": "margin"}, "confidence: 'probability' in the calibration, 'margin'"),
        ({"judge__revision": "abc"}, "revision: None in the calibration, 'abc' in the run"),
        ({"judge__rubric": "Be brief."}, "rubric: .*template: "),
        ({"judge__swap": True}, "swap: None in the calibration, True in the run"),
        ({"route__alpha": 0.1}, "route.alpha is 0.1, and this calibration was made for 0.2"),
        ({"route__calibration": "/nowhere/c.json"}, "there is no calibration here"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    found = made(rows(), config(tmp_path))
    write_calibration(str(tmp_path / "c.json"), found)
    assert calibration_of(config(tmp_path)) == found == read_calibration(str(tmp_path / "c.json"))
    with pytest.raises(ConfigError, match=said):
        calibration_of(config(tmp_path, **changes))


def test_a_promise_about_another_strong_judge_is_refused(tmp_path: Path) -> None:
    found = made(rows(), config(tmp_path), label_kind="strong", column=None)
    write_calibration(str(tmp_path / "c.json"), found)
    assert calibration_of(config(tmp_path)) == found
    with pytest.raises(ConfigError, match=r"agreement with gpt-4.1, and the strong judge of this"):
        calibration_of(config(tmp_path, strong__model="gpt-4o"))


def test_a_run_keeps_its_calibration(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    first = made(rows(), config(tmp_path))
    pin_calibration(run, first)
    pin_calibration(run, first)
    with pytest.raises(RunChangedError, match="not the one that this run began with"):
        pin_calibration(run, made(rows(seed=2), config(tmp_path)))


# -- sampling --------------------------------------------------------------------------------------


def test_a_sample_is_those_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    text = [f"t{n}" for n in range(100)]
    table = pa.table(
        {
            "instruction": text, "response_a": text, "response_b": text,
            "human": [None if n % 3 else "A" for n in range(100)],
        }
    )  # fmt: skip
    pq.write_table(table[:30], tmp_path / "in" / "a.parquet", row_group_size=7)
    pq.write_table(table[30:], tmp_path / "in" / "b.parquet", row_group_size=50)
    shards, _ = plan_input(config(tmp_path), ())
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


# -- what a question costs -------------------------------------------------------------------------


def test_tokens_are_counted_per_question(tmp_path: Path) -> None:
    columns = Columns({"instruction": "i", "response_a": "a", "response_b": "b"})
    table = pa.table({"i": ["x" * 400, None], "a": ["y"] * 2, "b": ["z"] * 2})
    both = pl.from_arrow(count_rows(config(tmp_path, strong__swap=True), columns, table, "c", 5))
    assert isinstance(both, pl.DataFrame) and both["row"].to_list() == [5, 5]
    longer = pa.table({"i": ["x" * 800], "a": ["y"], "b": ["z"]})
    again = pl.from_arrow(count_rows(config(tmp_path), columns, longer, "c", 5))
    assert isinstance(again, pl.DataFrame)
    assert again["input_tokens"][0] - both["input_tokens"][0] == 100


def test_costs_are_those_of_the_price_table(tmp_path: Path) -> None:
    strong = config(tmp_path).strong
    assert output_tokens(config(tmp_path)) == pytest.approx(13 / 3)
    # gpt-4.1: $2 and $8 per million tokens
    online = expected_nano_usd(strong, [1000, 1000, 500], 5, "default")
    assert online.tolist() == [2_040_000, 2_040_000, 1_040_000]
    assert expected_nano_usd(strong, [1000], 5, "batch").tolist() == [1_020_000]
    assert expected_nano_usd(strong, [1000], 4.5, "default").tolist() == [2_036_000]


def answer(key: str, tokens: int, *, estimated: bool = False) -> Answer:
    usage = Usage(tokens, 9, estimated=estimated)
    return Answer(key, Outcome.RESOLVED, "A", Decimal("0.001"), usage, "m", "r", "lease", 0, 0.0)


def test_answers_on_file_correct_the_estimate() -> None:
    counted = pl.DataFrame({"key": [f"k{n}" for n in range(40)], "input_tokens": [100] * 40})
    some = {f"k{n}": answer(f"k{n}", 110) for n in range(25)}
    found = corrected(counted, some)
    assert found is not None
    assert (found.input_factor, found.output_tokens, found.answers) == (1.1, 9.0, 25)
    assert corrected(counted, dict(list(some.items())[:19])) is None
    guessed = {key: answer(key, 110, estimated=True) for key in some}
    assert corrected(counted, guessed) is None
