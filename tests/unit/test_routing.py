"""Routing is exact, and blind to the order in which the rows arrive."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.config import RouteConfig
from ray_judge.routing import fraction_count, in_asking_order, needs_every_row, route

pytestmark = pytest.mark.timeout(120)

ROW = st.tuples(
    st.one_of(st.none(), st.sampled_from([0.5, 0.6, 0.75]), st.floats(0, 1)), st.booleans()
)


def frame(rows: list[tuple[float | None, bool]]) -> pl.DataFrame:
    """Rows of (confidence, askable), named in order."""
    return pl.DataFrame(
        {
            "chunk": ["00000-00000"] * len(rows),
            "row": range(len(rows)),
            "row_key": [f"{n:05d}" for n in range(len(rows))],
            "judge_confidence": [confidence for confidence, _ in rows],
            "askable": [askable for _, askable in rows],
        },
        schema_overrides={"judge_confidence": pl.Float64, "askable": pl.Boolean, "row": pl.Int64},
    )


def fraction(value: str) -> RouteConfig:
    return RouteConfig(policy="fraction", fraction=Decimal(value))


def threshold(value: float) -> RouteConfig:
    return RouteConfig(policy="threshold", threshold=value)


def escalated(routed: pl.DataFrame) -> list[int]:
    return sorted(routed.filter(route="escalate")["row"].to_list())


@pytest.mark.parametrize(
    ("rows", "share", "count"),
    [(100, "0.29", 29), (10, "0.1", 1), (3, "0.3333", 0), (500, "0.3", 150), (7, "1", 7),
     (7, "0", 0), (1000, "0.001", 1), (999, "0.001", 0), (100, "0.57", 57)],
)  # fmt: skip
def test_the_count_is_the_floor_in_decimals(rows: int, share: str, count: int) -> None:
    assert fraction_count(rows, Decimal(share)) == count
    routed = route(frame([(0.5, True)] * rows), fraction(share))
    assert len(escalated(routed)) == count


def test_the_least_sure_first_and_ties_by_row_key() -> None:
    rows = [(0.9, True), (0.6, True), (0.6, True), (0.5, True), (0.6, True)]
    assert escalated(route(frame(rows), fraction("0.6"))) == [1, 2, 3]


def test_a_row_without_a_local_verdict_is_least_sure() -> None:
    rows: list[tuple[float | None, bool]] = [(0.0, True), (None, True), (0.9, True)]
    assert escalated(route(frame(rows), fraction("0.34"))) == [1]
    assert escalated(route(frame(rows), threshold(0.0))) == [1]


def test_a_row_without_text_is_never_asked_and_frees_its_place() -> None:
    rows: list[tuple[float | None, bool]] = [(None, False), (0.5, True), (0.9, True)]
    assert escalated(route(frame(rows), fraction("0.34"))) == [1]
    assert escalated(route(frame(rows), fraction("1"))) == [1, 2]
    assert escalated(route(frame(rows), threshold(2.0))) == [1, 2]


def test_the_threshold_is_strict() -> None:
    rows: list[tuple[float | None, bool]] = [(0.7, True), (0.7 - 1e-12, True)]
    assert escalated(route(frame(rows), threshold(0.7))) == [1]


def test_which_policies_wait_for_the_whole_run() -> None:
    assert needs_every_row(fraction("0.5"))
    assert not needs_every_row(threshold(0.5))


def test_nothing_to_route() -> None:
    assert route(frame([]), fraction("0.5")).height == 0
    assert route(frame([]), threshold(0.5)).height == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=40), st.integers(0, 1000))
def test_fraction_against_a_plain_reading_of_the_rule(
    rows: list[tuple[float | None, bool]], permille: int
) -> None:
    share = Decimal(permille) / 1000
    routed = route(frame(rows), fraction(str(share)))
    assert routed["row"].to_list() == list(range(len(rows)))  # the order in which it came
    count = len(rows) * Fraction(permille, 1000)
    order = sorted(
        (n for n, (_, askable) in enumerate(rows) if askable),
        key=lambda n: (-1.0 if rows[n][0] is None else rows[n][0], n),
    )
    assert escalated(routed) == sorted(order[: count.numerator // count.denominator])


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, max_size=30), st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(
    rows: list[tuple[float | None, bool]], percent: int, rng: random.Random
) -> None:
    whole = frame(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    shuffled = whole[order] if rows else whole
    policy = fraction(str(Decimal(percent) / 100))
    assert escalated(route(whole, policy)) == escalated(route(shuffled, policy))
    cut = rng.randint(0, len(rows))
    parts = [route(whole[:cut], threshold(0.7)), route(whole[cut:], threshold(0.7))]
    assert escalated(pl.concat(parts)) == escalated(route(whole, threshold(0.7)))


def test_asking_order() -> None:
    rows: list[tuple[float | None, bool]] = [(0.9, True), (0.5, True), (None, True), (0.5, True)]
    routed = route(frame(rows), fraction("0.75"))
    assert in_asking_order(routed)["row"].to_list() == [2, 1, 3]
