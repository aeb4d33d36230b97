"""Whatever the provider does, the run ends, rows say what happened, and the books are right."""

from __future__ import annotations

import time
from collections import defaultdict
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from tests.provider import RunningServer

from .conftest import Run, Runs, pairs

pytestmark = pytest.mark.timeout(240)


def row(run: Run, number: int) -> dict[str, Any]:
    (found,) = run.scored().filter(pl.col("instruction") == instruction(number)).to_dicts()
    return found


def instruction(number: int) -> str:
    return f"Write down the number {number}."


def fault(kind: str, number: int, **changes: Any) -> dict[str, Any]:
    return {"kind": kind, "contains": instruction(number), **changes}


def test_a_bad_night(runs: Runs, server: RunningServer) -> None:
    """One fault per row; the rows between them are fine."""
    server.configure(
        faults=[
            fault("rate_limit", 0, attempts=[1], retry_after_s=0.3),
            fault("rate_limit", 1, attempts=[1], retry_after_s=0.2, retry_after_style="date"),
            fault("server_error", 2, attempts=[1, 2]),
            fault("unavailable", 3, attempts=[1], retry_after_s=0.1),
            fault("refusal", 4),
            fault("refusal", 5, attempts=[1]),
            fault("malformed_json", 6),
            fault("malformed_json", 7, attempts=[1]),
            fault("wrong_verdict", 8),
            fault("cut", 9),
            fault("empty_content", 10, attempts=[1]),
            fault("missing_usage", 11),
            fault("content_filter_400", 12),
            fault("context_length_exceeded", 13),
            fault("reset_before", 14, attempts=[1]),
            fault("reset_after", 15, attempts=[1]),
            fault("truncated_body", 16, attempts=[1]),
            fault("broken_body", 17),
            fault("hang_billed", 18, attempts=[1]),
            fault("content_filter", 19),
            fault("bad_gateway_html", 20, attempts=[1]),
        ]
    )
    run = runs(pairs(30), route__fraction=1, strong__timeout_s=2)
    assert run.score() == 0
    outcomes = {n: row(run, n)["outcome"] for n in range(30)}
    resolved = [0, 1, 2, 3, 5, 7, 10, 11, 14, 15, 16, 18, *range(20, 30)]
    assert [n for n, outcome in outcomes.items() if outcome == "resolved"] == resolved
    assert [n for n in outcomes if outcomes[n] == "refused"] == [4, 12, 19]
    assert [n for n in outcomes if outcomes[n] == "unparseable"] == [6, 8, 9]
    assert [n for n in outcomes if outcomes[n] == "failed"] == [13, 17]
    for number in (4, 6, 8, 9, 12, 13, 17, 19):
        bad = row(run, number)
        assert bad["final_verdict"] == bad["judge_verdict"] and bad["final_source"] == "judge"
        assert bad["error"].startswith("strong: "), bad["error"]
    assert "max_output_tokens" in row(run, 9)["error"]

    # What was asked again was paid for again, and what was never computed cost nothing.
    bills: dict[str, Decimal] = defaultdict(Decimal)
    for bill in server.bills():
        bills[bill["fault"] or "none"] += Decimal(bill["usd"])
    assert row(run, 4)["strong_cost_usd"] == bills["refusal"] * 2 / 3  # of three, one is row 5's
    assert row(run, 12)["strong_cost_usd"] == row(run, 13)["strong_cost_usd"] == 0
    # What may have been computed counts at its maximum; so do uncounted tokens: never less than
    # the bill. A server that did not begin (503) costs nothing.
    for number in (2, 11, 15, 16, 17, 18, 20):
        assert row(run, number)["strong_cost_usd"] > row(run, 29)["strong_cost_usd"]
    assert run.check_costs() >= Decimal(server.stats()["total_usd"])
    exact = [n for n in range(30) if n not in (2, 11, 14, 15, 16, 17, 18, 20)]
    booked = sum((row(run, n)["strong_cost_usd"] for n in exact), Decimal(0))
    lost = ("missing_usage", "reset_after", "truncated_body", "broken_body", "hang_billed")
    billed = Decimal(server.stats()["total_usd"]) - sum((bills[kind] for kind in lost), Decimal(0))
    again = row(run, 29)["strong_cost_usd"]  # rows 2, 14, 15, 16, 18, 20: one good answer each
    assert billed - booked == pytest.approx(6 * again, rel=Decimal("0.05"))


def test_a_server_that_knows_no_response_format(runs: Runs, server: RunningServer) -> None:
    server.configure(refuse_parameters=["response_format"])
    run = runs(pairs(40), route__fraction=1)
    assert run.score() == 0
    assert run.outcomes() == {"resolved": 40}
    assert server.stats()["billed"] == 40
    assert run.check_costs() == Decimal(server.stats()["total_usd"])


