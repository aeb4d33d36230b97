"""review.parquet: which rows a person gets to see, and what of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.errors import CorruptedError
from ray_judge.records import PAIRWISE_ALTERNATIVES, Shard, verdict_schema
from ray_judge.review import review_schema, write_review
from ray_judge.run.columns import Columns
from ray_judge.run.directory import REVIEW, Plan, RunDirectory

pytestmark = pytest.mark.timeout(60)

COLUMNS = Columns({"instruction": "prompt", "response_a": "row", "response_b": "b"}, "id")
CHUNK = 3
VERDICTS = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES, strong_prob=True)


def scored(outcomes: Sequence[str], first: int = 0, **columns: pa.Array) -> pa.Table:
    """A scored shard, some of whose columns have names that the file has, too."""
    numbers = range(first, first + len(outcomes))
    texts = {
        "prompt": pa.array([f"instruction {n} é" for n in numbers]),
        "row": pa.array([f"answer {n}" for n in numbers]),
        "b": pa.array([f"other {n}" for n in numbers]),
        "id": pa.array(numbers, pa.int64()),
        **columns,
    }
    rows = [
        {"judge_verdict": "A", "judge_confidence": 0.5, "outcome": outcome, "strong_verdict": "tie",
         "strong_prob": n / 100, "error": None if n % 2 else "judge: too long"}
        for n, outcome in zip(numbers, outcomes, strict=True)
    ]  # fmt: skip
    verdicts = pa.Table.from_pylist(rows, schema=VERDICTS)
    return pa.table({**texts, **{name: verdicts[name] for name in VERDICTS.names}})


def reviewed(folder: Path, *shards: pa.Table, columns: Columns = COLUMNS) -> pa.Table:
    """Write the scored shards as a run does, a row group per chunk, and the review of them."""
    run = RunDirectory(str(folder / "out"))
    names = [f"part-{number}.parquet" for number in range(len(shards))]
    for name, table in zip(names, shards, strict=True):
        with run.storage.write_stream(f"scored/{name}") as sink:
            pq.write_table(table, sink, row_group_size=CHUNK)
    planned = [Shard(f"/in/{n}", n, len(t), "f") for n, t in zip(names, shards, strict=True)]
    written = []
    for _ in range(2):
        write_review(run, Plan(tuple(planned), columns, CHUNK), "pairwise")
        written.append(run.storage.read(REVIEW))
    assert written[0] == written[1]
    return pq.read_table(run.storage.open_input(REVIEW))


def test_the_abstained_rows_in_the_order_of_the_input(tmp_path: Path) -> None:
    one = ["resolved"] * 8
    one[1] = one[2] = one[7] = "abstained"
    other = ["not_needed", "abstained", "failed", "denied_budget"]
    found = reviewed(tmp_path, scored(one), scored(other, first=8))
    assert found.schema.equals(review_schema("pairwise", COLUMNS))
    assert found.select(["shard", "row", "row_key"]).to_pylist() == [
        {"shard": f"part-{s}.parquet", "row": row, "row_key": f"{key:020d}"}
        for s, row, key in ((0, 1, 1), (0, 2, 2), (0, 7, 7), (1, 1, 9))
    ]
    assert found.to_pylist()[1] == {
        "shard": "part-0.parquet", "row": 2, "row_key": f"{2:020d}",
        "instruction": "instruction 2 é", "response_a": "answer 2", "response_b": "other 2",
        "judge_verdict": "A", "judge_confidence": 0.5, "strong_verdict": "tie",
        "strong_prob": 0.02, "error": "judge: too long",
    }  # fmt: skip
    nobody = reviewed(tmp_path, scored(["resolved"] * 5))
    assert len(nobody) == 0 and nobody.schema.equals(found.schema)


@pytest.mark.parametrize("kind", ["large_string", "string_view", "binary", "dictionary"])
def test_texts_of_any_type(tmp_path: Path, kind: str) -> None:
    texts: Any = pa.array(["x", "y", "z", "x"])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    found = reviewed(tmp_path, scored(["resolved", "abstained"] * 2, b=texts))
    assert found["response_b"].to_pylist() == ["y", "x"]


def test_a_row_without_an_id_is_named_by_its_place(tmp_path: Path) -> None:
    optional = Columns({**COLUMNS.text, "reference": "reference"})
    table = scored(["abstained"] * 4, reference=pa.array([None, "", "gold", "gold"]))
    found = reviewed(tmp_path, table, columns=optional)
    assert found["row_key"].to_pylist()[3] == "part-0.parquet#000000000003"
    assert found["reference"].to_pylist() == [None, None, "gold", "gold"]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.storage.write("scored/x.parquet", b"PAR1 no more")
    plan = Plan((Shard("/in/x.parquet", "x.parquet", 3, "f"),), COLUMNS, CHUNK)
    with pytest.raises(CorruptedError, match=r"x\.parquet"):
        write_review(run, plan, "pairwise")
    assert not run.storage.exists(REVIEW)
