"""Data sets as they are published, and as people keep them, through the whole run."""

import csv
import gzip
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.config import parse
from ray_judge.records import Example
from ray_judge.run.directory import RunDirectory
from ray_judge.run.labels import labels_of
from ray_judge.run.plan import read_examples, read_rows
from tests.provider import RunningServer

from .conftest import ROOT, Run, Runs, command

CASES = ROOT.parent / "shared" / "cases" / "data"

TEXT, INT = pa.string(), pa.int64()
MESSAGES = pa.list_(pa.struct({"content": TEXT, "role": TEXT}))
PART = pa.struct({"type": TEXT, "text": TEXT, "image": TEXT, "mimeType": TEXT})
PARTS = pa.list_(pa.struct({"role": TEXT, "content": pa.list_(PART)}))
HELLO = "[User]\nHello.\n\n[Assistant]\nHi.\n\n[User]\nBye."
MORE = "[Assistant]\na1\n\n[User]\nAnd?\n\n[Assistant]\na2"


def chat(*texts: str) -> list[dict[str, str]]:
    """Messages, the first one the user's."""
    return [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)]


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in chat(*texts)]


@dataclass
class Layout:
    """Rows under the published schema; `meant`: instruction, responses A and B (for preferences
    chosen and rejected), label. A text in its place is that row's error.
    """

    fields: dict[str, pa.DataType]
    rows: list[tuple[Any, ...]]
    meant: list[tuple[str, str, str, str | None] | str]
    suffix: str = ".parquet"
    config: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pa.Table:
        p_a = [0.9 - 0.1 * (n % 8) for n in range(len(self.rows))]
        rows = [(*row, p, 1 - p) for row, p in zip(self.rows, p_a, strict=True)]
        kinds = {**self.fields, "p_a": pa.float64(), "p_b": pa.float64()}
        columns = zip(kinds.items(), zip(*rows, strict=True), strict=True)
        return pa.table({name: pa.array(values, kind) for (name, kind), values in columns})

    def write(self, folder: Path) -> pa.Table:
        """Write it; gives it as a scored shard is to have it."""
        table, path = self.table(), folder / f"part-0{self.suffix}"
        if self.suffix == ".parquet":
            pq.write_table(table, path)
        elif self.suffix == ".csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows(
                    [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
                )
            texts = [TEXT if name[:2] != "p_" and name[:6] != "winner" else pa.float64()
                     for name in table.column_names]  # fmt: skip
            table = table.cast(pa.schema(zip(table.column_names, texts, strict=True)))
        else:
            lines = "\n".join(json.dumps(row) for row in table.to_pylist())
            path.write_bytes(gzip.compress(lines.encode()))
        return table


WINNER = {"model_a": TEXT, "model_b": TEXT, "winner": TEXT}
PREFERENCE = {"chosen": MESSAGES, "rejected": MESSAGES}
REWARDS = {"prompt": TEXT, "chosen": TEXT, "chosen_model": TEXT, "rejected": TEXT,
           "rejected_model": TEXT, "subset": TEXT, "id": INT}  # fmt: skip
