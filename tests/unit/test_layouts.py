"""How conversations, labels and files that are no Parquet are read, good and bad."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.config import presets
from ray_judge.errors import ConfigError, InputChangedError, InputError
from ray_judge.records import Example
from ray_judge.run import sample, staging
from ray_judge.run.columns import Columns
from ray_judge.run.conversations import kind_of
from ray_judge.run.labels import labels_of
from ray_judge.run.plan import check_unchanged, chosen_sides, plan_input, read_examples, read_rows

from . import builders

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
U, A, S = ("user", "u"), ("assistant", "a"), ("system", "s")
PAIR = ("response_a", "response_b")


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def read(values: dict[str, Any], **kinds: str) -> Example | str:
    """Read one row; it is kept as JSON where a kind is named."""
    row = {role: [json.dumps(v) if role in kinds else v] for role, v in values.items()}
    columns = Columns({role: role for role in row}, kinds=kinds)
    (example,) = read_examples(pa.table(row), columns)
    return example


def pair(*conversations: Any) -> Example | str:
    return read(dict(zip(PAIR, conversations, strict=True)), **dict.fromkeys(PAIR, "messages"))


B = ("assistant", "b")


@pytest.mark.parametrize(
    ("first", "second", "turns", "responses"),
    [
        ([S, U, A], [S, U, B], (S, U), ("a", "b")),
        ([U, A], [U, A], (), ("a", "a")),
        ([U, A, U, A], [U, A, U, B], (U, A, U), ("a", "b")),
        ([U, A], [U, A, U, B], (), ("a", "[Assistant]\na\n\n[User]\nu\n\n[Assistant]\nb")),
        ([U, ("tool", "t"), A], [U, ("tool", "t"), B], (U, ("tool", "t")), ("a", "b")),
    ],
)
def test_where_two_of_them_part(
    first: Any, second: Any, turns: Any, responses: tuple[str, str]
) -> None:
    example = pair(said(*first), said(*second))
    assert isinstance(example, Example)
    assert (example.turns, example.responses) == (turns, responses)
    assert example.instruction == (
        "\n\n".join(f"[{role.title()}]\n{text}" for role, text in turns) or "u"
    )


def test_messages_as_others_write_them() -> None:
    sharegpt = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "u"}]}, *said(B)]
    assert pair(sharegpt, parts) == Example("u", ("a", "b"))
    single = read({"response": said(S, U, A)}, response="messages")
    assert single == Example("[System]\ns\n\n[User]\nu", ("a",), turns=(S, U))
    prompt = ["\n\nHuman: u\n\nAssistant: a\n\nHuman: u\n\nAssistant:"]
    table = pa.table({"instruction": prompt, "response": [" r"]})
    kinds = {"instruction": "transcript"}
    (trl,) = read_examples(table, Columns({name: name for name in table.column_names}, kinds=kinds))
    assert isinstance(trl, Example) and (trl.turns, trl.responses) == ((U, A, U), (" r",))
    context = read({"instruction": said(U, A, U), "response": "r"}, instruction="messages")
    assert context == Example("[User]\nu\n\n[Assistant]\na\n\n[User]\nu", ("r",), turns=(U, A, U))


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (said(U), "response_a does not end with a turn of the assistant's"),
        (said(U, A, U), "response_a does not end with a turn of the assistant's"),
        (said(("user", "x"), A), "response_a and response_b have no common beginning"),
        (said(A), "response_a and response_b have no common beginning"),
        ([], "response_a is empty"),
        (said(U, ("assistant", " ")), "response_a is empty"),
        ([{"content": "u"}], "response_a has a message without a role"),
        (["u"], "response_a has a message without a role"),
        ("text", "response_a is no list of messages"),
        (said(U, ("assistant", "\ud800")), "response_a is not UTF-8 text: it has half of a"),
        ([*said(U), {"role": "assistant", "content": 1}], "response_a has a message that is no"),
        (
            [{"role": "user", "content": [{"type": "image", "text": "", "image": "i"}]}, *said(A)],
            "response_a has a part of type image: only text can be judged",
        ),
        (
            [{"role": "user", "content": [{"image": "i"}]}, *said(A)],
            "response_a has a part without text: only text can be judged",
        ),
        (
            [
                *said(U),
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                *said(A),
            ],
            "response_a has a tool call: only text can be judged",
        ),
    ],
)
def test_a_conversation_that_cannot_be_judged(first: Any, error: str) -> None:
    found = pair(first, said(U, A))
    assert isinstance(found, str) and found.startswith(f"input: {error}")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([json.dumps(said(U, A)), None, "", "[{"], "messages"),
        ([said(U), said(A), None], "messages"),
        (['["a", null]', '["[1]"]'], "list of texts"),
        (["\n\nHuman: u\n\nAssistant: a", "\n\nHuman: u\n\nAssistant:"], "transcript"),
        (["[1, 2]", "[see below]", "Human: error is common", '{"role": "user"}', "[]"], None),
        ([json.dumps(said(U)), "plain", "text"], None),
        ([None, ""], None),
    ],
)
def test_a_columns_first_rows_tell_how_it_is_kept(values: list[Any], kind: str | None) -> None:
    assert kind_of(values) == kind


NULL = "input: response_a is null"
TURNS = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


@pytest.mark.parametrize(("kind", "value"), [(TURNS, said(U, A)), (pa.list_(pa.string()), ["a"])])
def test_a_columns_type_tells_how_it_is_kept_where_the_first_rows_do_not(
    tmp_path: Path, kind: pa.DataType, value: Any
) -> None:
    empty: list[Any] = [None, []] * 3000
    names = PAIR if kind == TURNS else ("instruction", *PAIR)
    table = pa.table({name: pa.array([*empty, value], kind) for name in names})
    pq.write_table(table, tmp_path / "a.parquet")
    plan = plan_input(builders.config(input=str(tmp_path)), ())
    (example,) = read_examples(table.slice(6000), plan.columns)
    assert isinstance(example, Example) and example.responses == ("a", "a")


MORE = pa.struct({"content": pa.string(), "name": pa.string(), "role": pa.string()})
OTHER = [[{**one, "name": "x"} for one in said(U, A)], None]


@pytest.mark.parametrize("role", [pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list])
def test_a_sample_of_shards_that_keep_messages_differently(
    tmp_path: Path, role: pa.DataType, listed: Any
) -> None:
    for name, kind in (("a", TURNS), ("b", listed(pa.struct({"role": role, "content": role})))):
        values = pa.array([said(U, A), None]).cast(TURNS).cast(kind)
        if name == "b":
            values = values if role != pa.large_string() else pa.array(OTHER, listed(MORE))
        pq.write_table(pa.table(dict.fromkeys(PAIR, values)), tmp_path / f"{name}.parquet")
    plan = plan_input(builders.config(input=str(tmp_path)), ())
    table = sample.take(plan.shards, np.arange(4), plan.columns.needed())
    assert read_examples(table, plan.columns) == [Example("u", ("a", "a")), NULL] * 2


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize(
    ("rule", "empty"),
    [(None, "response_a"), ({"column": "x", "above": 0}, "x"), ({"A": "x", "B": "y"}, "x")],
)
def test_a_column_may_be_without_values_in_a_shard(
    tmp_path: Path, names: list[str], rule: Any, empty: str
) -> None:
    rows = {**{name: [said(U, A)] for name in PAIR}, "x": [1], "y": [0]}
    for name, values in zip(names, (rows, {**rows, empty: [None]}), strict=True):
        pq.write_table(pa.table(values), tmp_path / f"{name}.parquet")
    plan = plan_input(builders.config(input=str(tmp_path), columns={"label": rule}), ())
    found = [read_examples(read_rows(s.path, 0, 9), plan.columns)[0] for s in plan.shards]
    assert (NULL in found) == (empty in PAIR) and Example("u", ("a", "a")) in found
    pq.write_table(pa.table({**rows, "response_a": [None]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(InputError, match="this column is null in every shard"):
        plan_input(builders.config(input=str(tmp_path)), ())


def test_shards_may_differ_in_what_is_not_read_and_lack_what_is_optional(tmp_path: Path) -> None:
    more = {"meta": {"lang": "en"}, "reference": None}, {"meta": [1], "reference": "r"}
    rows = [{**GOOD, **one} for one in (*more, {"tags": 1, "reference": None})]
    for n, row in enumerate(rows):
        plan = staged(tmp_path, f"{n}.jsonl", json.dumps(row))
    assert [shard.rows for shard in plan.shards] == [1, 1, 1]
    tables = [pq.read_table(shard.path) for shard in plan.shards]
    assert [table.to_pylist()[0] for table in tables] == rows
    read = [read_examples(table, plan.columns)[0] for table in tables]
    assert [isinstance(one, Example) and one.reference for one in read] == [None, "r", None]


def test_an_answer_in_json_is_a_text_like_any_other(tmp_path: Path) -> None:
    for name, rows in (("a", {"chosen": '["x", "y"]', "rejected": '["z"]'}),
                       ("b", {"response_a": '["x", "y"]', "response_b": '["z"]'})):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        table = pa.table({"instruction": ["q"], **{n: [text] for n, text in rows.items()}})
        pq.write_table(table, folder / "a.parquet")
        plan = plan_input(builders.config(input=str(folder)), ())
        (example,) = read_examples(table, plan.columns)
        assert isinstance(example, Example)
        assert sorted(example.responses) == ['["x", "y"]', '["z"]']


def test_a_single_message_and_two_ways_of_writing_them(tmp_path: Path) -> None:
    """As LLaMA-Factory keeps preferences; and one file that has ShareGPT's keys and OpenAI's."""
    asked = [{"from": "human", "value": "u"}]
    lines = [
        {"conversations": asked, "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"conversations": said(U), "chosen": said(A)[0], "rejected": said(B)[0]},
    ]  # fmt: skip
    data = "\n".join(map(json.dumps, lines))
    plan = staged(tmp_path, "a.jsonl", data, columns={"instruction": "conversations"})
    examples = read_examples(read_rows(plan.shards[0].path, 0, 9), plan.columns)
    assert [isinstance(one, Example) and sorted(one.responses) for one in examples] == [
        ["a", "b"], ["a", "b"],
    ]  # fmt: skip


def test_half_a_surrogate_pair_is_its_rows_error(tmp_path: Path, piece: int | None) -> None:
    texts = [r"a", r"\ud83d", r"\ud83d\ude00", r"\\ud83d", r"\\\uDC00x"]
    lines = [json.dumps(GOOD).replace('"2024-01-01"', f'"{text}"', 1) for text in texts]
    plan = staged(tmp_path, "a.jsonl", "\n".join(lines))
    read = read_examples(read_rows(plan.shards[0].path, 0, 9), plan.columns)
    bad = "input: response_a is not UTF-8 text"
    found = [one.responses[0] if isinstance(one, Example) else one for one in read]
    assert found == ["a", bad, "\U0001f600", r"\ud83d", bad]


@pytest.mark.parametrize("kind", [None, "transcript"])
def test_what_is_no_text_is_its_rows_error(kind: str | None) -> None:
    table = pa.table({"instruction": ["q"], "response": [said(U, A)]})
    columns = Columns({n: n for n in table.column_names}, kinds={"response": kind} if kind else {})
    assert read_examples(table, columns) == ["input: response is no text"]


@pytest.mark.parametrize(
    ("asked", "answer", "error"),
    [
        (["q", "q"], ["a"], "of turns, instruction has 2 and response 1"),
        (["q"], [5], "response has one that is no text"),
        ("q", [None, "z"], "response has one that is null"),
        (["q"], ["a", "a"], "of turns, instruction has 1 and response 2"),
    ],
)
def test_a_list_of_texts_that_cannot_be_judged(asked: Any, answer: Any, error: str) -> None:
    values = {"instruction": asked, "response": answer}
    kinds = {role: "list of texts" for role, value in values.items() if value != "q"}
    assert read(values, **kinds) == f"input: {error}"


def test_a_preferences_order_is_drawn_by_what_it_says() -> None:
    """Whatever the shard, the row or the sample: and an exchanged pair asks the same question."""
    rows = [(f"q{n}", f"good {n}", f"bad {n}") for n in range(1000)]
    columns = Columns({name: name for name in ("instruction", "chosen", "rejected")})

    def sides(rows: list[tuple[str, str, str]]) -> tuple[list[str | None], list[Any]]:
        table = pa.table(dict(zip(columns.text, zip(*rows, strict=True), strict=True)))
        return chosen_sides(table, columns), read_examples(table, columns)

    found, examples = sides(rows)
    assert 450 < found.count("A") < 550
    other, same = sides([(q, bad, good) for q, good, bad in rows[::-1]])
    assert other == ["AB"[side == "A"] for side in found[::-1]] and same == examples[::-1]


RULE = {"column": "x", "above": 0}
FLAGS = {"A": "x", "B": "y", "tie": "z"}


@pytest.mark.parametrize(
    ("rule", "columns", "meant"),
    [
        (RULE, {"x": [-3, 0, 2, None]}, ["B", "tie", "A", None]),
        ({"column": "x", "below": 3}, {"x": [1.5, 3, 4, float("nan")]}, ["A", "tie", "B", None]),
        (FLAGS, {"x": [1, 0, 0, 0], "y": [0, 1, 0, 0], "z": [0, 0, 1, None]},
         ["A", "B", "tie", None]),
        (FLAGS, {"x": [float("nan"), 1.0], "y": [1, 0], "z": [None, 0]}, ["B", "A"]),
        ({"A": "x", "B": "y"}, {"x": [True, False], "y": [False, True]}, ["A", "B"]),
        ("x", {"x": pa.array(["A", "tie", None]).dictionary_encode()}, ["A", "tie", None]),
        ("x", {"x": pa.array(["A", "tie", None], pa.string_view())}, ["A", "tie", None]),
    ],
)  # fmt: skip
def test_labels_of_many_kinds(rule: Any, columns: dict[str, Any], meant: list[str | None]) -> None:
    config = builders.config(columns={"label": rule})
    assert labels_of(pa.table(columns), "x", config).to_list() == meant
    both = {name: [1] for name in "xyz"}
    if "B" in rule:
        with pytest.raises(InputError, match=r"several of x, y.* are set") as caught:
            labels_of(pa.table(both), "x", config)
        assert caught.value.where["row"] == 0
        other = {**{name: [None, 0, 1] for name in "xz"}, "y": [None, 0, 0.7]}
        with pytest.raises(InputError, match=r"neither 0 nor 1: 0\.7") as caught:
            labels_of(pa.table(other), "x", config, column="x")
        assert caught.value.where == {"column": "y", "row": 2}


@pytest.mark.parametrize(
    "rule", [{"column": "x"}, {**RULE, "below": 1}, {"A": "x"}, {"above": 0}, {**RULE, "A": "y"}]
)
def test_a_label_rule_is_one_thing(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"label.* is a column, or \{column: \.\.\., above: 0\}"):
        builders.config(columns={"label": rule})


def test_a_presets_keys_are_defaults(tmp_path: Path) -> None:
    own = {"columns": {"label": None, "id": "key"}, "labels": {"model_a": "tie"}}
    config = builders.config(preset="arena-100k", **own)
    assert config.columns["response_a"] == "conversation_a"
    assert (config.columns["label"], config.columns["id"]) == (None, "key")
    assert (config.labels["model_a"], config.labels["model_b"]) == ("tie", "B")
    with pytest.raises(ConfigError, match=r"columns\.label goes without columns\.chosen"):
        table = {"chosen": ["c"], "rejected": ["r"], "prompt": ["q"], "human": ["A"]}
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
        columns = {"label": "human"}
        plan_input(builders.config(input=str(tmp_path), preset="rewardbench", columns=columns), ())
    with pytest.raises(InputError, match=r"preset arena-100k names columns .*: conversation_a, co"):
        plan_input(builders.config(input=str(tmp_path), preset="arena-100k"), ())
    with pytest.raises(ConfigError, match="output: hf:// is only read"):
        builders.config(output="hf://datasets/a/b")
    with pytest.raises(ConfigError, match=r"there is none 'mtbench' .did you mean mt-bench"):
        builders.config(preset="mtbench")


@pytest.mark.parametrize("section", builders.documented("docs/data.md"))
def test_the_documents_examples_are_configurations(section: dict[str, Any]) -> None:
    assert builders.config(**section).columns


def test_every_preset_is_in_the_document() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| [^ ]+/", DOCUMENT, re.MULTILINE)
    assert rows == [*presets()]


GOOD = {"instruction": "q", "response_a": "2024-01-01", "response_b": "b", "when": "2024-01-01"}
HEAD = "instruction,response_a,response_b,n\n"


def staged(folder: Path, name: str, data: str | bytes, **changes: Any) -> Any:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / name).write_bytes(data.encode() if isinstance(data, str) else data)
    config = builders.config(input=str(folder / "in"), output=str(folder / "out"), **changes)
    return plan_input(config, ("n",) if "csv" in name else ())


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.jsonl", json.dumps(GOOD) + "\n\n{broken\n", "line 3 is not JSON"),
        ("a.jsonl", json.dumps([GOOD]), "line 1 is no JSON object"),
        ("a.jsonl", '{"a": 1, "a": 2}', "line 1: JSON parse error: Column(/a) was specified twice"),
        ("a.jsonl", '{"a": 1}\n{"a": "x"}\n{"a": "", "b": 1, "b": 2}', "line 3: JSON parse error"),
        ("a.ndjson.gz", gzip.compress(b"{}\n" * 999, mtime=0)[:-9], "Truncated compressed stream"),
        ("a.jsonl.zst", b"no zstd", "cannot be staged from JSON lines: ZSTD"),
        ("a.jsonl", "\n\n", "this file is empty"),
        ("a.csv", "", "this file is empty"),
        ("a.csv", HEAD + 'q,a,b,1\n"q\n2",a,b\n', "line 4: 3 fields where the header has 4"),
        ("a.csv", HEAD + 'q,a,b,1\nq,"a,b,2\n', "line 3: unexpected end of data"),
        ("a.csv", HEAD + "q,a,b,1\nq,a,b,x\n", "'x' is no number"),
        ("a.csv", HEAD, "this shard has no rows"),
        ("a.csv", "a;b\n1;2\n", "have ';' between them, and are to have commas"),
        ("a.csv", "a,a\n1,2\n", "two columns have the same name"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_staged(
    tmp_path: Path, name: str, data: str | bytes, error: str
) -> None:
    with pytest.raises(InputError) as caught:
        staged(tmp_path, name, data)
    assert error in str(caught.value) and str(tmp_path / "in" / name) in str(caught.value)


def test_preferences_are_known_by_their_names_and_lines_may_be_zipped(tmp_path: Path) -> None:
    row = json.dumps({"chosen": said(U, A), "rejected": said(U, B)})
    staged(tmp_path, "a.jsonl", row)
    plan = staged(tmp_path, "b.jsonl.gz", gzip.compress(row.encode()))
    assert [(one.name, one.rows) for one in plan.shards] == [
        ("a.jsonl.parquet", 1), ("b.jsonl.gz.parquet", 1),
    ]  # fmt: skip
    assert plan.columns.text == {"chosen": "chosen", "rejected": "rejected"}
    assert plan.columns.label == "chosen_is"


@pytest.fixture(params=[None, 40])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Files in one piece, and in many."""
    if request.param:
        monkeypatch.setattr(staging, "PIECE", request.param)
    return request.param  # type: ignore[no-any-return]


