"""Routing is exact, and blind to the order in which the rows arrive."""

import random
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.calibration.audit import draw_rows
from ray_judge.calibration.correctness import CorrectnessMap
from ray_judge.calibration.document import Tier
from ray_judge.calibration.drift import reference
from ray_judge.calibration.selection import Selection
from ray_judge.config import RouteConfig
from ray_judge.errors import ConfigError
from ray_judge.routing.policies import expected_gain, fraction_count, needs_every_row, route

Row = tuple[float | None, bool]
"""(confidence, has_text)"""
ROW = st.tuples(
    st.one_of(st.none(), st.sampled_from([0.5, 0.6, 0.75]), st.floats(0, 1)), st.booleans()
)
NAN = float("nan")


def frame(rows: Sequence[Row | float | None], nano: Sequence[int] | None = None) -> pl.DataFrame:
    """Rows, named in order; a bare confidence has its text. `nano`: their questions' costs."""
    pairs = [row if isinstance(row, tuple) else (row, True) for row in rows]
    judged = pl.DataFrame(
        {
            "chunk": ["00000-00000"] * len(rows),
            "row": range(len(rows)),
            "row_key": [f"{n:05d}" for n in range(len(rows))],
            "judge_confidence": [confidence for confidence, _ in pairs],
            "has_text": [has_text for _, has_text in pairs],
        },
        schema_overrides={"judge_confidence": pl.Float64, "has_text": pl.Boolean, "row": pl.Int64},
    )
    costs = {} if nano is None else {"cost_nano_usd": pl.Series(nano, dtype=pl.Int64)}
    return judged.with_columns(**costs)


def by(policy: str, value: str | float, **keys: object) -> RouteConfig:
    name = {"budget": "budget_usd", "guarantee": "calibration"}.get(policy, policy)
    return RouteConfig.model_validate({"policy": policy, name: value, **keys})


GUARANTEE = by("guarantee", "c.json")


def tier(threshold: float) -> Tier:
    chosen = Selection(threshold, 100, 50, 49, 0.08, 30, 0.1)
    correct = CorrectnessMap("isotonic", (0.0, 1.0), (0.0, 1.0))
    return Tier({}, chosen, correct, reference(np.linspace(0.5, 1, 100)))


def escalated(routed: pl.DataFrame) -> list[int]:
    return sorted(routed.filter(route="escalate")["row"].to_list())


@pytest.mark.parametrize(
    ("rows", "share", "count"),
    [(100, "0.29", 29), (10, "0.1", 1), (3, "0.3333", 0), (500, "0.3", 150), (7, "1", 7),
     (7, "0", 0), (1000, "0.001", 1), (999, "0.001", 0), (100, "0.57", 57), (0, "0.5", 0)],
)  # fmt: skip
def test_the_count_is_the_floor_in_decimals(rows: int, share: str, count: int) -> None:
    assert fraction_count(rows, Decimal(share)) == count
    assert len(escalated(route(frame([0.5] * rows), by("fraction", share)))) == count


@pytest.mark.parametrize(
    ("rows", "policy", "value", "asked"),
    [
        # a row without a local verdict is least sure
        ([0.0, None, 0.9], "threshold", 0.0, [1]),
        # a row without text is never asked
        ([(None, False), 0.5, 0.9], "threshold", 2.0, [1, 2]),
        # the threshold is strict
        ([0.7, 0.7 - 1e-12], "threshold", 0.7, [1]),
        ([], "threshold", 0.5, []),
    ],
)
def test_who_is_asked(
    rows: list[Row | float | None], policy: str, value: float, asked: list[int]
) -> None:
    assert escalated(route(frame(rows), by(policy, value))) == asked


@pytest.mark.parametrize("policy", [by("fraction", "0.34"), by("threshold", 0.0), GUARANTEE])
def test_a_confidence_that_is_no_number_is_as_unsure_as_none(policy: RouteConfig) -> None:
    judged = frame([0.5, NAN, 0.9])
    routed = route(judged, policy, tier(0.1))
    assert escalated(routed) == [1] and routed["judge_confidence"].to_list() == [0.5, None, 0.9]
    audited = route(judged, policy.model_copy(update={"audit": Decimal(1)}), tier(0.1))
    assert audited["route"].to_list() == ["audit", "escalate", "audit"]