PUBLISHED = {
    "arena-55k": Layout(
        {"id": INT, "model_a": TEXT, "model_b": TEXT, "prompt": TEXT, "response_a": TEXT,
         "response_b": TEXT, "winner_model_a": INT, "winner_model_b": INT, "winner_tie": INT},
        [(1, "x", "y", '["q, \\"1\\""]', '["a\\nb"]', '["c"]', 1, 0, 0),
         (2, "x", "y", '["Hello.", "And?"]', '["a1", "a2"]', '["b1", "b2"]', 0, 1, 0),
         (3, "x", "y", '["q"]', '["a"]', "[null]", 0, 0, 1),
         (4, "x", "y", '["q"]', '["a"]', '["b', 0, 0, 0)],
        [('q, "1"', "a\nb", "c", "A"), ("Hello.", MORE, MORE.replace("\na", "\nb"), "B"),
         "response_b is empty", "response_b is not JSON"],
        suffix=".csv",
    ),
    "arena-100k": Layout(
        {"question_id": TEXT, **WINNER, "conversation_a": MESSAGES, "conversation_b": MESSAGES},
        [("i", "x", "y", "model_b", chat("q", "a"), chat("q", "b")),
         ("j", "x", "y", "tie (bothbad)", chat("Hello.", "Hi.", "Bye.", "a"),
          chat("Hello.", "Hi.", "Bye.", "b")),
         ("k", "x", "y", "tie", chat("q", "a"), chat("other", "b")),
         ("l", "x", "y", "model_a", chat("q"), chat("q", "b"))],
        [("q", "a", "b", "B"), (HELLO, "a", "b", "tie"), "have no common beginning",
         "response_a does not end with a turn of the assistant's"],
    ),
    "arena-140k": Layout(
        {"id": TEXT, **WINNER, "conversation_a": PARTS, "conversation_b": PARTS},
        [("i", "x", "y", "both_bad", parts("q", "a"), parts("q", "b")),
         ("j", "x", "y", "model_a", [{"role": "user", "content": [{"type": "image"}]}],
          parts("q", "b"))],
        [("q", "a", "b", "tie"), "has a part of type image"],
    ),
    "mt-bench": Layout(
        {"question_id": INT, **WINNER, "judge": TEXT, "conversation_a": MESSAGES,
         "conversation_b": MESSAGES, "turn": INT},
        [(81, "x", "y", "model_a", "h", chat("Hello.", "a1", "And?", "a2"),
          chat("Hello.", "b1", "And?", "b2"), turn) for turn in (1, 2)],
        [("Hello.", "a1", "b1", "A"), ("Hello.", MORE, MORE.replace("\na", "\nb"), "A")],
    ),
    "helpsteer3": Layout(
        {"domain": TEXT, "language": TEXT, "context": MESSAGES, "response1": TEXT,
         "response2": TEXT, "overall_preference": INT},
        [("code", "en", chat("q"), "a", "b", -1),
         ("code", "en", chat("Hello.", "Hi.", "Bye."), "a", "b", 3),
         ("stem", "en", chat("q"), "2024-01-01", "b", 0), ("stem", "en", [], "a", "b", None)],
        [("q", "a", "b", "A"), (HELLO, "a", "b", "B"), ("q", "2024-01-01", "b", "tie"),
         "instruction is empty"],
        suffix=".jsonl.gz",
    ),
    "ultrafeedback": Layout(
        {"prompt": TEXT, "prompt_id": TEXT, **PREFERENCE, "messages": MESSAGES,
         "score_chosen": pa.float64(), "score_rejected": pa.float64()},
        [(f"q{n}", "i", chat(f"q{n}", "c"), chat(f"q{n}", "r"), chat(f"q{n}", "c"), 8.0, 3.0)
         for n in range(6)],
        [(f"q{n}", "c", "r", None) for n in range(6)],
    ),
    "rewardbench": Layout(
        REWARDS, [("q", "c", "m", "r", "n", "hard", 7), ("p", "c", "m", "", "n", "hard", 7)],
        [("q", "c", "r", None), "rejected is empty"],
    ),
    "rewardbench-2": Layout(
        {"id": TEXT, "prompt": TEXT, "chosen": pa.list_(TEXT), "rejected": pa.list_(TEXT),
         "num_correct": INT, "subset": TEXT},
        [("0", "q", ["c"], ["r", "r", "r"], 1, "Math"), ("0", "p", ["c", "c"], ["r"], 2, "Ties")],
        [("q", "c", "r", None), ("p", "c", "r", None)],
    ),
    "hh-rlhf": Layout(
        {"chosen": TEXT, "rejected": TEXT},
        [("\n\nHuman: q\n\nAssistant: c", "\n\nHuman: q\n\nAssistant: r"),
         ("\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: Bye.\n\nAssistant: c\n\nd",
          "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: Bye.\n\nAssistant: r"),
         ("no transcript", "\n\nHuman: q\n\nAssistant: r")],
        [("q", "c", "r", None), (HELLO, "c\n\nd", "r", None), 'does not begin with "Human:"'],
        suffix=".jsonl.gz",
    ),
}  # fmt: skip


def examples(run: Run) -> tuple[list[Example | str], pa.Table]:
    """The examples that a run judged, and its scored rows."""
    plan = RunDirectory(str(run.output)).plan()
    assert plan is not None
    tables = [read_rows(one.path, 0, one.rows, plan.columns.needed()) for one in plan.shards]
    found = [example for table in tables for example in read_examples(table, plan.columns)]
    return found, pa.concat_tables([pq.read_table(path) for path in run.scored_paths()])


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_data_set(runs: Runs, server: RunningServer, preset: str) -> None:
    layout = PUBLISHED[preset]
    run = runs(preset=preset, route__fraction=1)
    written = layout.write(run.folder / "in")
    assert run.score() == 0
    found, scored = examples(run)
    kept = scored.select(written.column_names)
    if layout.suffix != ".jsonl.gz":
        assert kept.equals(written)
    assert kept.to_pylist() == written.to_pylist()

    config = parse(run.document)
    label = json.loads((run.output / "run.json").read_text())["columns"]["label"]
    labels = labels_of(scored, label, config).to_list()
    errors, outcomes = (scored[name].to_pylist() for name in ("error", "outcome"))
    right = []
    for n, meant in enumerate(layout.meant):
        example = found[n]
        if isinstance(meant, str):
            assert meant in errors[n] and errors[n] == example and outcomes[n] == "not_needed"
            continue
        instruction, first, second, wanted = meant
        if label == "chosen_is":
            wanted = labels[n]
            pair = (first, second) if wanted == "A" else (second, first)
            assert scored["judge_probs"][n].as_py()[wanted] == pytest.approx(
                written["p_a"][n].as_py()
            )
        else:
            pair = (first, second)
        assert isinstance(example, Example)
        assert (example.instruction, example.responses, labels[n]) == (instruction, pair, wanted)
        assert (errors[n], outcomes[n]) == (None, "resolved")
        assert bool(example.turns) == (instruction == HELLO)
        if wanted:
            right.append(scored["judge_verdict"][n].as_py() == wanted)
    accuracy = run.summary()["label_accuracy"]
    bad_but_judged = [n for n, m in enumerate(layout.meant) if isinstance(m, str) and labels[n]]
    right += [scored["judge_verdict"][n].as_py() == labels[n] for n in bad_but_judged]
    share = sum(right) / len(right)
    assert accuracy["judge"] == pytest.approx(share)
    assert f"{share:.4f}" in command("report", str(run.output), "--labels")
    assert server.stats()["billed"] == outcomes.count("resolved")


