"""What becomes of a row: every outcome, its columns, and who carries the cost."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from ray_judge.config import StrongConfig, parse
from ray_judge.judging.engines.columns import ColumnsEngine
from ray_judge.judging.stage import judge_rows
from ray_judge.merge import Asked, Paid, verdict_columns, with_payers
from ray_judge.records import (
    PAIRWISE_ALTERNATIVES,
    Answer,
    Outcome,
    judged_schema,
    verdict_schema,
)
from ray_judge.run.columns import Columns

pytestmark = pytest.mark.timeout(60)

SCHEMA = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES)
STRONG = StrongConfig(model="gpt-4.1", max_cost_usd=Decimal(1))


def answer(outcome: Outcome, verdict: str | None = None, **changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "key": "k", "outcome": outcome, "verdict": verdict, "cost_usd": Decimal("0.01"),
        "usage": None, "model": "gpt-4.1", "response_id": "r", "lease": "l-1", "slot": 0,
        "at": 1.0, "error": None if outcome is Outcome.RESOLVED else "because",
    }  # fmt: skip
    return Answer(**{**fields, **changes})


def judged(*rows: dict[str, Any]) -> pa.Table:
    """Judged rows with defaults: a verdict A at .9."""
    good = {
        "judge_verdict": "A", "judge_probs": {"A": 0.9, "B": 0.1, "tie": None}, "judge_mass": 1.0,
        "judge_confidence": 0.9, "judge_model": "m", "error": None, "has_text": True,
    }  # fmt: skip
    full = [{**good, **row, "row": n, "row_key": str(n)} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=judged_schema("pairwise", PAIRWISE_ALTERNATIVES))


UNJUDGED = {"judge_verdict": None, "judge_probs": None, "judge_mass": None,
            "judge_confidence": None, "error": "judge: too long"}  # fmt: skip
UNREAD = {**UNJUDGED, "error": "input: response_a is null", "has_text": False}


CENT = Decimal("0.01")
RESOLVED = answer(Outcome.RESOLVED, "B")
PAID: dict[str, Any] = {"k": (RESOLVED, CENT)}


def one(row: dict[str, Any], route: str, asked: Asked = (), answers: Paid | None = None) -> Any:
    """The verdict columns of one row."""
    table = verdict_columns(judged(row), {0: (route, asked)}, answers or {}, SCHEMA, STRONG)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    return table.to_pylist()[0]


def picked(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("outcome", "strong_verdict", "strong_model", "strong_cost_usd", "final_verdict",
             "final_source", "error")  # fmt: skip
    return tuple(row[name] for name in names)


ASKED, BOTH = [("k", True)], [("k", True), ("l", True)]
LONG, NULL = "judge: too long", "input: response_a is null"
L_A, L_B = ({"l": (answer(Outcome.RESOLVED, verdict), CENT)} for verdict in ("A", "B"))


@pytest.mark.parametrize(
    ("row", "route", "asked", "answers", "wanted"),
    [
        ({}, "accept", (), {}, ("not_needed", None, None, None, "A", "judge", None)),
        # the answer of its twin is not an accepted row's
        ({}, "accept", (), PAID, ("not_needed", None, None, None, "A", "judge", None)),
        ({}, "escalate", ASKED, PAID, ("resolved", "B", "gpt-4.1", CENT, "B", "strong", None)),
        # denied by the cap, at once or after an attempt that was paid for
        ({}, "escalate", ASKED, {}, ("denied_budget", None, None, None, "A", "judge", None)),
        (
            {}, "escalate", ASKED, {"k": (None, CENT)},
            ("denied_budget", None, None, CENT, "A", "judge", None),
        ),
        (UNJUDGED, "accept", (), {}, ("failed", None, None, None, None, "none", LONG)),
        (
            UNJUDGED, "escalate", ASKED, PAID,
            ("resolved", "B", "gpt-4.1", CENT, "B", "strong", LONG),
        ),
        (
            UNJUDGED, "escalate", ASKED, {"k": (answer(Outcome.REFUSED), CENT)},
            ("refused", None, "gpt-4.1", CENT, None, "none", f"{LONG}; strong: because"),
        ),
        (
            UNJUDGED, "escalate", ASKED, {},
            ("denied_budget", None, None, None, None, "none", LONG),
        ),
        (UNREAD, "accept", (), {}, ("failed", None, None, None, None, "none", NULL)),
        # a twin that does not pay
        (
            {}, "escalate", [("k", False)], PAID,
            ("resolved", "B", "gpt-4.1", Decimal(0), "B", "strong", None),
        ),
        # both orders agree, contradict each other, are half there, or one is refused
        (
            {}, "escalate", BOTH, PAID | L_A,
            ("resolved", "B", "gpt-4.1", 2 * CENT, "B", "strong", None),
        ),
        (
            {}, "escalate", BOTH, PAID | L_B,
            ("resolved", "tie", "gpt-4.1", 2 * CENT, "tie", "strong", None),
        ),
        (
            {}, "escalate", BOTH, PAID,
            ("denied_budget", None, "gpt-4.1", CENT, "A", "judge", None),
        ),
        (
            {}, "escalate", BOTH, PAID | {"l": (answer(Outcome.REFUSED), CENT)},
            ("refused", None, "gpt-4.1", 2 * CENT, "A", "judge", "strong: because"),
        ),
    ],
)  # fmt: skip
def test_what_becomes_of_a_row(
    row: dict[str, Any], route: str, asked: Asked, answers: Paid, wanted: tuple[Any, ...]
) -> None:
    assert picked(one(row, route, asked, answers)) == wanted


def test_the_local_verdict_stands_beside_the_final_one() -> None:
    row = one({}, "escalate", ASKED, PAID)
    assert row["judge_probs"] == {"A": 0.9, "B": 0.1, "tie": None}
    assert (row["judge_verdict"], row["judge_confidence"], row["judge_model"]) == ("A", 0.9, "m")


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.UNPARSEABLE, Outcome.FAILED])
def test_a_strong_judge_that_fails_leaves_the_local_verdict(outcome: Outcome) -> None:
    row = one({}, "escalate", ASKED, {"k": (answer(outcome), CENT)})
    assert picked(row) == (
        outcome.value, None, "gpt-4.1", CENT, "A", "judge", "strong: because",
    )  # fmt: skip


def test_the_schema_does_not_follow_the_values() -> None:
    """All null, or all there: readers of many shards must not find two types."""
    unread = judged(UNREAD, UNREAD)
    nothing = verdict_columns(unread, {0: ("accept", ()), 1: ("accept", ())}, {}, SCHEMA, STRONG)
    everything = verdict_columns(judged({}), {0: ("escalate", ASKED)}, PAID, SCHEMA, STRONG)
    assert nothing.schema.equals(everything.schema, check_metadata=True)
    assert nothing.column_names == SCHEMA.names


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


# -- who pays --------------------------------------------------------------------------------------


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


# -- judged files ----------------------------------------------------------------------------------


def test_judged_rows_have_one_schema_whatever_is_null() -> None:
    config = parse(
        {
            "input": "i",
            "output": "o",
            "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
            "route": {"fraction": 0.5},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
        }
    )
    roles = {name: name for name in ("instruction", "response_a", "response_b")}
    columns, engine = Columns(roles, extra=("p_a", "p_b")), ColumnsEngine(config)

    def judge(text: str | None, p_a: float | None) -> pa.Table:
        block = pa.table(
            {name: pa.array([text, text], pa.string()) for name in roles}
            | {"p_a": pa.array([p_a, p_a], pa.float64()), "p_b": pa.array([0.4, 0.4])}
            | {"__chunk": ["c", "c"], "__shard": ["s", "s"], "__row": [7, 8]}
        )
        return judge_rows(block, engine, config, columns)[0]

    tables = [judge("x", 0.6), judge(None, 0.6), judge("x", None), judge(None, None)]
    assert {table.schema.to_string() for table in tables} == {tables[0].schema.to_string()}
    assert tables[0].schema.equals(judged_schema("pairwise", PAIRWISE_ALTERNATIVES))
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
    [(0.4, 0.6, "B", 0.6), (0.5, 0.5, "A", 0.5), (0.0, 1.0, "B", 1.0), (0.2, 0.3, "B", 0.3),
     (0.5005, 0.5, "A", 0.5005), (1, 0, "A", 1.0)],
)  # fmt: skip
def test_columns_take_probabilities_as_they_are(
    p_a: float, p_b: float, verdict: str, confidence: float
) -> None:
    (result,) = columns_engine().judge([], pa.table({"p_a": [p_a], "p_b": [p_b]}))
    assert (result.verdict, result.confidence) == (verdict, confidence)
    assert result.probs == {"A": p_a, "B": p_b}


@pytest.mark.parametrize(
    ("p_a", "p_b"),
    [(None, 0.5), (float("nan"), 0.5), (float("inf"), 0.5), (-0.1, 0.5), (1.2, 0.1), (0.9, 0.9),
     (0.0, 0.0), (50.0, 50.0)],
)  # fmt: skip
def test_columns_that_hold_no_probability_are_that_rows_error(p_a: Any, p_b: float) -> None:
    rows = pa.table({"p_a": pa.array([p_a, 0.9]), "p_b": pa.array([p_b, 0.1])})
    bad, good = columns_engine().judge([], rows)
    assert (bad.verdict, bad.probs, bad.confidence) == (None, None, None)
    assert bad.error is not None and bad.error.startswith("judge: column") and "p_a" in bad.error
    assert good.verdict == "A" and good.error is None


def columns_engine() -> ColumnsEngine:
    return ColumnsEngine(
        parse(
            {
                "input": "i",
                "output": "o",
                "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
                "route": {"fraction": 0.5},
                "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
            }
        )
    )


# --- verdicts that the strong judge is unsure of --------------------------------------------------


@pytest.mark.parametrize("route", ["escalate", "audit"])
@pytest.mark.parametrize(
    ("votes", "outcome", "prob", "final"),
    [("AAB", "abstained", 2 / 3, (None, "none")), ("AAA", "resolved", 1, ("A", "strong"))],
)
def test_an_unsure_verdict_is_nobodys(
    votes: str, outcome: str, prob: float, final: tuple[Any, ...], route: str
) -> None:
    paid: Any = {str(n): (answer(Outcome.RESOLVED, vote), CENT) for n, vote in enumerate(votes)}
    schema = verdict_schema("pairwise", PAIRWISE_ALTERNATIVES, strong_prob=True)
    strong = STRONG.model_copy(update={"samples": 3, "abstain_below": 0.7})
    routed = {0: (route, [(key, True) for key in paid])}
    table = verdict_columns(judged(UNJUDGED), routed, paid, schema, strong)
    assert table.schema.equals(schema, check_metadata=True)
    (row,) = table.to_pylist()
    assert picked(row) == (outcome, "A", "gpt-4.1", 3 * CENT, *final, "judge: too long")
    assert (row["strong_prob"], row["route"]) == (prob, route)