def test_which_policies_wait_for_the_whole_run() -> None:
    waiting = [by("fraction", "0.5"), by("threshold", 0.5), by("budget", 1), GUARANTEE]
    assert [needs_every_row(policy) for policy in waiting] == [True, False, True, False]


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=40), st.integers(0, 1000))
def test_fraction_against_a_plain_reading_of_the_rule(rows: list[Row], permille: int) -> None:
    share = Decimal(permille) / 1000
    routed = route(frame(rows), by("fraction", str(share)))
    assert routed["row"].to_list() == list(range(len(rows)))  # the order in which it came
    count = len(rows) * Fraction(permille, 1000)
    order = sorted(
        (n for n, (_, has_text) in enumerate(rows) if has_text),
        key=lambda n: (-1.0 if rows[n][0] is None else rows[n][0], n),
    )
    assert escalated(routed) == sorted(order[: count.numerator // count.denominator])


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, max_size=30), st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_changes_nothing(rows: list[Row], percent: int, rng: random.Random) -> None:
    whole = frame(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    shuffled = whole[order] if rows else whole
    policy = by("fraction", str(Decimal(percent) / 100))
    assert escalated(route(whole, policy)) == escalated(route(shuffled, policy))
    cut = rng.randint(0, len(rows))
    parts = [route(whole[:cut], by("threshold", 0.7)), route(whole[cut:], by("threshold", 0.7))]
    assert escalated(pl.concat(parts)) == escalated(route(whole, by("threshold", 0.7)))


def test_guarantee_accepts_from_its_threshold_on() -> None:
    judged = frame([0.8, 0.8 - 1e-12, None])
    assert escalated(route(judged, GUARANTEE, tier(0.8))) == [1, 2]
    assert escalated(route(judged, GUARANTEE, tier(float("inf")))) == [0, 1, 2]
    with pytest.raises(ConfigError, match="needs the calibration"):
        route(judged, GUARANTEE)


@pytest.mark.parametrize(
    ("dollars", "asked"),
    [("0.0000001", [1]), ("0.0000011", [1, 2]), ("0.000011099", [1, 2]), ("0.0000111", [0, 1, 2]),
     ("0", [])],
)  # fmt: skip
def test_budget_takes_what_buys_most(dollars: str, asked: list[int]) -> None:
    """Gain per nano-dollar: .00005, .001, .0004, and a row without text."""
    judged = frame([0.5, 0.9, 0.6, (None, False)], [10_000, 100, 1_000, 1])
    assert escalated(route(judged, by("budget", dollars))) == asked


def test_budget_passes_over_what_no_longer_fits_and_over_certainty_and_ties_go_by_key() -> None:
    judged = frame([0.1, 0.2, 0.3, 1.0], [50, 60, 40, 1])
    assert escalated(route(judged, by("budget", "0.00000009"))) == [0, 2]
    judged = frame([0.5] * 9, [7] * 9)
    assert escalated(route(judged, by("budget", "0.000000030"))) == [0, 1, 2, 3]


def test_budget_needs_costs_and_a_probability() -> None:
    with pytest.raises(ConfigError, match="what each row's question costs"):
        route(frame([0.5]), by("budget", "1"))
    with pytest.raises(ConfigError, match=r"not a probability .*name a calibration"):
        route(frame([-1.5, -0.2], [1, 1]), by("budget", "1"))
    gain = expected_gain(pl.Series([-1.5, None, 0.25, 1.0]), tier(0.5))
    assert gain.tolist() == [1.0, 1.0, 0.75, 0.0]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(ROW, st.integers(0, 1000)), max_size=40),
    st.integers(0, 9000),
    st.sampled_from(["0", "0.3"]),
    st.randoms(use_true_random=False),
)
def test_budget_is_never_exceeded_and_blind_to_order(
    rows: list[tuple[Row, int]], nano: int, audit: str, rng: random.Random
) -> None:
    whole = frame([row for row, _ in rows], [cost for _, cost in rows])
    policy = by("budget", str(Decimal(nano) / 10**9), audit=audit)
    try:
        routed = route(whole, policy, seed="s")
    except ConfigError:  # the audit alone is dearer
        drawn_keys = draw_rows(whole["row_key"], "s", float(audit))
        assert whole.filter(drawn_keys & pl.col("has_text"))["cost_nano_usd"].sum() > nano
        return
    asked = routed.filter(pl.col("route") != "accept")
    assert asked["cost_nano_usd"].sum() <= nano
    assert asked["has_text"].all()
    order = list(range(len(rows)))
    rng.shuffle(order)
    again = route(whole[order] if rows else whole, policy, seed="s")
    assert again.sort("row")["route"].to_list() == routed["route"].to_list()


@pytest.mark.parametrize(
    ("policy", "value"),
    [("fraction", "0.3"), ("threshold", 0.7), ("budget", "0.00001"), ("guarantee", "c.json")],
)
def test_audited_rows_are_accepted_ones_drawn_at_random(policy: str, value: Any) -> None:
    rng = np.random.default_rng(22)
    rows = [(None if k % 50 == 0 else float(c), k % 7 != 0) for k, c in enumerate(rng.random(4000))]
    judged = frame(rows, [10] * 4000)
    plain = route(judged, by(policy, value), tier(0.7), "night")
    audited = route(judged, by(policy, value, audit="0.05"), tier(0.7), "n")
    chosen = audited.filter(route="audit")
    assert chosen["has_text"].all() and chosen["judge_confidence"].is_not_null().all()
    known = pl.col("judge_confidence").is_not_null()
    accepted = audited.filter(pl.col("route") != "escalate", known, has_text=True)
    assert 0.035 < chosen.height / accepted.height < 0.065
    if policy != "budget":  # there the audit is paid out of the same budget
        assert escalated(audited) == escalated(plain)
    means = [table["judge_confidence"].mean() for table in (chosen, accepted)]
    assert means[0] == pytest.approx(means[1], abs=0.06)