@pytest.mark.parametrize(
    ("preset", "label", "rows"),
    [("ultrafeedback", "chosen_is", 6), ("arena-55k", "winner_model_b", 2)],
)
def test_labels_for_a_calibration(runs: Runs, preset: str, label: str, rows: int) -> None:
    """Of a sample the order of a pair is that of the run, and several columns are one label."""
    run = runs(preset=preset, columns={"id": None})
    layout = PUBLISHED[preset]
    replace(layout, rows=layout.rows[:rows] * (60 // rows)).write(run.folder / "in")
    assert "labelled rows" in run.command("calibrate", "--labels", label, "--alpha", "0.45")
    made = json.loads((run.output / "calibration.json").read_text())
    assert (made["label_column"], made["tiers"][0]["selection"]["rows"]) == (label, 60)


AS_ARENA = {
    "columns": {"response_a": "conversation_a", "response_b": "conversation_b", "label": "winner"},
    "labels": {"model_a": "A", "model_b": "B", "tie": "tie", "tie (bothbad)": "tie"},
}
RATED = {"instruction": "context", "response_a": "response1", "response_b": "response2"}
RATING = {"column": "overall_preference", "below": 0}
FOUR = {
    "chosen_rejected": ({}, None),
    "conversations": (AS_ARENA, ["A", "B", "tie", "tie"]),
    "conversations_json": (AS_ARENA, ["A", "B", "tie", "tie"]),
    "context_messages": ({"columns": RATED | {"label": RATING}}, ["A", "B", "tie", "B"]),
    "labels_preference": (
        {"columns": {"label": {"column": "label", "above": 0}}}, ["B", "B", "tie", "A"]
    ),
    "jsonl": ({}, None),
    "csv": ({}, None),
}  # fmt: skip
"""Case → its configuration, and what its labels mean, four rows by four."""


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases beside this checkout")
@pytest.mark.parametrize("case", FOUR)
def test_a_case(runs: Runs, case: str) -> None:
    changes, meant = FOUR[case]
    run = runs(**changes, route__fraction=0)
    paths = sorted((CASES / case).iterdir())
    if case in ("jsonl", "csv"):
        run.document["input"] = str(CASES / case)
    else:
        table = pq.read_table(*paths)
        for name, p in (("p_a", 0.9), ("p_b", 0.1)):
            if name not in table.column_names:
                table = table.append_column(name, pa.array([p] * len(table)))
        pq.write_table(table, run.folder / "in" / "part-0.parquet")
    assert run.score() == 0
    found, scored = examples(run)
    if case == "csv":
        kept = pl.read_csv(*paths).rows()
    elif case == "jsonl":
        texts = (gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()
                 for p in paths)  # fmt: skip
        kept = [tuple(json.loads(line).values()) for text in texts for line in text.splitlines()]
    else:
        kept = [tuple(row.values()) for row in table.to_pylist()]
    names = scored.column_names[: len(kept[0])]
    assert [tuple(row.values()) for row in scored.select(names).to_pylist()] == kept
    assert len(found) == len(kept) and scored["error"].null_count == len(kept)
    if meant:
        config = parse(run.document)
        label = "winner" if config.columns["label"] == "winner" else config.columns["label"].column
        assert labels_of(scored, label, config).to_list() == meant * 3
    if case == "chosen_rejected":
        sides = scored["chosen_is"].to_pylist()
        assert {"A", "B"} == {*sides} and scored["judge_verdict"].to_pylist() == sides
        right = [found[n].responses["AB".index(side)] for n, side in enumerate(sides)]
        assert right == [row[-1]["content"] for row in scored["chosen"].to_pylist()]
        assert run.summary()["label_accuracy"] == {"judge": 1.0, "final": 1.0}
        assert "1.0000" in command("report", str(run.output), "--labels")