def test_staged_once_as_it_is_written(tmp_path: Path, piece: int | None) -> None:
    lines = "\ufeff" + "\n".join(json.dumps({**GOOD, "n": n}) for n in (1, 2.5)) + "\n\n"
    plan = staged(tmp_path, "a.jsonl", lines)
    (shard,) = plan.shards
    assert (shard.name, shard.rows) == ("a.jsonl.parquet", 2)
    kept = pq.read_table(shard.path).to_pylist()
    assert kept == [{**GOOD, "n": 1.0}, {**GOOD, "n": 2.5}] and [*kept[0]] == [*GOOD, "n"]
    written = Path(shard.path).stat().st_mtime_ns
    assert staged(tmp_path, "a.jsonl", lines) == plan
    assert Path(shard.path).stat().st_mtime_ns == written
    check_unchanged(shard)
    (tmp_path / "in" / "a.jsonl").write_text(lines + json.dumps(GOOD))
    with pytest.raises(InputChangedError, match="changed"):
        check_unchanged(shard)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([{}, None], ["{}", None]),
        ([[{}], []], ["[{}]", "[]"]),
        ([{"a": {}}, {"a": {"b": 1}}], [{"a": {"b": None}}, {"a": {"b": 1}}]),
        (["2024-01-01", 1, {"a": "ä"}, None], ["2024-01-01", "1", '{"a": "ä"}', None]),
        ([{"a": [1]}, {"a": "x"}], ['{"a": [1]}', '{"a": "x"}']),
    ],
)
@pytest.mark.parametrize("name", ["when", "a/b"])
def test_a_column_without_a_type_of_its_own_is_json_text(
    tmp_path: Path, piece: int | None, values: list[Any], kept: list[Any], name: str
) -> None:
    lines = "".join(json.dumps({**GOOD, name: value}) + "\n" for value in values)
    (shard,) = staged(tmp_path, "a.jsonl", lines).shards
    assert pq.read_table(shard.path).to_pylist() == [{**GOOD, name: value} for value in kept]