def test_an_empty_account_pauses_and_nothing_is_asked_twice(
    runs: Runs, server: RunningServer, ray_session: str
) -> None:
    """Exit 4 at once, as a process of its own: `python -m tests.fault.quota` measures more."""
    server.configure(quota_usd="0.01")
    run = runs(pairs(100), route__fraction=1, strong__concurrency=4)
    process = run.start(ray_session)
    said = process.communicate()[1]
    ended = time.monotonic()
    assert process.returncode == 4 and "insufficient_quota" in said
    # 5 s are promised, and held against it by the command; a busy machine takes its time.
    assert ended - server.stats()["quota_told_monotonic"] < 30
    assert not (run.output / "summary.json").exists()
    paid = server.stats()["billed"]
    assert 0 < paid < 100
    server.configure(quota_usd=None)
    assert run.score() == 0
    assert run.outcomes() == {"resolved": 100}
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (100, 0)
    assert run.check_costs() == Decimal(stats["total_usd"])


@pytest.mark.parametrize("said", ["invalid_api_key", "model_not_found"])
def test_a_key_or_model_that_the_provider_refuses_ends_the_run(
    runs: Runs, server: RunningServer, said: str
) -> None:
    server.configure(faults=[{"kind": said, "max_times": 1000}])
    run = runs(pairs(50), route__fraction=1, strong__concurrency=4)
    assert run.score() == 1
    assert said in run.said and "OPENAI_API_KEY" in run.said
    assert server.api_key not in run.said
    stats = server.stats()
    assert stats["billed"] == 0 and stats["requests"] <= 8  # what was in flight, not the whole run


def test_a_server_that_is_not_there_pauses_the_run(runs: Runs, server: RunningServer) -> None:
    run = runs(pairs(20), route__fraction=1)
    nobody = "strong.base_url=http://127.0.0.1:9/v1"
    assert run.score(nobody, "strong.give_up_after_s=0.5") == 4
    assert "give_up_after_s" in run.said
    assert run.score() == 0  # the same run, with the server back
    assert run.outcomes() == {"resolved": 20}


UNSURE = [7, 17, 27, 37, 47, 57]
"""Of numbers that end in 7 one vote in three is another; the last three are audited."""


def test_what_even_the_strong_judge_is_unsure_of_is_for_a_person(
    runs: Runs, server: RunningServer
) -> None:
    server.configure(
        faults=[{"kind": "other_verdict", "contains": "7.", "attempts": [2]}],
    )
    run = runs(
        pairs(35, label=["A"] * 35), pairs(25, first=35, label=["A"] * 25), chunk_rows=10,
        route={"policy": "fraction", "fraction": 0.5, "audit": 1},
        strong__samples=3, strong__abstain_below=0.7, strong__ties=False,
    )  # fmt: skip
    assert run.score() == 0

    rows = run.scored().with_row_index("n")
    unsure = rows.filter(outcome="abstained")
    assert unsure["n"].to_list() == UNSURE
    assert unsure["route"].to_list() == ["escalate"] * 3 + ["audit"] * 3
    assert unsure["strong_prob"].to_list() == [2 / 3] * 6
    assert unsure["strong_verdict"].null_count() == 0 == unsure["strong_cost_usd"].null_count()
    assert unsure["final_verdict"].null_count() == 6
    assert unsure["final_source"].unique().to_list() == ["none"]
    sure = rows.filter(outcome="resolved")
    assert sure.height == 54 and sure["final_source"].unique().to_list() == ["strong"]
    assert sure["final_verdict"].to_list() == sure["strong_verdict"].to_list()
    assert (sure["strong_prob"] == 1).all()
    assert server.stats()["billed"] == 180
    assert run.check_costs() == Decimal(server.stats()["total_usd"])

    summary = run.summary()
    assert run.outcomes() == {"resolved": 54, "abstained": 6}
    assert summary["sources"] == {"judge": 0, "strong": 54, "none": 6}
    assert summary["review"] == {"rows": 6}
    audit, audited = summary["audit"], rows.filter(route="audit")
    assert (audit["n"], audit["abstained"], audit["unanswered"]) == (30, 3, 0)
    agreed = (audited["judge_verdict"] == audited["strong_verdict"]).sum()
    assert audit["agreement"] == agreed / 30
    right = (rows["final_verdict"] == "A").fill_null(value=False).sum()
    assert summary["label_accuracy"]["final"] == right / 60  # no verdict is not right
    assert "review.parquet" in (run.output / "report.html").read_text()

    review = pl.read_parquet(run.output / "review.parquet")
    assert review.columns == [
        "shard", "row", "row_key", "instruction", "response_a", "response_b", "judge_verdict",
        "judge_confidence", "strong_verdict", "strong_prob", "error",
    ]  # fmt: skip
    assert review.select("shard", "row").rows() == [
        ("part-000.parquet", 7), ("part-000.parquet", 17), ("part-000.parquet", 27),
        ("part-001.parquet", 2), ("part-001.parquet", 12), ("part-001.parquet", 22),
    ]  # fmt: skip
    same = [name for name in review.columns if name in rows.columns]
    assert review.select(same).equals(unsure.select(same))

    before = run.everything()
    assert run.score() == 0
    assert run.everything() == before

    # Gone with a careless hand, it is written again as it was, and nobody is asked again.
    requests, written = server.stats()["requests"], before["review.parquet"][1]
    (run.output / "review.parquet").unlink()
    assert run.score() == 0
    assert run.everything()["review.parquet"][1] == written
    assert server.stats()["requests"] == requests
    assert run.summary()["review"] == summary["review"]
