"""From log-probabilities to a verdict: exact arithmetic, and nothing that is not a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.judging.confidence import (
    both_orders,
    confidence,
    judgment,
    orders_agree,
    verdict_probs,
)

pytestmark = pytest.mark.timeout(60)

LOGS = st.floats(min_value=-700, max_value=-0.7)


def test_spellings_are_summed_and_normalised() -> None:
    logs = {"A": [math.log(0.3), math.log(0.1)], "B": [math.log(0.2)]}
    probs, mass = verdict_probs(logs)
    assert mass == pytest.approx(0.6, rel=1e-14)
    assert probs == pytest.approx({"A": 2 / 3, "B": 1 / 3}, rel=1e-14)


def test_a_mass_below_the_smallest_double_still_gives_the_right_share() -> None:
    probs, mass = verdict_probs({"A": [-2000.0], "B": [-2000.0 + math.log(3)]})
    assert mass == 0.0
    assert probs == pytest.approx({"A": 0.25, "B": 0.75}, rel=1e-12)


def test_an_impossible_alternative_has_probability_zero() -> None:
    probs, mass = verdict_probs({"A": [-math.inf, -math.inf], "B": [math.log(0.5)]})
    assert probs == {"A": 0.0, "B": 1.0}
    assert mass == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [-math.inf, math.nan])
def test_no_probability_at_all_is_no_verdict(bad: float) -> None:
    with pytest.raises(ValueError, match="probabilit"):
        verdict_probs({"A": [bad], "B": [bad]})


def test_one_nan_spoils_the_reading() -> None:
    with pytest.raises(ValueError, match="probabilit"):
        verdict_probs({"A": [math.nan], "B": [math.log(0.5)]})
    with pytest.raises(ValueError, match="probabilit"):
        verdict_probs({"A": [math.log(0.5)], "B": [math.log(0.1), math.nan]})


def test_rounding_never_gives_a_mass_above_one() -> None:
    assert verdict_probs({"A": [math.log(0.7)], "B": [math.log(0.3) + 1e-9]})[1] == 1.0


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["A", "B", "tie"]), st.lists(LOGS, min_size=1, max_size=3), min_size=2
    )
)
def test_shares_sum_to_one_and_follow_the_sums(logs: dict[str, list[float]]) -> None:
    probs, _ = verdict_probs(logs)
    assert math.fsum(probs.values()) == pytest.approx(1, abs=1e-12)
    assert all(0 <= p <= 1 for p in probs.values())
    direct = {name: math.fsum(math.exp(v + 0) for v in values) for name, values in logs.items()}
    total = math.fsum(direct.values())
    for name, p in probs.items():
        assert p == pytest.approx(direct[name] / total, rel=1e-9, abs=1e-12)


def test_methods() -> None:
    probs = {"A": 0.5, "B": 0.3, "tie": 0.2}
    assert confidence(probs, "probability") == 0.5
    assert confidence(probs, "margin") == pytest.approx(0.2)
    assert confidence({"A": 0.5, "B": 0.5}, "margin") == 0.0
    assert confidence({"A": 1.0}, "margin") == 1.0


def judged(probs: dict[str, float], mass: float = 1.0, **changes: Any) -> Any:
    options: dict[str, Any] = {"task": "pairwise", "method": "probability", "min_mass": 0.5}
    return judgment(probs, mass, **{**options, **changes})


def test_equal_probabilities_go_to_the_first_name() -> None:
    assert judged({"A": 0.4, "B": 0.4, "tie": 0.2}).verdict == "A"
    assert judged({"B": 0.5, "A": 0.5}).verdict == "B"


def test_a_score_is_a_number() -> None:
    result = judged({"1": 0.2, "2": 0.7, "3": 0.1}, task="pointwise")
    assert result.verdict == 2.0 and isinstance(result.verdict, float)
    assert result.confidence == 0.7


def test_low_mass_keeps_the_verdict_but_not_the_confidence() -> None:
    low = judged({"A": 0.9, "B": 0.1}, mass=0.4)
    assert (low.verdict, low.confidence, low.mass) == ("A", 0.0, 0.4)
    assert low.error is not None and "0.4" in low.error and "min_mass" in low.error
    enough = judged({"A": 0.9, "B": 0.1}, mass=0.5)
    assert (enough.confidence, enough.error) == (0.9, None)


def test_both_orders_are_averaged_in_the_pairs_orientation() -> None:
    straight = ({"A": 0.7, "B": 0.2, "tie": 0.1}, 0.9)
    swapped = ({"A": 0.4, "B": 0.5, "tie": 0.1}, 0.7)  # its A is the pair's B
    probs, mass = both_orders(straight, swapped)
    assert probs == pytest.approx({"A": 0.6, "B": 0.3, "tie": 0.1})
    assert mass == pytest.approx(0.8)


def test_a_judge_that_always_says_a_ends_at_one_half() -> None:
    always = ({"A": 0.9, "B": 0.1}, 1.0)
    assert both_orders(always, always)[0] == pytest.approx({"A": 0.5, "B": 0.5})


def test_whether_both_orders_agree() -> None:
    """The second reading is of the exchanged pair: its B is the pair's A."""
    sure = ({"A": 0.9, "B": 0.1, "tie": 0.0}, 1.0)
    mirrored = ({"A": 0.2, "B": 0.8, "tie": 0.0}, 1.0)
    tied = ({"A": 0.2, "B": 0.2, "tie": 0.6}, 1.0)
    assert orders_agree(sure, mirrored)
    assert not orders_agree(sure, sure), "always the first response: position bias"
    assert orders_agree(tied, tied)
    assert not orders_agree(sure, tied)
