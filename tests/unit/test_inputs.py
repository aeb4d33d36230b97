"""The input as found: real Parquet files, good and bad, and how slices of them are read."""

import os
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.config import RunConfig
from ray_judge.errors import ConfigError, InputError
from ray_judge.records import Example, verdict_schema
from ray_judge.run.columns import Columns, is_text
from ray_judge.run.files import find_shards
from ray_judge.run.labels import read_labels
from ray_judge.run.plan import plan_input, read_examples, read_rows, read_slices, row_keys
from ray_judge.run.sample import take

from . import builders

DICTIONARY = pa.dictionary(pa.int32(), pa.string())
ROLES = {name: name for name in ("instruction", "response_a", "response_b")}


def config(path: Path | str = "in", **changes: Any) -> RunConfig:
    return builders.config(input=str(path), **changes)


def pairs(rows: int = 3, **columns: Any) -> pa.Table:
    """Pairs, with columns added, replaced, or (None) taken away."""
    data: dict[str, Any] = {name: [f"{name} {n}" for n in range(rows)] for name in ROLES}
    data |= columns
    return pa.table({name: values for name, values in data.items() if values is not None})


def shard(folder: Path, name: str, table: pa.Table, **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def refusal(path: Path | str, extra: tuple[str, ...] = (), **changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        plan_input(config(path, **changes), extra)
    assert caught.value.exit_code == 3
    return caught.value


def test_a_file_a_folder_and_a_glob_whatever_their_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "sub/c.parquet", "_tmp.parquet", ".d.parquet", "e.txt"):
        shard(tmp_path, name, pairs())
    for pattern, names in (
        ("", ["a.parquet", "b.parquet", "sub/c.parquet"]),
        ("/**/*.parquet", ["a.parquet", "b.parquet", "sub/c.parquet"]),
        ("/b.parquet", ["b.parquet"]),
        ("/[ab].parquet", ["a.parquet", "b.parquet"]),
        ("/*.parquet", ["a.parquet", "b.parquet"]),
        ("/*/c.parquet", ["sub/c.parquet"]),
        ("/e.txt", ["e.txt"]),
    ):
        found = [(str(tmp_path), name) for name in names]
        assert find_shards(f"{tmp_path}{pattern}")[0] == found

    folder = tmp_path / "other"
    shard(folder, "folder.parquet/0.parquet", pairs())
    assert find_shards(str(folder)) == ([(str(folder), "folder.parquet/0.parquet")], [])
    for name in ("_hidden.parquet", "odd [1].parquet", "a b*.parquet"):
        shard(tmp_path, name, pairs())
        assert find_shards(str(tmp_path / name)) == ([(str(tmp_path), name)], [])


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file" in str(refusal(tmp_path / "none"))
    for place in (tmp_path, f"{tmp_path}/*.parquet"):
        error = refusal(place)
        assert "no shards here" in str(error) and str(place) in str(error)


OUTPUT = verdict_schema("pairwise", ()).names
STRONG = {"model": "gpt-4.1", "max_cost_usd": 1, "samples": 2, "abstain_below": 0.5}
AUDIT = {"route": {"policy": "fraction", "fraction": 0.5, "audit": 0.5, "audit_by": "meta"}}
NO_ROWS = pairs().slice(0, 0)
TWICE = pairs().append_column("response_a", pairs()["response_b"])


@pytest.mark.parametrize(
    ("shards", "changes", "column", "said"),
    [
        ([pairs(response_b=None, respose_b=["x"] * 3)], {}, "response_b", "mean respose_b?"),
        ([pairs()], {"columns": {"label": "humann"}}, "humann", "for label"),
        ([pairs(strong_prob=[1, 2, 3])], {"strong": STRONG}, "strong_prob", "rename it"),
        *(([pairs(**{name: [1, 2, 3]})], {}, name, "rename it") for name in OUTPUT),
        ([TWICE], {}, "response_a", "two columns have the same name"),
        ([pairs(id=[1, 2, 3]), pairs(id=["4", "5", "6"])], {}, "id", "text here, number in"),
        ([pairs(meta=[{"lang": "en"}] * 3)], AUDIT, "meta", "this column is struct<lang: string>"),
        ([pairs(meta=[timedelta(1)] * 3)], AUDIT, "meta", "this column is duration"),
        ([pairs(meta=[b"\xff"] * 3)], AUDIT, "meta", "this is not UTF-8 text"),
        ([pairs(id=[1, 2, 3]), pairs()], {}, "id", "missing here"),
        ([pairs(), pairs(label=["A", "B", "A"])], {}, "label", "missing in"),
        ([pairs(), NO_ROWS], {}, None, "allow_empty_shards"),
        ([NO_ROWS], {"allow_empty_shards": True}, None, "nothing to judge"),
        ([pairs(response_a=[1.5, 2.0, None])], {}, "response_a", "double"),
        ([pairs(response_b=pa.nulls(3))], {}, "response_b", "null"),
        ([pairs(reference=[{"text": "x"}] * 3)], {}, "reference", "struct"),
        ([pairs(id=[True, False, True])], {}, "id", "text or whole numbers"),
    ],
)
def test_what_cannot_be_judged_names_file_and_column(
    tmp_path: Path, shards: list[pa.Table], changes: dict[str, Any], column: str | None, said: str
) -> None:
    paths = [shard(tmp_path, f"{n}.parquet", table) for n, table in enumerate(shards)]
    error = refusal(tmp_path, **changes)
    assert said in str(error) and error.where.get("column") == column
    assert error.where.get("file") == (str(paths[-1]) if said != "nothing to judge" else None)


def test_probability_columns_must_be_numbers_that_are_there(tmp_path: Path) -> None:
    path = shard(tmp_path, "a.parquet", pairs(p_a=["0.5"] * 3, p_b=[0.5] * 3))
    error = refusal(tmp_path, ("p_a", "p_b"))
    assert error.where == {"file": str(path), "column": "p_a"}
    assert "did you mean p_b?" in str(refusal(tmp_path, ("p_bb", "p_b")))


def test_what_is_taken_all_the_same(tmp_path: Path) -> None:
    table = pairs(label=[0, 1, 0], good=["A", "B", None], strong_prob=[1, 2, 3])
    shard(tmp_path, "a.parquet", table)
    shard(tmp_path, "b.parquet", table.slice(0, 0))
    wish = {"columns": {"label": "good"}, "allow_empty_shards": True}
    plan = plan_input(config(tmp_path, **wish), ())
    assert ([one.rows for one in plan.shards], plan.columns.label) == ([3, 0], "good")
    wish = {"columns": {"label": None}, "allow_empty_shards": True}
    assert plan_input(config(tmp_path, **wish), ()).columns.label is None
    with pytest.raises(ConfigError, match=r"columns\.instruction"):
        plan_input(config(tmp_path, columns={"instruction": None}, allow_empty_shards=True), ())


@pytest.mark.parametrize(
    "ids",
    [
        *(pa.array(ids) for ids in ("xyx", [7, 8, 7], [b"\xff", b"y", b"\xff"])),
        *(pa.array("xyx").cast(kind) for kind in (pa.large_string(), DICTIONARY)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_duplicate_ids_name_both_rows(tmp_path: Path, ids: pa.Array) -> None:
    path = shard(tmp_path, "a.parquet", pairs(id=ids))
    error = refusal(tmp_path)
    assert error.where == {"file": str(path), "column": "id", "row": 2}
    assert f"{path} row 0 and {path} row 2" in str(error)


def test_duplicate_ids_in_two_shards_and_null_ids_are_named(tmp_path: Path) -> None:
    first = shard(tmp_path, "a.parquet", pairs(id=["x", "y", "z"]))
    second = shard(tmp_path, "b.parquet", pairs(2, id=["v", "y"]))
    error = refusal(tmp_path)
    assert f"{first} row 1 and {second} row 1" in str(error)
    assert error.where == {"file": str(second), "column": "id", "row": 1}
    second.unlink()
    path = shard(tmp_path, "a.parquet", pairs(key=["x", "y", None]))
    error = refusal(tmp_path, columns={"id": "key"})
    assert error.where == {"file": str(path), "column": "key", "row": 2}


def test_ids_that_are_not_utf8_are_ids(tmp_path: Path) -> None:
    shard(tmp_path, "a.parquet", pairs(id=[b"\xff", b"ab", b"\xfe"]))
    columns = plan_input(config(tmp_path), ()).columns
    table = read_rows(str(tmp_path / "a.parquet"), 0, 3, columns.needed())
    keys = row_keys(table, columns, "a.parquet", range(len(table)))
    assert len(set(keys)) == 3 and "ab" in keys


def test_row_keys_sort_as_their_rows_or_ids_do() -> None:
    table = pa.table({"n": pa.array([-10, -9, 0, 5, 10, 2**62], pa.int64())})
    for key in ("n", None):
        keys = row_keys(table, Columns({}, key), "s", range(999_998, 999_998 + len(table)))
        assert keys == sorted(keys) and len(set(keys)) == len(table)


@pytest.mark.parametrize(
    ("rows", "group", "starts", "sizes"),
    [
        *((20, group, range(21), (1, 2, 5, 20)) for group in (1, 3, 7, 100)),
        (10_000, None, (4000, 4096, 9000), (5000,)),  # beyond one batch
    ],
)
def test_every_slice_over_any_row_groups(
    tmp_path: Path, rows: int, group: int | None, starts: Iterable[int], sizes: Iterable[int]
) -> None:
    table = pairs(rows)
    path = str(shard(tmp_path, "a.parquet", table, row_group_size=group))
    for start in starts:
        for size in sizes:
            assert read_rows(path, start, size).equals(table.slice(start, size))
    assert read_rows(path, 3, 4, ["response_a"]).column_names == ["response_a"]


@pytest.mark.parametrize("sizes", [[20], [7, 7, 6], [1] * 20, [19, 1], [5, 0, 15]])
def test_a_shard_in_slices(tmp_path: Path, sizes: list[int]) -> None:
    table = pairs(20)
    path = str(shard(tmp_path, "a.parquet", table, row_group_size=6))
    slices = list(read_slices(path, sizes))
    assert [len(one) for one in slices] == sizes
    assert pa.concat_tables(slices).equals(table)
    assert [len(one) for one in read_slices(path, [15, 15, 15])] == [15, 5, 0]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view(), DICTIONARY),
    ],
)
def test_text_of_every_type(kind: pa.DataType) -> None:
    good = "naïve 漢字 and long enough not to be inlined"
    (example,) = read_examples(pairs(1, response_a=pa.array([good]).cast(kind)), Columns(ROLES))
    assert isinstance(example, Example) and example.responses[0] == good


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "null"), ("", "empty"), (" \n\t ", "empty"), (b"\xff\xfe", "not UTF-8")],
)
@pytest.mark.parametrize("role", ["instruction", "response_a", "response_b"])
def test_a_misfortune_is_its_rows_error(role: str, value: Any, said: str) -> None:
    good = b"fine" if isinstance(value, bytes) else "fine"
    table = pairs(3, **{role: [good, value, good]})
    before, error, after = read_examples(table, Columns(ROLES))
    assert isinstance(before, Example) and isinstance(after, Example)
    assert isinstance(error, str) and role in error and said in error


