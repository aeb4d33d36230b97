"""Rows of which even the strong judge is unsure: no verdict, and a review for people."""

from decimal import Decimal

import polars as pl

from tests.provider import RunningServer

from .conftest import Runs, pairs

UNSURE = [7, 17, 27, 37, 47, 57]
"""Of numbers that end in 7 one vote in three is another; the last three are audited."""


def test_what_the_strong_judge_is_unsure_of(runs: Runs, server: RunningServer) -> None:
    server.configure(faults=[{"kind": "other_verdict", "contains": "7.", "attempts": [2]}])
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
    audit = summary["audit"]
    assert (audit["n"], audit["abstained"], audit["unanswered"]) == (30, 3, 0)
    right = (rows["final_verdict"] == "A").fill_null(value=False).sum()
    assert summary["label_accuracy"]["final"] == right / 60  # no verdict is not right
    assert "review.parquet" in (run.output / "report.html").read_text()

    review = pl.read_parquet(run.output / "review.parquet")
    same = [name for name in review.columns if name in rows.columns]
    assert review.select(same).equals(unsure.select(same))

    # Gone with a careless hand, it is written again as it was, and nobody is asked again.
    requests, written = server.stats()["requests"], run.everything()["review.parquet"][1]
    (run.output / "review.parquet").unlink()
    assert run.score() == 0
    assert run.everything()["review.parquet"][1] == written
    assert server.stats()["requests"] == requests
    assert run.summary()["review"] == summary["review"]
