"""What becomes of a row: every outcome, its columns, who carries the cost, and who looks at it."""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_judge.config import StrongConfig
from ray_judge.errors import CorruptedError
from ray_judge.judging.engines.engine import ColumnsEngine
from ray_judge.judging.stage import judge_rows
from ray_judge.merge import Asked, Paid, verdict_columns, with_payers
from ray_judge.records import (
    PAIRWISE_ALTERNATIVES,
    Answer,
    Outcome,
    Shard,
    judged_schema,
    verdict_schema,
)
from ray_judge.report.review import review_schema, write_review
from ray_judge.run.columns import Columns
from ray_judge.run.directory import REVIEW, Plan, RunDirectory

from . import builders

SCHEMA = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES)
SURE_SCHEMA = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES, strong_prob=True)
STRONG = StrongConfig(model="gpt-4.1", max_cost_usd=Decimal(1))


def answer(outcome: Outcome, verdict: str | None = None, **changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "key": "k", "outcome": outcome, "verdict": verdict, "cost_usd": Decimal("0.01"),
        "usage": None, "model": "gpt-4.1", "response_id": "r", "lease": "l-1", "slot": 0,
        "at": 1.0, "error": None if outcome is Outcome.RESOLVED else "because",
    }  # fmt: skip
    return Answer(**{**fields, **changes})


GOOD = {
    "judge_verdict": "A", "judge_probs": {"A": 0.9, "B": 0.1, "tie": None}, "judge_mass": 1.0,
    "judge_confidence": 0.9, "judge_model": "m",
}  # fmt: skip
UNJUDGED = {"error": "judge: too long"}
UNREAD = {"error": "input: response_a is null", "has_text": False}
CENT = Decimal("0.01")
PAID: dict[str, Any] = {"k": (answer(Outcome.RESOLVED, "B"), CENT)}