def test_invalid_utf8_in_a_string_column() -> None:
    places, texts = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xc3\x28")
    broken = pa.Array.from_buffers(pa.string(), 2, [None, places, texts])
    first, second = read_examples(pairs(2, response_b=broken), Columns(ROLES))
    assert isinstance(first, Example)
    assert second == "input: response_b is not UTF-8 text"


def test_optional_text_that_is_missing_is_left_out() -> None:
    roles = {**ROLES, "reference": "reference", "rubric": "rubric", "input": "input"}
    table = pairs(2, reference=["r", None], rubric=[None, "strict"], input=["", "x"])
    first, second = read_examples(table, Columns(roles))
    assert isinstance(first, Example) and isinstance(second, Example)
    assert (first.reference, first.rubric, first.input) == ("r", None, None)
    assert (second.reference, second.rubric, second.input) == (None, "strict", "x")


@pytest.mark.parametrize(
    ("given", "labels", "meant"),
    [
        (["model_a", "tie (bothbad)", None, "model_b"],
         {"model_a": "A", "model_b": "B", "tie (bothbad)": "tie"}, ["A", "tie", None, "B"]),
        ([1, 2, 0], {1: "A", 2: "B", 0: "tie"}, ["A", "B", "tie"]),
        ([-3.0, 0.0, 3.0], {-3: "A", 0: "tie", 3: "B"}, ["A", "tie", "B"]),
        ([True, False], {True: "A", False: "B"}, ["A", "B"]),
        (["a", "B", "Tie"], {"a": "A", "Tie": "tie"}, ["A", "B", "tie"]),
        ([None, None], {}, [None, None]),
        (["A ", " ", "skip"], {"A ": "A", " ": None, "skip": None}, ["A", None, None]),
        ([Decimal("1.0"), Decimal("2.0")], {1: "A", 2: "B"}, ["A", "B"]),
        ([12345678, 12345679], {12345678: "A", 12345679: "B"}, ["A", "B"]),
        ([b"A", b"x"], {"x": "tie"}, ["A", "tie"]),
    ],
)  # fmt: skip
def test_labels_mean_what_is_configured(
    given: list[Any], labels: Any, meant: list[str | None]
) -> None:
    config = builders.config(labels=labels)
    assert read_labels(pl.Series("l", given), config).to_list() == meant


