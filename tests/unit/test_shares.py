"""Parts of one whole: any runs, reporting in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_judge.escalation.shares import LEARN_S, SILENT_S, Shares

pytestmark = pytest.mark.timeout(60)

NAMES = st.sampled_from("abcde")
PARTS = st.floats(0, 1)
EVENTS = st.one_of(
    st.tuples(st.just("report"), NAMES, PARTS, PARTS, st.floats(0, 3)),
    st.tuples(st.just("leave"), NAMES),
    st.tuples(st.just("silence"), st.floats(0, 2 * SILENT_S)),
)


@given(st.lists(EVENTS, max_size=60))
def test_never_more_than_the_whole_in_whatever_order_they_report(events: list[Any]) -> None:
    shares, now = Shares(), 100.0
    granted: dict[str, tuple[float, float]] = {}
    for kind, *rest in events:
        if kind == "leave":
            shares.leave(rest[0])
            granted.pop(rest[0], None)
        elif kind == "silence":
            now += rest[0]
        else:
            name, wants, holds, later = rest
            now += later
            granted[name] = shares.report(name, wants, holds, now), now
            assert 0 <= granted[name][0] <= 1
        heard = [part for part, at in granted.values() if now - at <= SILENT_S]
        assert sum(heard) <= 1 + 1e-9


def settled(shares: Shares, wants: dict[str, float], order: list[str]) -> dict[str, float]:
    """What each has after six rounds of reports in this order, beginning with nothing."""
    parts = dict.fromkeys(wants, 0.0)
    for at in range(6):
        for name in order:
            parts[name] = shares.report(name, wants[name], parts[name], float(at))
    return parts


@given(st.permutations("abcd"), st.floats(0.25, 1))
def test_equal_wants_come_to_equal_parts(order: list[str], want: float) -> None:
    parts = settled(Shares(), dict.fromkeys(order, want), order)
    assert list(parts.values()) == pytest.approx([0.25] * 4)


@given(st.dictionaries(NAMES, PARTS, min_size=1), st.data())
def test_the_whole_is_shared_and_nobody_with_less_lacks_anything(
    wants: dict[str, float], data: st.DataObject
) -> None:
    parts = settled(Shares(), wants, data.draw(st.permutations(sorted(wants))))
    assert sum(parts.values()) == pytest.approx(1)
    most = max(parts.values())
    for name, part in parts.items():
        assert part >= wants[name] - 1e-9 or part == pytest.approx(most)


def test_what_one_does_not_want_goes_to_the_others() -> None:
    wants = {"modest": 0.1, "greedy": 1.0, "hungry": 1.0}
    parts = settled(Shares(), wants, list(wants))
    assert parts == pytest.approx({"modest": 0.1, "greedy": 0.45, "hungry": 0.45})


def test_a_run_alone_has_everything_however_little_it_wants() -> None:
    assert Shares().report("a", wants=0.0, holds=0.0, now=0) == 1
    assert Shares().report("a", wants=0.1, holds=1.0, now=0) == 1


def test_a_newcomer_waits_for_what_the_others_give_up() -> None:
    shares = Shares()
    assert shares.report("first", 1.0, 1.0, 0.0) == 1
    assert shares.report("second", 1.0, 0.0, 0.1) == 0
    assert shares.report("first", 1.0, 1.0, 1.0) == 0.5
    assert shares.report("second", 1.0, 0.0, 1.1) == 0.5


def test_silence_and_leaving_free_what_was_held() -> None:
    shares = Shares()
    settled(shares, {"a": 1.0, "b": 1.0}, ["a", "b"])
    assert shares.report("a", 1.0, 0.5, 5 + SILENT_S) == 0.5
    assert shares.report("a", 1.0, 0.5, 5.1 + SILENT_S) == 1
    assert shares.report("b", 1.0, 0.5, 5.2 + SILENT_S) == 0
    shares.leave("a")
    shares.leave("nobody")
    assert shares.report("b", 1.0, 0.0, 5.3 + SILENT_S) == 1


def test_a_new_registry_takes_up_where_the_old_one_was() -> None:
    shares = Shares()
    assert shares.report("a", 1.0, 0.5, 0.0) == 0.5
    assert shares.report("a", 1.0, 0.5, 1.0) == 0.5, "others may not have reported yet"
    assert shares.report("b", 1.0, 0.3, 1.5) == 0.3
    assert shares.report("b", 1.0, 0.3, LEARN_S) == 0.5
    assert shares.report("c", 1.0, 0.0, LEARN_S) == 0
