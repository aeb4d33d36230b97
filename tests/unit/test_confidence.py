"""From log-probabilities to a verdict: exact arithmetic, and nothing that is not a number."""

import math
from math import inf, log, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.config import JudgeConfig
from ray_judge.judging.confidence import (
    both_orders,
    by_reward,
    by_rewards,
    confidence,
    judgment,
    majority,
    orders_agree,
)
from ray_judge.judging.confidence import verdict_probs as read

LOGS = st.lists(st.floats(min_value=-700, max_value=-0.7), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("logs", "wanted", "mass"),
    [
        ({"A": [log(0.3), log(0.1)], "B": [log(0.2)]}, {"A": 2 / 3, "B": 1 / 3}, 0.6),
        # a mass below the smallest double still gives the right share
        ({"A": [-2000.0], "B": [-2000.0 + log(3)]}, {"A": 0.25, "B": 0.75}, 0.0),
        ({"A": [-inf, -inf], "B": [log(0.5)]}, {"A": 0.0, "B": 1.0}, 0.5),
        # rounding never gives a mass above one
        ({"A": [log(0.7)], "B": [log(0.3) + 1e-9]}, {"A": 0.7, "B": 0.3}, 1.0),
    ],
)
def test_spellings_are_summed_and_normalised(logs: Any, wanted: Any, mass: float) -> None:
    probs, found = read(logs)
    assert found == pytest.approx(mass, rel=1e-14) and found <= 1
    assert probs == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize(
    "logs",
    [
        {"A": [-inf], "B": [-inf]},
        {"A": [nan], "B": [nan]},
        {"A": [nan], "B": [-0.7]},
        {"A": [-0.7], "B": [-2.3, nan]},
    ],
)
def test_no_probability_or_one_that_is_not_a_number_is_no_verdict(logs: Any) -> None:
    with pytest.raises(ValueError, match="probabilit"):
        read(logs)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["A", "B", "tie"]), LOGS, min_size=2))
def test_shares_sum_to_one_and_follow_the_sums(logs: dict[str, list[float]]) -> None:
    probs, _ = read(logs)
    assert math.fsum(probs.values()) == pytest.approx(1, abs=1e-12)
    assert all(0 <= p <= 1 for p in probs.values())
    direct = {name: math.fsum(map(math.exp, values)) for name, values in logs.items()}
    total = math.fsum(direct.values())
    for name, p in probs.items():
        assert p == pytest.approx(direct[name] / total, rel=1e-9, abs=1e-12)


def test_methods() -> None:
    probs = {"A": 0.5, "B": 0.3, "tie": 0.2}
    assert confidence(probs, "probability") == 0.5
    assert confidence(probs, "margin") == pytest.approx(0.2)
    assert confidence({"A": 0.5, "B": 0.5}, "margin") == 0.0
    assert confidence({"A": 1.0}, "margin") == 1.0


def judged(probs: dict[str, float], mass: float = 1.0, task: Any = "pairwise") -> Any:
    return judgment(probs, mass, JudgeConfig(model="m"), task)


def test_equal_probabilities_go_to_the_first_name_and_a_score_is_a_number() -> None:
    assert judged({"A": 0.4, "B": 0.4, "tie": 0.2}).verdict == "A"
    assert judged({"B": 0.5, "A": 0.5}).verdict == "B"
    result = judged({"1": 0.2, "2": 0.7, "3": 0.1}, task="pointwise")
    assert result.verdict == 2.0 and isinstance(result.verdict, float)
    assert result.confidence == 0.7


def test_low_mass_keeps_the_verdict_but_not_the_confidence() -> None:
    low = judged({"A": 0.9, "B": 0.1}, mass=0.4)
    assert (low.verdict, low.confidence, low.mass) == ("A", 0.0, 0.4)
    assert "0.4" in low.error and "min_mass" in low.error
    enough = judged({"A": 0.9, "B": 0.1}, mass=0.5)
    assert (enough.confidence, enough.error) == (0.9, None)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_a_pair_by_its_rewards(first: float, second: float, temperature: float) -> None:
    """Bradley and Terry's model; the confidence tells apart what a double's 1 does not."""
    found = by_rewards(first, second, temperature)
    margin = (first - second) / temperature
    wanted = 1 / (1 + math.exp(-margin)) if abs(margin) < 500 else float(margin > 0)
    assert found.probs == pytest.approx({"A": wanted, "B": 1 - wanted}, abs=1e-12)
    assert found.confidence == abs(first - second) and found.mass == 1.0
    assert found.verdict == ("A" if first >= second else "B") and found.error is None


@pytest.mark.parametrize(
    ("reward", "score", "verdict", "sure"),
    [
        (-2.0, "mode", 1, 1), (6.0, "mode", 5, 1), (2.0, "mode", 3, 1), (2.25, "mode", 3, 0.5),
        (2.25, "mean", 3.25, 0.5), (-9.0, "mean", 1, 1), (99.0, "mode", 5, 1),
        (2.5, "mean", 3.5, 0),
    ],
)  # fmt: skip
def test_a_score_by_its_reward(reward: float, score: Any, verdict: float, sure: float) -> None:
    """`rewards: [0, 4]` on scores from 1 to 5; a place between two scores is shared out."""
    judge = JudgeConfig(model="m", format="reward", rewards=(0, 4), score=score)
    found = by_reward(reward, judge)
    assert (found.verdict, found.confidence) == (verdict, sure)
    assert sum((found.probs or {}).values()) == 1 and list(found.probs or {}) == [*"12345"]


@pytest.mark.parametrize(
    ("probs", "task", "leader"),
    [
        ({"A": 0.5, "B": 0.5}, "pairwise", "A"),
        ({"B": 0.5, "A": 0.5}, "pairwise", "B"),
        ({"B": 0.4, "A": 0.4, "tie": 0.2}, "pairwise", "tie"),
        ({"1": 0.4, "4": 0.4, "5": 0.2}, "pointwise", "4"),
    ],
)
def test_the_majority_of_votes(probs: dict[str, float], task: Any, leader: str) -> None:
    assert majority(probs, task) == leader


def test_both_orders_are_averaged_in_the_pairs_orientation() -> None:
    straight = ({"A": 0.7, "B": 0.2, "tie": 0.1}, 0.9)
    swapped = ({"A": 0.4, "B": 0.5, "tie": 0.1}, 0.7)  # its A is the pair's B
    probs, mass = both_orders(straight, swapped)
    assert probs == pytest.approx({"A": 0.6, "B": 0.3, "tie": 0.1})
    assert mass == pytest.approx(0.8)
    always = ({"A": 0.9, "B": 0.1}, 1.0)  # position bias cancels out
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
