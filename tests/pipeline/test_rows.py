"""Rows that cannot be judged, columns of every type, damaged pages; rows that are for a person."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.records import PAIRWISE_ALTERNATIVES, verdict_schema
from tests.provider import RunningServer

from .conftest import Runs, pairs

VIEW = pa.string_view()


def zoo(rows: int) -> dict[str, pa.Array]:
    """Columns of types that are easily lost on the way."""
    when = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=n) for n in range(rows)]
    return {
        "z_bool": pa.array([n % 3 == 0 or None for n in range(rows)], pa.bool_()),
        "z_u64": pa.array([2**64 - 1 - n for n in range(rows)], pa.uint64()),
        "z_i8": pa.array([None] * rows, pa.int8()),
        "z_f16": pa.array(np.arange(rows, dtype=np.float16)),
        "z_f32": pa.array([float("nan")] + [0.1] * (rows - 1), pa.float32()),
        "z_decimal": pa.array([Decimal(n) / 100 for n in range(rows)], pa.decimal128(30, 2)),
        "z_date": pa.array([date(2026, 1, 1)] * rows),
        "z_ns": pa.array(when, pa.timestamp("ns", "Europe/Berlin")),
        "z_us": pa.array(when, pa.timestamp("us", "UTC")),
        "z_time": pa.array([n * 1000 for n in range(rows)], pa.time64("us")),
        "z_duration": pa.array([timedelta(seconds=n) for n in range(rows)], pa.duration("ms")),
        "z_dict": pa.array([["a", "b", None][n % 3] for n in range(rows)]).dictionary_encode(),
        "z_large": pa.array(["x"] * rows, pa.large_string()),
        "z_view": pa.array(["longer than what is kept inside", None] * (rows // 2)).cast(VIEW),
        "z_binary": pa.array([b"\xff\x00", *[None] * (rows - 1)], pa.binary()),
        "z_fixed": pa.array([b"abcd"] * rows, pa.binary(4)),
        "z_list": pa.array(
            [[n, None] if n % 2 else None for n in range(rows)], pa.list_(pa.int32())
        ),
        "z_struct": pa.array([{"a": n, "b": [{"c": "d"}]} for n in range(rows)]),
        "z_map": pa.array([[("k", n)] for n in range(rows)], pa.map_(pa.string(), pa.int64())),
        "z_null": pa.nulls(rows),
        "z.dotted name": pa.array(range(rows)),
    }


def broken_text(rows: int, at: int) -> pa.Array:
    """A string column whose row `at` is not UTF-8, as careless writers make them."""
    values = [b"fine"] * rows
    values[at] = b"caf\xe9"
    return pa.array(values, pa.binary()).view(pa.string())


def test_every_misfortune_is_its_rows_own(runs: Runs, server: RunningServer) -> None:
    """20 rows, 7 of them bad; all others are judged, asked and kept, whatever the columns."""
    rows = 20
    good = pairs(rows).to_pydict()
    text = {name: list(good[name]) for name in ("instruction", "response_a", "p_a")}
    text["instruction"][2], text["instruction"][3] = None, "  "
    text["response_a"][4] = ""
    text["p_a"][6:9] = None, float("nan"), 1.5
    views = {name: pa.array(text.pop(name)).cast(VIEW) for name in ("instruction", "response_a")}
    table = pairs(rows, **text, **views, response_b=broken_text(rows, 5), **zoo(rows))
    fields = [f.with_nullable(f.name not in ("p_b", "z_date")) for f in table.schema]
    fields[0] = fields[0].with_metadata({"note": "kept"})
    table = table.cast(pa.schema(fields, metadata={"origin": "a test", "pandas": "not json"}))
    empty = table.slice(0, 0)

    other = pairs(2, first=rows, z_list=["a text"] * 2, z_new=[1, 2])
    run = runs(table, empty, other, route__fraction=1, chunk_rows=6, allow_empty_shards=True)
    written = pq.read_table(run.folder / "in" / "part-000.parquet")
    assert run.score() == 0

    first, second, third = (pq.read_table(path) for path in run.scored_paths())
    added = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES)
    for scored in (first, second):
        assert scored.column_names == [*written.column_names, *added.names]
        kept = scored.select(range(written.num_columns))
        assert kept.schema.equals(written.schema, check_metadata=True)
        assert scored.select(added.names).schema.remove_metadata().equals(added)
    assert (len(first), len(second)) == (rows, 0)
    assert third.select(other.column_names).equals(other)
    for name in written.column_names:  # NaN is not equal to itself, but its bytes are
        if name == "response_b":
            assert first[name].cast(pa.binary()).equals(written[name].cast(pa.binary()))
        elif name not in ("z_f32", "p_a"):
            assert first[name].combine_chunks().equals(written[name].combine_chunks()), name
    for name in ("z_f32", "p_a"):
        assert np.array_equal(first[name].to_numpy(), written[name].to_numpy(), equal_nan=True)

    bad = {n: str(e) for n, e in enumerate(first["error"].to_pylist()) if e is not None}
    said = {2: "instruction is null", 3: "instruction is empty", 4: "response_a is empty",
            5: "response_b is not UTF-8", 6: "p_a holds None", 7: "p_a holds nan",
            8: "p_a holds 1.5"}  # fmt: skip
    assert {n: part in bad.get(n, "") for n, part in said.items()} == dict.fromkeys(said, True)
    assert sorted(bad) == sorted(said)
    outcome, source = first["outcome"].to_pylist(), first["final_source"].to_pylist()
    for n in range(rows):
        if n in (2, 3, 4, 5):  # no text to ask about; the given probabilities stand
            assert (outcome[n], source[n]) == ("not_needed", "judge")
        else:  # no probability: the strong judge may know
            assert (outcome[n], source[n]) == ("resolved", "strong")
    assert server.stats()["billed"] == rows - 4 + len(other)
    verdicts = pa.Table.from_arrays(first.columns[written.num_columns :], added.names)
    frame = pl.DataFrame(pl.from_arrow(verdicts))
    assert not frame["judge_confidence"].is_nan().any()
    assert run.summary()["errors"] == len(said)
    assert run.check_costs()


@pytest.mark.parametrize("policy", ["fraction", "threshold"])
def test_a_damaged_page_ends_the_run(runs: Runs, server: RunningServer, policy: str) -> None:
    """The footer is sound, so planning finds nothing; the page is found when it is read."""
    changes: dict[str, Any] = {"route__fraction": 0.5}
    if policy == "threshold":
        changes = {"route": {"policy": "threshold", "threshold": 0.8}}
    run = runs(pairs(200), pairs(200, first=200), **changes)
    path = run.folder / "in" / "part-001.parquet"
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xa5" * 1996
    path.write_bytes(bytes(data))
    assert run.score() == 3
    assert str(path) in run.said and "Parquet" in run.said
    if policy == "fraction":
        assert server.stats()["requests"] == 0  # nothing is asked before everything is judged
    assert not (run.output / "summary.json").exists()


UNSURE = [7, 17, 27, 37, 47, 57]
"""Of numbers that end in 7 one vote in three is another; the last three are audited."""


def test_what_the_strong_judge_is_unsure_of(runs: Runs, server: RunningServer) -> None:
    server.configure(faults=[{"kind": "other_verdict", "contains": "7.", "attempts": [2]}])
    run = runs(
        pairs(35, label=["A"] * 35), pairs(25, first=35, label=["A"] * 25), chunk_rows=10,
        route={"policy": "fraction", "fraction": 0.5, "audit": 1},
        strong__samples=3, strong__abstain_below=0.7, strong__ties=False,
    )  # fmt: skip
    assert run.score() == 0

    rows = run.scored().with_row_index("n")
    unsure = rows.filter(outcome="abstained")
    assert unsure["n"].to_list() == UNSURE
    assert unsure["route"].to_list() == ["escalate"] * 3 + ["audit"] * 3
    assert unsure["strong_prob"].to_list() == [2 / 3] * 6
    assert unsure["strong_verdict"].null_count() == 0 == unsure["strong_cost_usd"].null_count()
    assert unsure["final_verdict"].null_count() == 6
    assert unsure["final_source"].unique().to_list() == ["none"]
    sure = rows.filter(outcome="resolved")
    assert sure.height == 54 and sure["final_source"].unique().to_list() == ["strong"]
    assert sure["final_verdict"].to_list() == sure["strong_verdict"].to_list()
    assert (sure["strong_prob"] == 1).all()
    assert server.stats()["billed"] == 180
    assert run.check_costs() == Decimal(server.stats()["total_usd"])

    summary = run.summary()
    assert run.outcomes() == {"resolved": 54, "abstained": 6}
    assert summary["sources"] == {"judge": 0, "strong": 54, "none": 6}
    assert summary["review"] == {"rows": 6}
    audit = summary["audit"]
    assert (audit["n"], audit["abstained"], audit["unanswered"]) == (30, 3, 0)
    right = (rows["final_verdict"] == "A").fill_null(value=False).sum()
    assert summary["label_accuracy"]["final"] == right / 60  # no verdict is not right
    assert "review.parquet" in (run.output / "report.html").read_text()

    review = pl.read_parquet(run.output / "review.parquet")
    same = [name for name in review.columns if name in rows.columns]
    assert review.select(same).equals(unsure.select(same))

    # Gone with a careless hand, it is written again as it was, and nobody is asked again.
    requests, written = server.stats()["requests"], run.everything()["review.parquet"][1]
    (run.output / "review.parquet").unlink()
    assert run.score() == 0
    assert run.everything()["review.parquet"][1] == written
    assert server.stats()["requests"] == requests
    assert run.summary()["review"] == summary["review"]
