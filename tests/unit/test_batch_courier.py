"""Batches as a session meets them: the simulated provider in this process keeps the books."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.errors import ConfigError, EscalationError, PausedError, ProviderDown
from ray_judge.failures import TRIES
from ray_judge.records import Outcome
from tests.fault.batch_night import NearProvider, Night, end

IN_ONE = {"batch": {"max_requests": 12}}
SMALL = {"max_output_tokens": 20}
"""What a question may cost is little, so that a small cap answers some."""


@pytest.fixture
def server() -> NearProvider:
    return NearProvider()


def lines(kind: str, **more: Any) -> dict[str, Any]:
    return {"faults": [{"kind": kind, "scope": "batch", **more}]}


def calls(**faults: list[str]) -> dict[str, Any]:
    """The first calls of a kind, such as `create`, end in these ways."""
    scripts = {
        f"{name}_faults": [{"kind": kind, "calls": [n]} for n, kind in enumerate(kinds, 1)]
        for name, kinds in faults.items()
    }
    return {"batches": scripts}


NIGHTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, int], int, dict[str, Any]]] = {
    "the queue is never overfilled": (
        {"batch": {"enqueued_tokens": 900}}, {"batches": {"enqueued_token_limit": 1000}},
        {"resolved": 12}, 3, {"billed": 12},
    ),
    "a creation whose answer is lost is found by its metadata": (
        {}, calls(create=["reset_after", "error_after"]), {"resolved": 12}, 2, {"billed": 12},
    ),
    "a creation that never arrived is made again from another file": (
        {}, calls(create=["reset_before", "error_before"]), {"resolved": 12}, 2, {"billed": 12},
    ),
    "an expired batch asks again only what it lacks; its last line expires for ever": (
        IN_ONE, {"batches": {"expire_after_share": 0.5}},
        {"resolved": 11, "failed": 1}, TRIES, {"billed": 11},
    ),
    "a refused batch is submitted again": (
        IN_ONE, {"batches": {"fail_batches": [1, 2]}}, {"resolved": 12}, 3, {"billed": 12},
    ),
    "lines that failed are asked again": (
        {}, lines("server_error", requests=[2, 5], max_times=3), {"resolved": 12}, 3,
        {"billed": 12},
    ),
    "a lost line counts as billed and is asked again": (
        IN_ONE, {"batches": {"drop_lines": [2]}}, {"resolved": 12}, 2,
        {"billed": 13, "twice": 1, "exact": False},
    ),
    "unusable answers are asked again, so often": (
        {"reasks": 2}, lines("malformed_json", contains="number 3."),
        {"resolved": 11, "unparseable": 1}, 4, {"billed": 14, "twice": 1},
    ),
    "an answer that comes twice counts once": (
        {}, lines("duplicate", requests=[2]), {"resolved": 12}, 2, {"billed": 12},
    ),
    "a server that must be asked in words": (
        IN_ONE, {"refuse_parameters": ["response_format"]}, {"resolved": 12}, 2, {"billed": 12},
    ),
    "each question is asked several times for votes": (
        {"samples": 2, "swap": True, "temperature": 1}, {}, {"resolved": 48}, 8,
        {"billed": 48, "twice": 24},
    ),
    "a batch that fails because the queue has an unknown limit is made smaller": (
        IN_ONE, {"batches": {"enqueued_token_limit": 700, "enqueued_rejection": "failed"}},
        {"resolved": 12}, 7, {"billed": 12},
    ),
    "a batch that is refused because the queue has an unknown limit is made smaller": (
        IN_ONE, {"batches": {"enqueued_token_limit": 700, "enqueued_rejection": "429"}},
        {"resolved": 12}, 5, {"billed": 12},
    ),
}  # fmt: skip
"""Name → (strong, the provider's settings, outcomes, batches that were created, what to check)."""


@pytest.mark.parametrize("name", NIGHTS)
def test_a_night(tmp_path: Path, server: NearProvider, name: str) -> None:
    strong, settings, outcomes, batches, check = NIGHTS[name]
    server.configure(**settings)
    night = Night(tmp_path, server, **strong)
    night.run()
    night.check(**check)
    assert night.outcomes() == outcomes
    assert len(server.batches()) == batches and bool(server.stats()["requests"]) == bool(batches)
    before = server.stats(), sorted(tmp_path.rglob("*"))
    if "failed" not in outcomes:  # what the provider did not run is asked by the next one
        night.run()
        assert (server.stats(), sorted(tmp_path.rglob("*"))) == before, "a finished run is done"


PAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "a question is longer than any file": (
        {"batch": {"max_bytes": 300}}, {}, ConfigError, "max_bytes"),
    "the queue stays full": (
        {"batch": {"wait_s": 7200}}, {"batches": {"enqueued_token_limit": 10}},
        PausedError, "12 questions wait"),
    "the account is empty": ({}, {"quota_usd": 0}, PausedError, "wants money first"),
    "every batch is refused": (
        IN_ONE, {"batches": {"fail_batches": [*range(1, 9)]}}, EscalationError, "internal_error"),
    "the provider is down": (
        {"give_up_after_s": 300}, calls(upload=["error_before"] * 99),
        ProviderDown, "everything is kept"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAUSES)
def test_what_ends_a_run_and_is_mended(tmp_path: Path, server: NearProvider, name: str) -> None:
    """Nothing was billed, no money is held, and the next run does all of it."""
    strong, settings, error, words = PAUSES[name]
    server.configure(**settings)
    night = Night(tmp_path, server, **strong)
    with pytest.raises(error, match=words):
        night.run()
    assert night.books.recorded() == (0, 0)
    assert len(server.batches()) < 20, "a full queue is not asked every minute"
    server.clean()
    night.document["strong"]["batch"].pop("max_bytes", None)
    night.run()
    night.check(billed=12)


def test_the_first_are_asked_and_the_rest_is_denied(tmp_path: Path, server: NearProvider) -> None:
    cap = Decimal("0.0016")
    night = Night(tmp_path, server, max_cost_usd=str(cap), **SMALL)
    night.run()
    answered = set(night.journal().answers())
    night.check(billed=len(answered))
    assert 2 < len(answered) < 12, "what a batch did not use paid for more"
    questions = night.questions
    assert answered == {question.key for question in questions[: len(answered)]}
    most = max(question.max_cost_usd for question in questions)
    assert cap - most < Decimal(server.stats()["total_usd"]) <= cap
    night.document["strong"]["max_cost_usd"] = 1
    night.run()
    night.check(billed=12)


def test_a_full_month_pauses_and_the_next_one_goes_on(tmp_path: Path, server: NearProvider) -> None:
    """What the month's cap has no money for is no denial: it is asked when there is money."""
    night = Night(tmp_path, server, max_cost_usd_per_month="0.0016", **SMALL)
    with pytest.raises(PausedError, match=r"leaves no money for \d+ questions"):
        night.run()
    left = night.outcomes()["none"]
    assert 0 < left < 12
    assert Decimal(server.stats()["total_usd"]) <= Decimal("0.0016")
    night.clock.wall += 31 * 86_400
    with pytest.raises(PausedError, match="run again next month"):
        night.run()
    assert night.outcomes()["none"] < left
    night.document["strong"]["max_cost_usd_per_month"] = 1
    night.run()
    night.check(billed=12)


def test_a_cancelled_batch_keeps_what_it_finished(tmp_path: Path, server: NearProvider) -> None:
    """The provider writes no line about what it did not do: it is asked in another batch."""
    night, cancelled = Night(tmp_path, server, **IN_ONE), []

    def meanwhile() -> None:
        if not cancelled:
            cancelled.append(server.batches()[0]["id"])
            server.advance_batch(cancelled[0])
            server.store.get(cancelled[0]).enter("cancelling")
        end(server)

    night.clock.meanwhile = meanwhile
    night.run()
    night.check(billed=12)
    statuses = [(one["status"], one["request_counts"]["total"]) for one in server.batches()]
    assert statuses == [("cancelled", 12), ("completed", 12)]


def test_the_quota_ends_while_a_batch_is_pending(tmp_path: Path, server: NearProvider) -> None:
    """The run pauses at once; what the other batch answers is read by the next one."""
    server.configure(**lines("insufficient_quota", requests=[4, 5, 6]))
    night = Night(tmp_path, server)

    def end_the_first() -> None:
        for _ in range(3):
            server.advance_batch(server.batches()[0]["id"])

    night.clock.meanwhile = end_the_first
    with pytest.raises(PausedError, match="wants money first"):
        night.run()
    assert len(night.journal().answers()) == 3
    server.configure(faults=[])
    night.clock.meanwhile = lambda: end(server)
    night.run()
    night.check(billed=12)


def test_a_batch_that_the_provider_forgot(tmp_path: Path, server: NearProvider) -> None:
    night = Night(tmp_path, server, batch={"wait_s": 0, "max_requests": 12})
    with pytest.raises(PausedError, match="batch pending: 0 of 12 requests done"):
        night.run()
    server.reset()
    with pytest.raises(EscalationError, match=r"does not know batch.*batches/rj-") as caught:
        night.run()
    Path(str(caught.value.where["file"])).unlink()
    promised = night.books.recorded()[1]
    night.document["strong"]["batch"]["wait_s"] = 86_400
    night.run()
    assert night.outcomes() == {"resolved": 12}
    assert night.books.recorded()[1] == promised > 0, "the lost batch counts as spent"


def test_the_first_question_is_asked_online(tmp_path: Path, server: NearProvider) -> None:
    """At its full price, once; the next process knows that the server gives verdicts."""
    night = Night(tmp_path, server, **IN_ONE)
    night.proven = False
    night.run()
    night.check(billed=12)
    assert [bill["tier"] for bill in server.bills()] == ["default"] + ["batch"] * 11
    assert night.outcomes() == {"resolved": 12} and len(server.batches()) == 1


@pytest.mark.parametrize(
    ("settings", "strong", "said", "billed"),
    [
        ({"refuse_parameters": ["temperature"]}, {"temperature": 1}, "strong.temperature", 0),
        ({"reasoning_tokens": 30}, SMALL, "first 16 answers cannot be used.*max_output_tokens", 16),
    ],
)
def test_what_goes_wrong_for_the_first_ones_sends_no_batch(
    tmp_path: Path, server: NearProvider, settings: Any, strong: Any, said: str, billed: int
) -> None:
    """Nothing of it is final: the corrected run asks all."""
    server.configure(**settings)
    night = Night(tmp_path, server, rows=20, **strong)
    night.proven = False
    with pytest.raises(EscalationError, match=said):
        night.run()
    night.check(billed=billed)
    assert not server.batches()
    server.clean()
    corrected = Night(tmp_path, server, rows=20)
    corrected.run()
    assert corrected.outcomes() == {"resolved": 20}


def test_nothing_is_sent_where_no_first_one_can_be_paid_online(
    tmp_path: Path, server: NearProvider
) -> None:
    """Half its price would be there; what has not been tried goes into no batch."""
    most = max(question.max_cost_usd for question in Night(tmp_path, server, **SMALL).questions)
    night = Night(tmp_path / "x", server, max_cost_usd=str(most * Decimal("1.5")), **SMALL)
    night.proven = False
    session = night.session()
    asyncio.run(session.run())
    assert [*session.outcomes.values()] == [Outcome.DENIED_BUDGET] * 12
    assert not server.batches() and not server.bills()
