"""Routing is exact, and blind to the order in which the rows arrive."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.calibration.audit import draw_rows
from ray_judge.calibration.correctness import CorrectnessMap
from ray_judge.calibration.document import Tier
from ray_judge.calibration.drift import reference
from ray_judge.calibration.selection import Selection, select_in_turn
from ray_judge.config import RouteConfig
from ray_judge.errors import ConfigError
from ray_judge.escalation.source import in_asking_order
from ray_judge.routing.policies import (
    expected_gain,
    fraction_count,
    needs_every_row,
    route,
)

from .test_calibration import JUDGES, replay

pytestmark = pytest.mark.timeout(120)

ROW = st.tuples(
    st.one_of(st.none(), st.sampled_from([0.5, 0.6, 0.75]), st.floats(0, 1)), st.booleans()
)


def frame(rows: list[tuple[float | None, bool]]) -> pl.DataFrame:
    """Rows of (confidence, has_text), named in order."""
    return pl.DataFrame(
        {
            "chunk": ["00000-00000"] * len(rows),
            "row": range(len(rows)),
            "row_key": [f"{n:05d}" for n in range(len(rows))],
            "judge_confidence": [confidence for confidence, _ in rows],
            "has_text": [has_text for _, has_text in rows],
        },
        schema_overrides={"judge_confidence": pl.Float64, "has_text": pl.Boolean, "row": pl.Int64},
    )


def fraction(value: str) -> RouteConfig:
    return RouteConfig(policy="fraction", fraction=Decimal(value))


def threshold(value: float) -> RouteConfig:
    return RouteConfig(policy="threshold", threshold=value)


GUARANTEE = RouteConfig(policy="guarantee", calibration="c.json")


def tier(threshold: float, selection: Selection | None = None) -> Tier:
    chosen = selection or Selection(threshold, 100, 50, 49, 0.08, 30, 0.1)
    correct = CorrectnessMap("isotonic", (0.0, 1.0), (0.0, 1.0))
    return Tier({}, chosen, correct, reference(np.linspace(0.5, 1, 100)))


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


@pytest.mark.parametrize("policy", [fraction("0.34"), threshold(0.0), GUARANTEE])
def test_a_confidence_that_is_no_number_is_as_unsure_as_none(policy: RouteConfig) -> None:
    rows: list[tuple[float | None, bool]] = [(0.5, True), (float("nan"), True), (0.9, True)]
    routed = route(frame(rows), policy, tier(0.1))
    assert escalated(routed) == [1] and routed["judge_confidence"].to_list() == [0.5, None, 0.9]
    audited = route(frame(rows), policy.model_copy(update={"audit": Decimal(1)}), tier(0.1))
    assert audited["route"].to_list() == ["audit", "escalate", "audit"]


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
    assert needs_every_row(RouteConfig(policy="budget", budget_usd=Decimal(1)))
    assert not needs_every_row(GUARANTEE)


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
        (n for n, (_, has_text) in enumerate(rows) if has_text),
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


# -- guarantee -------------------------------------------------------------------------------------


def test_guarantee_accepts_from_its_threshold_on() -> None:
    rows: list[tuple[float | None, bool]] = [(0.8, True), (0.8 - 1e-12, True), (None, True)]
    assert escalated(route(frame(rows), GUARANTEE, tier(0.8))) == [1, 2]
    assert escalated(route(frame(rows), GUARANTEE, tier(float("inf")))) == [0, 1, 2]
    with pytest.raises(ConfigError, match="needs the calibration"):
        route(frame(rows), GUARANTEE)


@pytest.fixture(scope="module")
def arena(data: Path) -> pl.DataFrame:
    return pl.read_parquet(data / "arena_replay.parquet")


def arena_frame(arena: pl.DataFrame, judge: str) -> pl.DataFrame:
    confidence = np.maximum(arena[f"{judge}_p_a"].to_numpy(), arena[f"{judge}_p_b"].to_numpy())
    return frame([(float(value), True) for value in confidence])


def test_three_real_judges_in_turn(arena: pl.DataFrame, data: Path) -> None:
    frames = [arena_frame(arena, judge) for judge in JUDGES]
    found = select_in_turn(replay(data), alpha=0.2, delta=0.3, start=30)
    accepted, left = [], np.arange(arena.height)
    for judged, one in zip(frames, found, strict=True):
        routed = route(judged[left], GUARANTEE, tier(one.threshold))
        asked = (routed["route"] == "escalate").to_numpy()
        accepted.append(int((~asked).sum()))
        left = left[asked]
    assert (accepted, len(left)) == ([0, 364, 0], 136)


@pytest.mark.parametrize(
    ("percent", "accuracy"), [(10, 0.776), (20, 0.780), (30, 0.792), (40, 0.788), (50, 0.790)]
)
def test_fraction_on_real_judges(arena: pl.DataFrame, percent: int, accuracy: float) -> None:
    routed = route(arena_frame(arena, JUDGES[0]), fraction(str(Decimal(percent) / 100)))
    ask = (routed["route"] == "escalate").to_numpy()
    assert ask.sum() == 5 * percent
    says = {j: (arena[f"{j}_p_a"] >= arena[f"{j}_p_b"]).to_numpy() for j in JUDGES}
    final = np.where(ask, says["gpt_4_turbo"], says["mistral_7b_instruct"])
    assert np.mean(final == (arena["human"] == "A").to_numpy()) == pytest.approx(accuracy)


# -- budget ----------------------------------------------------------------------------------------


def budget(dollars: str, **keys: object) -> RouteConfig:
    return RouteConfig.model_validate({"policy": "budget", "budget_usd": dollars, **keys})


def priced(rows: list[tuple[float | None, bool]], nano: list[int]) -> pl.DataFrame:
    return frame(rows).with_columns(cost_nano_usd=pl.Series(nano, dtype=pl.Int64))


def test_budget_takes_what_buys_most() -> None:
    rows: list[tuple[float | None, bool]] = [(0.5, True), (0.9, True), (0.6, True), (None, False)]
    costs = [10_000, 100, 1_000, 1]
    # gain per nano-dollar: .00005, .001, .0004
    assert escalated(route(priced(rows, costs), budget("0.0000001"))) == [1]
    assert escalated(route(priced(rows, costs), budget("0.0000011"))) == [1, 2]
    assert escalated(route(priced(rows, costs), budget("0.000011099"))) == [1, 2]
    assert escalated(route(priced(rows, costs), budget("0.0000111"))) == [0, 1, 2]
    assert escalated(route(priced(rows, costs), budget("0"))) == []


def test_budget_passes_over_what_no_longer_fits_and_over_certainty() -> None:
    rows: list[tuple[float | None, bool]] = [(0.1, True), (0.2, True), (0.3, True), (1.0, True)]
    costs = [50, 60, 40, 1]
    assert escalated(route(priced(rows, costs), budget("0.00000009"))) == [0, 2]


def test_budget_ties_go_by_row_key() -> None:
    rows: list[tuple[float | None, bool]] = [(0.5, True)] * 9
    assert escalated(route(priced(rows, [7] * 9), budget("0.000000030"))) == [0, 1, 2, 3]


def test_budget_needs_costs_and_a_probability() -> None:
    with pytest.raises(ConfigError, match="what each row's question costs"):
        route(frame([(0.5, True)]), budget("1"))
    rows: list[tuple[float | None, bool]] = [(-1.5, True), (-0.2, True)]
    with pytest.raises(ConfigError, match=r"not a probability .*name a calibration"):
        route(priced(rows, [1, 1]), budget("1"))
    assert expected_gain(pl.Series([-1.5, None]), tier(0.5)).tolist() == [1.0, 1.0]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(ROW, st.integers(0, 1000)), max_size=40),
    st.integers(0, 9000),
    st.sampled_from(["0", "0.3"]),
    st.randoms(use_true_random=False),
)
def test_budget_is_never_exceeded_and_blind_to_order(
    rows: list[tuple[tuple[float | None, bool], int]],
    nano: int,
    audit: str,
    rng: random.Random,
) -> None:
    whole = priced([row for row, _ in rows], [cost for _, cost in rows])
    policy = budget(str(Decimal(nano) / 10**9), audit=audit)
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


@pytest.mark.parametrize("calibrated", [False, True])
def test_budget_buys_more_than_confidence_alone(calibrated: bool) -> None:
    """Rows whose costs differ 100-fold: the same dollars, more right verdicts."""
    rng = np.random.default_rng(21)
    wins = []
    for _ in range(50):
        n = 2000
        confidence = 0.5 + rng.random(n) / 2
        right = rng.random(n) < confidence
        nano = np.exp(rng.uniform(np.log(1e5), np.log(1e7), n)).astype(int)
        judged = priced([(float(c), True) for c in confidence], [int(c) for c in nano])
        dollars = Decimal(int(nano.sum()) // 5) / 10**9
        routed = route(judged, budget(str(dollars)), tier(0.5) if calibrated else None)
        ask = (routed["route"] == "escalate").to_numpy()
        assert nano[ask].sum() <= dollars * 10**9
        order = np.argsort(confidence, kind="stable")
        alone = order[np.cumsum(nano[order]) <= float(dollars) * 1e9]
        by_confidence = right.copy()
        by_confidence[alone] = True
        wins.append(np.mean(right | ask) - by_confidence.mean())
    assert min(wins) >= 0 and np.mean(wins) > 0.02


# -- audit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        {"policy": "fraction", "fraction": "0.3"},
        {"policy": "threshold", "threshold": 0.7},
        {"policy": "budget", "budget_usd": "0.00001"},
        {"policy": "guarantee", "calibration": "c.json"},
    ],
)
def test_audited_rows_are_accepted_ones_drawn_at_random(policy: dict[str, object]) -> None:
    rng = np.random.default_rng(22)
    rows: list[tuple[float | None, bool]] = [
        (None if k % 50 == 0 else float(c), k % 7 != 0) for k, c in enumerate(rng.random(4000))
    ]
    judged = priced(rows, [10] * 4000)
    plain = route(judged, RouteConfig.model_validate(policy), tier(0.7), "night")
    audited = route(judged, RouteConfig.model_validate({**policy, "audit": "0.05"}), tier(0.7), "n")
    chosen = audited.filter(route="audit")
    assert chosen["has_text"].all() and chosen["judge_confidence"].is_not_null().all()
    accepted = audited.filter(pl.col("route") != "escalate").filter(
        pl.col("has_text") & pl.col("judge_confidence").is_not_null()
    )
    assert 0.035 < chosen.height / accepted.height < 0.065
    if policy["policy"] != "budget":  # there the audit is paid out of the same budget
        assert escalated(audited) == escalated(plain)
    assert chosen["judge_confidence"].mean() == pytest.approx(
        accepted["judge_confidence"].mean(), abs=0.06
    )