def test_messages_without_a_type_of_their_own_are_read(tmp_path: Path, piece: int | None) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "u"}], "extra": {}}, *said(A)]
    lines = "".join(json.dumps(dict.fromkeys(PAIR, one)) + "\n" for one in (said(U, A), parts))
    plan = staged(tmp_path, "a.jsonl", lines)
    examples = read_examples(read_rows(plan.shards[0].path, 0, 9), plan.columns)
    assert examples == [Example("u", ("a", "a"))] * 2


def test_of_csv_only_what_is_needed_as_a_number_is_one(tmp_path: Path, piece: int | None) -> None:
    rows = [b'"q, ""1""\n2",007,"",0.5', b"q,caf\xe9,NA,", b"", b"q,\xe6\xbc\xa2,x,1e-3"]
    plan = staged(tmp_path, "a.csv", b"\xef\xbb\xbf" + HEAD.encode() + b"\r\n".join(rows))
    table = read_rows(plan.shards[0].path, 0, 9)
    assert table["n"].to_pylist() == [0.5, None, 0.001]
    flags = staged(tmp_path, "a.csv", HEAD + "q,a,b,True\nq,a,b,false")
    assert read_rows(flags.shards[0].path, 0, 9)["n"].to_pylist() == [1, 0]
    assert table["response_b"].to_pylist() == [None, "NA", "x"]
    first, second, third = read_examples(table, plan.columns)
    assert (first, second) == ("input: response_b is null", "input: response_a is not UTF-8 text")
    assert third == Example("q", ("漢", "x"))