def picked(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("outcome", "strong_verdict", "strong_model", "strong_cost_usd", "final_verdict",
             "final_source", "error")  # fmt: skip
    return tuple(row[name] for name in names)


ASKED, BOTH = [("k", True)], [("k", True), ("l", True)]
LONG, NULL = "judge: too long", "input: response_a is null"
L_A, L_B = ({"l": (answer(Outcome.RESOLVED, verdict), CENT)} for verdict in ("A", "B"))


@pytest.mark.parametrize(
    ("row", "asked", "answers", "wanted"),
    [
        (GOOD, (), {}, ("not_needed", None, None, None, "A", "judge", None)),
        # the answer of its twin is not an accepted row's
        (GOOD, (), PAID, ("not_needed", None, None, None, "A", "judge", None)),
        (GOOD, ASKED, PAID, ("resolved", "B", "gpt-4.1", CENT, "B", "strong", None)),
        # denied by the cap, at once or after an attempt that was paid for
        (GOOD, ASKED, {}, ("denied_budget", None, None, None, "A", "judge", None)),
        (GOOD, ASKED, {"k": (None, CENT)}, ("denied_budget", None, None, CENT, "A", "judge", None)),
        (UNJUDGED, (), {}, ("failed", None, None, None, None, "none", LONG)),
        (UNJUDGED, ASKED, PAID, ("resolved", "B", "gpt-4.1", CENT, "B", "strong", LONG)),
        (UNJUDGED, ASKED, {"k": (answer(Outcome.REFUSED), CENT)},
         ("refused", None, "gpt-4.1", CENT, None, "none", f"{LONG}; strong: because")),
        (UNJUDGED, ASKED, {}, ("denied_budget", None, None, None, None, "none", LONG)),
        # a strong judge that fails leaves the local verdict
        *((GOOD, ASKED, {"k": (answer(outcome), CENT)},
           (outcome.value, None, "gpt-4.1", CENT, "A", "judge", "strong: because"))
          for outcome in (Outcome.REFUSED, Outcome.UNPARSEABLE, Outcome.FAILED)),
        (UNREAD, (), {}, ("failed", None, None, None, None, "none", NULL)),
        # a twin that does not pay
        (GOOD, [("k", False)], PAID, ("resolved", "B", "gpt-4.1", Decimal(0), "B", "strong", None)),
        # both orders agree, contradict each other, are half there, or one is refused
        (GOOD, BOTH, PAID | L_A, ("resolved", "B", "gpt-4.1", 2 * CENT, "B", "strong", None)),
        (GOOD, BOTH, PAID | L_B, ("resolved", "tie", "gpt-4.1", 2 * CENT, "tie", "strong", None)),
        (GOOD, BOTH, PAID, ("denied_budget", None, "gpt-4.1", CENT, "A", "judge", None)),
        (GOOD, BOTH, PAID | {"l": (answer(Outcome.REFUSED), CENT)},
         ("refused", None, "gpt-4.1", 2 * CENT, "A", "judge", "strong: because")),
    ],
)  # fmt: skip
def test_what_becomes_of_a_row(
    row: dict[str, Any], asked: Asked, answers: Paid, wanted: tuple[Any, ...]
) -> None:
    """All columns are null or all are there: readers of shards find one type."""
    routed = {0: ("escalate" if asked else "accept", asked)}
    table = verdict_columns(builders.judged(row), routed, answers, SCHEMA, STRONG)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    (found,) = table.to_pylist()
    assert picked(found) == wanted
    local = "judge_verdict", "judge_probs", "judge_confidence", "judge_model"
    assert [found[name] for name in local] == [row.get(name) for name in local]


def test_scores_are_numbers() -> None:
    schema = verdict_schema("pointwise", ("1", "2"))
    row = {"row": 0, "row_key": "0", "has_text": True, "judge_verdict": 2.0}
    rows = pa.Table.from_pylist(
        [row | {"judge_probs": {"1": 0.1, "2": 0.9}}],
        schema=judged_schema("pointwise", ("1", "2")),
    )
    paid: Any = {"k": (answer(Outcome.RESOLVED, 7.5), CENT)}  # type: ignore[arg-type]
    table = verdict_columns(rows, {0: ("escalate", ASKED)}, paid, schema, STRONG)
    assert table.column("final_verdict").to_pylist() == [7.5]


def test_the_first_of_identical_rows_pays_in_input_order() -> None:
    routed = pl.DataFrame(
        {
            "chunk": ["00001-00000", "00000-00001", "00000-00000", "00000-00000"],
            "row": [0, 1000, 4, 5],
            "route": ["escalate", "escalate", "accept", "escalate"],
            "question_keys": [["k", "l"], ["k", "l"], ["k", "l"], ["m", "m"]],
        }
    )
    assert with_payers(routed).rows() == [
        ("00000-00000", 4, "accept", ["k", "l"], None),
        ("00000-00000", 5, "escalate", ["m", "m"], [True, False]),
        ("00000-00001", 1000, "escalate", ["k", "l"], [True, True]),
        ("00001-00000", 0, "escalate", ["k", "l"], [False, False]),
    ]


def test_judged_rows_have_one_schema_whatever_is_null() -> None:
    config = builders.config()
    roles = {name: name for name in ("instruction", "response_a", "response_b")}
    columns, engine = Columns(roles, extra=("p_a", "p_b")), ColumnsEngine(config)

    def judge(text: str | None, p_a: float | None) -> pa.Table:
        block = pa.table(
            {name: pa.array([text, text], pa.string()) for name in roles}
            | {"p_a": pa.array([p_a, p_a], pa.float64()), "p_b": pa.array([0.4, 0.4])}
            | {"__chunk": ["c", "c"], "__shard": ["s", "s"], "__row": [7, 8]}
        )
        return judge_rows(block, engine, config, columns)

    tables = [judge("x", 0.6), judge(None, 0.6), judge("x", None), judge(None, None)]
    assert {table.schema.to_string() for table in tables} == {tables[0].schema.to_string()}
    wanted = builders.JUDGED
    assert tables[0].select(wanted.names).schema.equals(wanted)
    both, no_text, no_number, nothing = (table.to_pylist()[1] for table in tables)
    assert (both["row"], both["judge_verdict"], both["error"]) == (8, "A", None)
    # The verdict of a judge that has run stands, but nobody can be asked about a row without text.
    assert (no_text["judge_verdict"], no_text["has_text"]) == ("A", False)
    assert no_text["error"] == "input: instruction is null"
    assert (no_number["judge_verdict"], no_number["judge_confidence"]) == (None, None)
    assert "p_a" in no_number["error"] and no_number["has_text"]
    assert (nothing["judge_verdict"], nothing["has_text"]) == (None, False)


@pytest.mark.parametrize(
    ("p_a", "p_b", "verdict", "confidence"),
    [
        (0.4, 0.6, "B", 0.6), (0.5, 0.5, "A", 0.5), (0.0, 1.0, "B", 1.0), (0.2, 0.3, "B", 0.3),
        (0.5005, 0.5, "A", 0.5005), (1, 0, "A", 1.0),
        *((p_a, 0.5, None, None) for p_a in (None, float("nan"), float("inf"), -0.1)),
        *((p_a, p_b, None, None) for p_a, p_b in ((1.2, 0.1), (0.9, 0.9), (0.0, 0.0), (50.0, 50.0)))
    ],
)  # fmt: skip
def test_columns_take_probabilities_as_they_are_or_that_row_has_an_error(
    p_a: float | None, p_b: float, verdict: str | None, confidence: float | None
) -> None:
    engine = ColumnsEngine(builders.config())
    rows = pa.table({"p_a": pa.array([p_a, 0.9]), "p_b": pa.array([p_b, 0.1])})
    found, good = engine.judge([], rows)
    assert (found.verdict, found.confidence) == (verdict, confidence)
    assert found.probs == ({"A": p_a, "B": p_b} if verdict else None)
    error = found.error or ""
    assert error.startswith("judge: column") == ("p_a" in error) == (verdict is None)
    assert good.verdict == "A" and good.error is None


@pytest.mark.parametrize("route", ["escalate", "audit"])
@pytest.mark.parametrize(
    ("votes", "outcome", "prob", "final"),
    [("AAB", "abstained", 2 / 3, (None, "none")), ("AAA", "resolved", 1, ("A", "strong"))],
)
def test_an_unsure_verdict_is_nobodys(
    votes: str, outcome: str, prob: float, final: tuple[Any, ...], route: str
) -> None:
    paid: Any = {str(n): (answer(Outcome.RESOLVED, vote), CENT) for n, vote in enumerate(votes)}
    strong = STRONG.model_copy(update={"samples": 3, "abstain_below": 0.7})
    routed = {0: (route, [(key, True) for key in paid])}
    table = verdict_columns(builders.judged(UNJUDGED), routed, paid, SURE_SCHEMA, strong)
    assert table.schema.equals(SURE_SCHEMA, check_metadata=True)
    (row,) = table.to_pylist()
    assert picked(row) == (outcome, "A", "gpt-4.1", 3 * CENT, *final, "judge: too long")
    assert (row["strong_prob"], row["route"]) == (prob, route)


COLUMNS = Columns({"instruction": "prompt", "response_a": "row", "response_b": "b"}, "id")
CHUNK = 3


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
    verdicts = pa.Table.from_pylist(rows, schema=SURE_SCHEMA)
    return pa.table({**texts, **{name: verdicts[name] for name in SURE_SCHEMA.names}})


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