def test_labels_that_are_no_verdicts_are_listed_with_their_counts() -> None:
    given = pl.Series("l", ["model_a", "A", "model_b", "model_a", None])
    with pytest.raises(InputError) as caught:
        read_labels(given, builders.config(labels={"model_b": "B"}), column="l")
    said = "these labels are no verdicts: 'model_a' (2 rows)"
    assert said in str(caught.value) and 'labels: {"model_a": ...}' in str(caught.value)
    with pytest.raises(ConfigError, match="labels: x is to mean A, B or tie, not 'C'"):
        builders.config(labels={"x": "C"})


@pytest.mark.parametrize(
    ("column", "kinds"),
    [
        ("label", [pa.string_view(), pa.large_string(), DICTIONARY, pa.string(), pa.null()]),
        ("instruction", [pa.string_view(), pa.binary(), DICTIONARY, pa.binary_view()]),
        ("id", [pa.int32(), pa.int64(), pa.uint8()]),
        ("meta", [pa.int64(), pa.float64(), pa.decimal128(9, 2), pa.null()]),
        ("meta", [pa.timestamp("ns", "UTC"), pa.timestamp("us"), pa.null()]),
        ("meta", [pa.list_(pa.string()), pa.large_list(pa.field("element", pa.string_view()))]),
        ("meta", [pa.struct({"a": pa.int8(), "b": pa.string()}),
                  pa.struct({"b": pa.large_string(), "a": pa.int64()})]),
    ],
)  # fmt: skip
def test_shards_of_several_writers(tmp_path: Path, column: str, kinds: list[pa.DataType]) -> None:
    """Of each shard as many rows come into a sample, whatever its types."""
    for number, kind in enumerate(kinds):
        values = pa.array(["A", None] if column == "label" else ["x", "y"])
        if pa.types.is_integer(kind):
            values = pa.array([2 * number, 2 * number + 1])
        elif not is_text(kind):
            values = pa.nulls(2)
        shard(tmp_path, f"{number}.parquet", pairs(2, **{column: values.cast(kind)}))
    plan = plan_input(config(tmp_path), ())
    assert plan.rows == 2 * len(kinds)
    rows = np.arange(plan.rows)
    names = list(dict.fromkeys([*plan.columns.needed(), *filter(None, [plan.columns.label])]))
    taken = take(plan.shards, rows[::2], names)
    assert len(read_examples(taken, plan.columns)) == len(kinds)


