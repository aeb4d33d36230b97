"""The audit: who is drawn, what is concluded, and that its intervals hold what they say."""

import random

import polars as pl
import pytest

from ray_judge.calibration.audit import audit, check_promise, draw_rows, implied_agreement
from ray_judge.calibration.selection import interval
from ray_judge.errors import PromiseBroken

from .test_calibration import calibration


def keys(n: int) -> pl.Series:
    return pl.Series([f"part-000.parquet#{k:012d}" for k in range(n)])


def test_who_is_drawn_depends_on_key_and_seed_alone() -> None:
    names = keys(3000)
    chosen = set(names.filter(draw_rows(names, "night", 0.1)))
    shuffled = names.to_list()
    random.Random(1).shuffle(shuffled)
    again = pl.Series(shuffled)
    assert set(again.filter(draw_rows(again, "night", 0.1))) == chosen
    assert set(names[1000:].filter(draw_rows(names[1000:], "night", 0.1))) <= chosen
    other = set(names.filter(draw_rows(names, "another night", 0.1)))
    assert other != chosen and len(other & chosen) < 100
    assert interval(len(chosen), 3000, 0.9999)[0] < 0.1 < interval(len(chosen), 3000, 0.9999)[1]
    names = names[:500]
    few, more = draw_rows(names, "s", 0.05), draw_rows(names, "s", 0.3)
    assert (few & ~more).sum() == 0, "a higher share only adds rows"
    assert draw_rows(names, "s", 0.0).sum() == 0 and draw_rows(names, "s", 1.0).sum() == 500


def night(agreed: int, n: int, *, unanswered: int = 0, accepted: int = 0) -> pl.DataFrame:
    rows = n + unanswered + accepted
    columns = {
        "route": ["audit"] * (n + unanswered) + ["accept"] * accepted,
        "outcome": ["resolved"] * n + ["denied_budget"] * unanswered + ["not_needed"] * accepted,
        "judge_verdict": ["A"] * rows,
        "judge_confidence": [0.5 + k / (3 * rows) for k in range(rows)],
        "strong_verdict": ["A"] * agreed + ["B"] * (n - agreed) + [None] * (unanswered + accepted),
        "scenario": [("maths", "poems", None)[k % 3] for k in range(rows)],
    }
    return pl.DataFrame(columns)


def test_the_audit_counts_what_was_answered() -> None:
    found = audit(night(90, 100, unanswered=3, accepted=50), by="scenario")
    assert (found.overall.n, found.overall.agreement, found.unanswered) == (100, 0.9, 3)
    assert (found.overall.low, found.overall.high) == interval(90, 100)
    assert sum(part.n for part in found.by_confidence) == 100 and len(found.by_confidence) == 10
    assert [part.group for part in found.by_column] == ["(null)", "maths", "poems"]
    assert sum(part.n for part in found.by_column) == 100
    assert found.document()["agreement"] == 0.9
    constant = night(9, 10).with_columns(judge_confidence=pl.lit(0.7))
    assert [part.n for part in audit(constant).by_confidence] == [10], "ties stay together"


def test_a_row_that_the_strong_judge_abstained_from_has_its_verdict_and_counts() -> None:
    """Those rows disagree more often: without them the accepted rows would look better."""
    outcomes = ["resolved"] * 85 + ["abstained"] * 15 + ["denied_budget"] * 3
    found = audit(night(90, 100, unanswered=3).with_columns(outcome=pl.Series(outcomes)))
    assert (found.overall.n, found.overall.agreed) == (100, 90)
    assert (found.abstained, found.unanswered) == (15, 3)
    assert audit(night(90, 100)).abstained == 0


def test_nothing_audited() -> None:
    found = audit(night(0, 0, accepted=5), by="scenario")
    assert found.overall.agreement is None and not found.by_confidence and not found.by_column
    assert "says nothing" in check_promise(calibration(label_kind="strong"), found)


def test_the_promise_is_broken_only_where_the_interval_says_so() -> None:
    strong = calibration(label_kind="strong", strong_model="gpt-4.1")
    assert "confirms" in check_promise(strong, audit(night(980, 1000)))
    assert "does not contradict" in check_promise(strong, audit(night(85, 100)))
    with pytest.raises(PromiseBroken, match=r"800 of 1000.*gpt-4.1's verdicts.*calibrate again"):
        check_promise(strong, audit(night(800, 1000)))


def test_a_promise_about_human_labels_allows_for_the_strong_judges_own_errors() -> None:
    assert implied_agreement(calibration(label_kind="strong")) == pytest.approx(0.9)
    assert implied_agreement(calibration(strong_error=0.05)) == pytest.approx(0.85)
    assert implied_agreement(calibration()) == pytest.approx(0.8)
    check_promise(calibration(), audit(night(850, 1000)))
    with pytest.raises(PromiseBroken):
        check_promise(calibration(), audit(night(750, 1000)))