LANG = {"label": "lang"}


def test_what_is_not_taken_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.PARQUET", "b.parq", "c.pq", "lang=en/0.parquet", "_d.parquet", ".e/f.parquet"):
        shard(tmp_path, name, pairs())
    for name in ("_SUCCESS", ".a.PARQUET.crc", "g.csv", "sub/h.txt"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    plan = plan_input(config(tmp_path), ())
    named = [".e/f.parquet (names with a leading . are no data by custom)",
             "_d.parquet (names with a leading _ are no data by custom)",
             "g.csv (there is Parquet, too, and an input has one format)",
             "sub/h.txt (no data by its name)"]  # fmt: skip
    names = ["a.PARQUET", "b.parq", "c.pq", "lang=en/0.parquet"]
    assert [one.name for one in plan.shards] == names and sorted(plan.not_taken) == named
    assert all(f"not taken: {', '.join(plan.not_taken)}" in m for m in caplog.messages)
    assert find_shards(f"{tmp_path}/_*.parquet") == ([(str(tmp_path), "_d.parquet")], [])
    assert find_shards(f"{tmp_path}/*")[0] == [(str(tmp_path), name) for name in names[:3]]
    assert "lang= is in its folder's name" in str(refusal(tmp_path / "l*/*", columns=LANG))
    for n in range(30):
        (tmp_path / f"{n}.txt").write_bytes(b"")
    assert len(find_shards(str(tmp_path))[1]) == 21
    assert "not taken: h.txt (no data" in str(refusal(tmp_path / "sub"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_delta_log/0.json", "Delta"),
        (".hoodie/x", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/**/*.parquet"])
def test_a_table_with_a_log_of_its_own(tmp_path: Path, name: str, kind: str, pattern: str) -> None:
    shard(tmp_path, "a.parquet", pairs())
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("{}")
    assert f"a table of {kind}" in str(refusal(f"{tmp_path}{pattern}"))


def test_folders_are_followed_through_links_and_each_file_taken_once(tmp_path: Path) -> None:
    """Links elsewhere, to what is there, to themselves, to nothing; a pipe, which nobody fills."""
    shard(tmp_path / "elsewhere", "x.parquet", pairs())
    folder = tmp_path / "in"
    shard(folder, "real/a.parquet", pairs())
    for name, goal in (("away", "../elsewhere"), ("again", "real"), ("loop", "."),
                       ("up", ".."), ("b.parquet", "real/a.parquet")):  # fmt: skip
        (folder / name).symlink_to(goal)
    os.mkfifo(folder / "pipe.parquet")
    found, left = find_shards(str(folder))
    assert [name for _, name in found] == ["away/x.parquet", "real/a.parquet"]
    said = "it links to a folder that is looked into"
    assert sorted(left) == [
        "again (it links to a folder that is looked into)",
        "b.parquet (it links to real/a.parquet)",
        "loop (it links to a folder that is looked into)",
        "pipe.parquet (no regular file)",
        *(f"up/{name} ({said})" for name in ("elsewhere", "in")),
    ]
    os.rename(folder / "real" / "a.parquet", bytes(folder) + b"/a\xff.parquet")
    assert "a\\udcff.parquet (its name is not UTF-8" in find_shards(str(folder))[1][-1]
    assert "b.parquet" in str(refusal(folder).where["file"]), "it links to nothing now"


@pytest.mark.parametrize(
    ("given", "output", "apart"),
    [
        ("in", "in", False), ("in", "in/out", False), ("in/", "in/../in/a/b", False),
        ("in", "link/out", False), ("link", "in/out", False), ("in", "inside", True),
        ("in/*.parquet", "in/out", True), ("in/*.parquet", "in", False),
        ("in/*/*.parquet", "in/out", False), ("in/*/*.parquet", "in/a/out", True),
        ("in/**/*.parquet", "in/a/out", False), ("in/d*/*.parquet", "in/out", True),
        ("in/a.parquet", "in", True), ("in", ".", True), ("in/scored", "in", False),
    ],
)  # fmt: skip
def test_no_output_among_the_input(tmp_path: Path, given: str, output: str, apart: bool) -> None:
    for name in ("a", "d/b", "scored/c"):
        shard(tmp_path / "in", f"{name}.parquet", pairs())
    (tmp_path / "link").symlink_to("in")
    source, place = f"{tmp_path}/{given}", f"file://{tmp_path}/{output}"
    if apart:
        assert plan_input(config(source, output=place), ()).rows
        return
    with pytest.raises(ConfigError, match="choose another"):
        plan_input(config(source, output=place), ())
    assert not (tmp_path / output / "run.json").exists()
