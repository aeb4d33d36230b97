"""Batch and flex mode against the simulated provider, whose own books are the judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import parse
from ray_judge.errors import (
    ConfigError,
    CorruptedError,
    EscalationError,
    LedgerFenced,
    PausedError,
    ProviderDown,
)
from ray_judge.escalation.batch.provider import METADATA, View
from ray_judge.escalation.batch.records import Asked, BatchFolder, BatchState
from ray_judge.escalation.batch.results import Past, Reading, ResultReader, read_results
from ray_judge.escalation.client import BatchClient, Kind, RequestFailed, StrongClient
from ray_judge.escalation.online.asker import TRIES
from ray_judge.escalation.pricing import cost, price_of
from ray_judge.escalation.question import StrongQuestion
from ray_judge.escalation.turn import LOCK
from ray_judge.records import Example, Usage
from ray_judge.storage.local import open_storage
from ray_judge.storage.lock import locked
from tests.provider import RunningServer

from ..fault.batch_night import BY_ITSELF, Night, clean, end, provider  # noqa: TID252

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    with provider() as server:
        yield server


@pytest.fixture
def server(process: RunningServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    monkeypatch.setenv("OPENAI_API_KEY", process.api_key)
    return clean(process)


def fault(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "scope": "batch", **more}


def complete(server: RunningServer, batch: str) -> None:
    """Let a batch come to its end, where the test's hand is its clock."""
    while server.advance_batch(batch)["status"] != "completed":
        pass


def until_ended(server: RunningServer, batches: int) -> Callable[[str], None]:
    """A checkpoint: behind the last submission, so many batches come to their end."""

    def wait(step: str) -> None:
        if step == "submitted" and len(server.batches()) == batches:
            end(server)

    return wait


# --- the ordinary day -----------------------------------------------------------------------------


def test_everything_is_asked_once_at_half_the_price(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server, 20)
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 20}
    assert [batch["request_counts"]["total"] for batch in server.batches()] == [6, 6, 6, 2]
    price, usages = price_of("gpt-4.1"), [answer.usage for answer in night.journal().rows]
    full = sum(
        cost(price, Usage(usage.input_tokens, usage.output_tokens)) for usage in usages if usage
    )
    assert Decimal(server.stats()["total_usd"]) == full / 2


def test_a_finished_run_does_nothing(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server)
    night.run()
    before = server.stats()["requests"], sorted(tmp_path.rglob("*"))
    night.run()
    assert (server.stats()["requests"], sorted(tmp_path.rglob("*"))) == before


def test_the_file_is_what_the_provider_asks_for(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server)
    night.run()
    first, _ = server.batches()
    client = BatchClient(night.config.strong, server.api_key)
    lines = client.download(first["input_file_id"]).decode("ascii").splitlines()
    client.close()
    assert first["metadata"][METADATA] in {state.id for state in night.states()}
    assert [json.loads(line)["custom_id"] for line in lines] == night.keys[:6]
    for line in map(json.loads, lines):
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        assert "service_tier" not in line["body"]
        assert "€" in line["body"]["messages"][1]["content"]


def test_a_file_has_no_more_bytes_than_permitted(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server, batch={"max_bytes": 3000})
    server.configure(batches={"max_bytes": 3000})
    night.run()
    night.check()
    assert len(server.batches()) > 3


def test_a_question_longer_than_any_file(tmp_path: Path, server: RunningServer) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        Night(tmp_path, server, batch={"max_bytes": 300}).run()
    assert not server.batches()


def test_the_queue_is_never_overfilled(tmp_path: Path, server: RunningServer) -> None:
    server.configure(batches={"enqueued_token_limit": 1000})
    night = Night(tmp_path, server, batch={"enqueued_tokens": 900})
    night.run()
    night.check()
    assert {batch["status"] for batch in server.batches()} == {"completed"}


@pytest.mark.parametrize("says", ["failed", "429"])
def test_an_unknown_limit_of_the_queue(tmp_path: Path, server: RunningServer, says: str) -> None:
    """Refused batches are made smaller, and wait; in the end all are answered."""
    server.configure(batches={"enqueued_token_limit": 700, "enqueued_rejection": says})
    night = Night(tmp_path, server, batch={"max_requests": 12})
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 12}


def test_a_queue_that_stays_full_pauses_the_run(tmp_path: Path, server: RunningServer) -> None:
    server.configure(batches={"enqueued_token_limit": 10})
    night = Night(tmp_path, server, 3, batch={"wait_s": 7200})
    with pytest.raises(PausedError, match="3 questions wait"):
        night.run()
    assert len(server.batches()) < 20, "a full queue is not asked every minute"
    assert night.money() == (0, 0)


# --- the cap --------------------------------------------------------------------------------------


def test_the_least_sure_are_asked_and_the_rest_is_denied(
    tmp_path: Path, server: RunningServer
) -> None:
    cap = Decimal("0.0016")
    night = Night(tmp_path, server, max_cost_usd=str(cap), max_output_tokens=20)
    night.run()
    answered = len(night.journal().answers)
    night.check(answered=answered)
    assert 2 < answered < 12, "what a batch did not use paid for more"
    assert set(night.journal().answers) == set(night.keys[:answered])
    folder = BatchFolder(open_storage(night.config.output))
    most = max(ask.max_cost_usd for state in night.states() for ask in folder.asked(state.id))
    assert cap - most < Decimal(server.stats()["total_usd"]) <= cap
    night.document["strong"]["max_cost_usd"] = 1
    night.run()
    night.check()
    assert server.stats()["billed"] == 12


def test_a_cap_of_zero_sends_nothing_and_needs_no_key(
    tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    night = Night(tmp_path, server, max_cost_usd=0)
    night.run()
    assert night.outcomes() == {"denied": 12}
    assert server.stats()["requests"] == 0


def test_a_full_month_pauses_and_the_next_one_goes_on(
    tmp_path: Path, server: RunningServer
) -> None:
    """What the month's cap has no money for is no denial: it is asked when there is money."""
    caps = {"max_output_tokens": 20, "max_cost_usd_per_month": "0.0016"}
    night = Night(tmp_path, server, **caps)
    with pytest.raises(PausedError, match=r"leaves no money for \d+ questions"):
        night.run()
    left = night.outcomes()["denied"]
    assert 0 < left < 12
    assert Decimal(server.stats()["total_usd"]) <= Decimal("0.0016")
    night.clock.now += 31 * 86_400
    with pytest.raises(PausedError, match="run again next month"):
        night.run()
    assert night.outcomes()["denied"] < left
    night.document["strong"]["max_cost_usd_per_month"] = 1
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 12}


def test_another_run_holds_the_shared_ledger(tmp_path: Path, server: RunningServer) -> None:
    """Batches wait for the ledger as any run does; while they are pending nobody waits for them."""
    money = str(tmp_path / "money")
    night = Night(tmp_path, server, books=money, give_up_after_s=60)
    with (
        locked(money, LOCK, "set of books", "runs/another"),
        pytest.raises(PausedError, match="runs/another"),
    ):
        night.run()
    assert not server.batches() and night.clock.slept >= 60

    rests, rest = [], night.clock.sleep

    def resting(seconds: float) -> None:
        with locked(money, LOCK, "set of books"):
            rests.append(seconds)
        rest(seconds)

    night.clock.sleep = resting  # type: ignore[method-assign]
    night.run()
    assert rests
    assert night.outcomes() == {"resolved": 12}


def test_an_owner_that_lost_the_ledger_creates_nothing(
    tmp_path: Path, server: RunningServer
) -> None:
    """It sleeps just before the call; another process finishes the run; then it wakes up."""
    night = Night(tmp_path, server)

    def asleep(step: str) -> None:
        if step == "creating":
            night.run()

    with pytest.raises(LedgerFenced):
        night.session(asleep).run()
    night.check()
    assert server.stats()["batch_creations"] == 2


# --- batches that end badly -----------------------------------------------------------------------


def test_an_expired_batch_re_asks_only_what_it_lacks(tmp_path: Path, server: RunningServer) -> None:
    server.configure(batches={"expire_after_share": 0.5})
    night = Night(tmp_path, server, batch={"max_requests": 12})
    night.run()
    night.check()
    totals = [batch["request_counts"]["total"] for batch in server.batches()]
    assert totals[:3] == [12, 6, 3]
    assert server.stats()["billed"] == sum(
        batch["request_counts"]["completed"] for batch in server.batches()
    )
    outcomes = night.outcomes()
    assert outcomes["resolved"] == 11 and outcomes["failed"] == 1, "the last expired for ever"
    assert len(totals) < 4 + TRIES


def test_a_cancelled_batch_keeps_what_it_finished(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server, batch={"max_requests": 12})
    # A line each second, by itself: eleven are left when the first is done.
    server.configure(batches={**BY_ITSELF, "in_progress_s": 12})
    client = BatchClient(night.config.strong, server.api_key)

    def cancel(step: str) -> None:
        if step == "submitted" and len(server.batches()) == 1:
            (batch,) = server.batches()
            while server.batches()[0]["request_counts"]["completed"] < 1:
                pass
            client._client.batches.cancel(batch["id"])
            server.configure(batches=BY_ITSELF)

    night.run(cancel)
    client.close()
    night.check()
    first, second = server.batches()
    assert first["status"] == "cancelled"
    assert second["request_counts"]["total"] == 12 - first["request_counts"]["completed"]


def test_a_refused_batch_is_submitted_again(tmp_path: Path, server: RunningServer) -> None:
    server.configure(batches={"fail_batches": [1, 2]})
    night = Night(tmp_path, server, batch={"max_requests": 12})
    night.run()
    night.check()
    assert [batch["status"] for batch in server.batches()] == ["failed", "failed", "completed"]


def test_a_provider_that_refuses_every_batch(tmp_path: Path, server: RunningServer) -> None:
    server.configure(batches={"fail_batches": list(range(1, 9))})
    night = Night(tmp_path, server)
    with pytest.raises(EscalationError, match="internal_error"):
        night.run()
    assert len(server.batches()) <= 4
    server.configure(batches={"fail_batches": []})
    night.run()
    night.check()


def test_a_batch_that_the_provider_forgot(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server, batch={"wait_s": 0, "max_requests": 12})
    with pytest.raises(PausedError):
        night.run()
    server.reset()
    with pytest.raises(EscalationError, match=r"does not know batch.*batches/rj-") as caught:
        night.run()
    Path(str(caught.value.where["file"])).unlink()
    promised = night.money()[1]
    night.document["strong"]["batch"]["wait_s"] = 86_400
    night.run()
    assert night.outcomes() == {"resolved": 12}
    assert night.money()[1] == promised > 0, "the lost batch counts as spent"


# --- lines that end badly -------------------------------------------------------------------------


def test_failed_lines_are_asked_again(tmp_path: Path, server: RunningServer) -> None:
    server.configure(faults=[fault("server_error", requests=[2, 5], max_times=3)])
    night = Night(tmp_path, server)
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 12}
    assert server.stats()["billed"] == 12


def test_a_line_that_always_fails_is_given_up(tmp_path: Path, server: RunningServer) -> None:
    server.configure(faults=[fault("server_error", contains="number 3.")])
    night = Night(tmp_path, server)
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 11, "failed": 1}
    assert len(server.batches()) == 2 + TRIES - 1


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("context_length_exceeded", "failed"), ("content_filter_400", "refused")],
)
def test_a_question_that_cannot_be_answered(
    tmp_path: Path, server: RunningServer, kind: str, outcome: str
) -> None:
    server.configure(faults=[fault(kind, contains="number 3.")])
    night = Night(tmp_path, server)
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 11, outcome: 1}
    assert len(server.batches()) == 2


def test_a_lost_line_counts_as_billed_and_is_asked_again(
    tmp_path: Path, server: RunningServer
) -> None:
    server.configure(batches={"drop_lines": [2]})
    night = Night(tmp_path, server, batch={"max_requests": 12})
    night.run()
    night.check(exact=False, twice=1)
    assert night.outcomes() == {"resolved": 12}
    lost = [answer for answer in night.journal().rows if not answer.final]
    assert len(lost) == 1 and lost[0].cost_usd > 0 and lost[0].usage is None


def test_every_line_lost(tmp_path: Path, server: RunningServer) -> None:
    server.configure(batches={"drop_lines": list(range(1, 13))})
    night = Night(tmp_path, server)
    night.run()
    night.check(exact=False, twice=12)
    assert night.outcomes() == {"failed": 12}
    assert server.stats()["billed"] == 36


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("malformed_json", "unparseable"), ("cut", "unparseable"), ("refusal", "refused")],
)
def test_unusable_answers_are_asked_again(
    tmp_path: Path, server: RunningServer, kind: str, outcome: str
) -> None:
    faults = [
        fault(kind, contains="number 3."),
        fault(kind, contains="number 5.", attempts=[1]),
    ]
    server.configure(faults=faults)
    night = Night(tmp_path, server, reasks=2)
    night.run()
    night.check(twice=2)
    assert night.outcomes() == {"resolved": 11, outcome: 1}
    assert server.stats()["billed"] == 12 + 2 + 1


def test_answers_of_a_batch_have_their_probability(tmp_path: Path, server: RunningServer) -> None:
    server.configure(
        certainty={"sure": [0.9, 0.9], "unsure": [0.4, 0.4], "unsure_containing": "number 3."},
        faults=[fault("no_logprobs", contains="number 5.")],
    )
    night = Night(tmp_path, server, samples=2, abstain_below=0.5)
    night.run()
    night.check()
    assert night.outcomes() == {"resolved": 12}
    found = [answer.verdict_prob for answer in night.journal().rows]
    known = sorted(prob for prob in found if prob is not None)
    assert found.count(None) == 1 and known == pytest.approx([0.4] + [0.9] * 10, abs=1e-3)


def test_a_batch_to_a_model_without_log_probabilities(
    tmp_path: Path, server: RunningServer
) -> None:
    server.configure(refuse_parameters=["logprobs"])
    night = Night(tmp_path, server, samples=2, abstain_below=0.5)
    with pytest.raises(EscalationError, match=r"strong\.abstain_below"):
        night.run()
    assert server.stats()["billed"] == 0


def test_answers_without_usage_and_twice(tmp_path: Path, server: RunningServer) -> None:
    server.configure(
        faults=[fault("missing_usage", requests=[1]), fault("duplicate", requests=[2])]
    )
    night = Night(tmp_path, server)
    night.run()
    night.check(exact=False)
    rows = night.journal().rows
    assert sum(row.usage is not None and row.usage.estimated for row in rows) == 2
    assert {row.usage.tier for row in rows if row.usage} == {"batch"}


def test_a_server_that_must_be_asked_in_words(tmp_path: Path, server: RunningServer) -> None:
    server.configure(refuse_response_format=True)
    night = Night(tmp_path, server, batch={"max_requests": 12})
    night.run()
    night.check()
    assert len(server.batches()) == 2 and server.stats()["billed"] == 12
    assert [state.words for state in night.states()] == [False, True]


# --- pauses ---------------------------------------------------------------------------------------


def test_a_run_leaves_a_pending_batch_and_goes_on(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server, batch={"wait_s": 0})
    with pytest.raises(PausedError, match=r"batch pending: 0 of 12 requests done") as caught:
        night.run()
    assert caught.value.exit_code == 4
    night.document["strong"]["batch"]["wait_s"] = 86_400
    night.run()
    night.check()
    assert server.stats()["batch_creations"] == 2


def test_no_quota_for_a_batch(tmp_path: Path, server: RunningServer) -> None:
    server.configure(quota_exhausted=True)
    night = Night(tmp_path, server)
    with pytest.raises(PausedError, match="wants money first"):
        night.run()
    assert night.money() == (0, 0)
    server.configure(quota_exhausted=False)
    night.run()
    night.check()


def test_the_quota_ends_within_a_batch(tmp_path: Path, server: RunningServer) -> None:
    """Batches that have ended are all read before the run pauses."""
    server.configure(faults=[fault("insufficient_quota", requests=[4, 5, 6])])
    night = Night(tmp_path, server)
    with pytest.raises(PausedError, match="wants money first"):
        night.run(until_ended(server, 2))
    assert len(night.journal().answers) == 6, "both batches were read"
    server.configure(faults=[])
    night.run()
    night.check()
    assert server.stats()["billed"] == 12


def test_the_quota_ends_while_another_batch_is_pending(
    tmp_path: Path, server: RunningServer
) -> None:
    """The run pauses at once; what the other batch answers is read by the next one."""
    server.configure(
        batches={"manual": True}, faults=[fault("insufficient_quota", requests=[4, 5, 6])]
    )
    night = Night(tmp_path, server)

    def end_the_first(step: str) -> None:
        if step == "submitted" and len(server.batches()) == 2:
            complete(server, server.batches()[0]["id"])

    with pytest.raises(PausedError, match="wants money first"):
        night.run(end_the_first)
    assert len(night.journal().answers) == 3
    server.configure(batches={"manual": False}, faults=[])
    complete(server, server.batches()[1]["id"])
    night.run()
    night.check()
    assert server.stats()["billed"] == 12


def test_a_wrong_key(tmp_path: Path, server: RunningServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    night = Night(tmp_path, server)
    with pytest.raises(EscalationError, match="OPENAI_API_KEY"):
        night.run()
    assert night.money() == (0, 0)
    assert not any(b"sk-wrong" in path.read_bytes() for path in tmp_path.rglob("*.*"))


def test_uploads_that_fail_are_tried_again(tmp_path: Path, server: RunningServer) -> None:
    faults = [
        {"kind": "rate_limit", "calls": [1]},
        {"kind": "reset_after", "calls": [2]},
        {"kind": "error_before", "calls": [3]},
    ]
    limited = [{"kind": "rate_limit", "calls": [1]}]
    server.configure(batches={"upload_faults": faults, "create_faults": limited})
    night = Night(tmp_path, server)
    night.run()
    night.check()
    assert server.stats()["uploads"] == 5 and server.stats()["batch_creations"] == 3


def test_a_provider_that_is_down_pauses_the_run(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server, base_url="http://127.0.0.1:9/v1", give_up_after_s=300)
    with pytest.raises(ProviderDown, match="everything is kept"):
        night.run()
    assert night.clock.slept >= 300
    night.document["strong"]["base_url"] = server.base_url
    night.run()
    night.check()


# --- pure parts -----------------------------------------------------------------------------------


def test_a_damaged_record_is_not_guessed_at(tmp_path: Path, server: RunningServer) -> None:
    night = Night(tmp_path, server)
    night.run()
    record = next((tmp_path / "out" / "batches").glob("rj-*[!s].json"))
    record.write_text(record.read_text()[:-20])
    with pytest.raises(CorruptedError):
        night.states()
    record.write_text('{"version": 2}')
    with pytest.raises(CorruptedError, match="newer"):
        night.states()


def line(key: str, status: int | None, body: Any = None, error: Any = None) -> bytes:
    response = None if status is None else {"status_code": status, "body": body}
    document = {"custom_id": key, "response": response, "error": error}
    return json.dumps(document).encode() + b"\n"


def test_result_lines() -> None:
    output = line("a", 200, {"x": 1}) + b"\n{torn" + line("b", 0) + b"[1]\nnull\n"
    errors = (
        line("a", 500, {"error": {}})
        + line("c", None, error={"code": "batch_expired"})
        + line("d", 400, {"error": {"code": "content_filter"}})
        + line("e", 400, "text")
        + line("f", None)
    )
    found = read_results(output, errors)
    assert found["a"].kind is None and found["a"].body == {"x": 1}
    kinds = {key: result.kind for key, result in found.items()}
    assert kinds == {
        "a": None, "c": Kind.TRANSIENT, "d": Kind.REFUSED, "e": Kind.ROW, "f": Kind.TRANSIENT,
    }  # fmt: skip
    assert read_results(line("b", 0), b"")["b"].kind is Kind.TRANSIENT


def reading(billed: int | None, results: dict[str, Any]) -> Reading:
    config = parse(
        {
            "input": "i", "output": "o", "judge": {"model": "m"}, "route": {"fraction": 1},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 1},
        }
    )  # fmt: skip
    asked = [Asked(key, 10, Decimal(n)) for n, key in enumerate("abc", 1)]
    state = BatchState("rj-1", 3, 0, 0.0, lease="l-1")
    reader = ResultReader(config, price_of("gpt-4.1"), tries=2, lost_tries=2)
    return reader.read(state, asked, results, {"c": Past(not_run=1)}, billed, 1.0)


def test_what_is_missing_counts_as_billed_as_far_as_it_may_have_been() -> None:
    every = reading(None, {})
    assert [answer.cost_usd for answer in every.answers] == [1, 2, 3] and not every.free
    one = reading(1, {})
    assert [(a.key, a.cost_usd, a.final) for a in one.answers] == [("c", 3, False)]
    assert one.free == one.unanswered == [0, 1]
    none = reading(0, {})
    assert [(a.key, a.cost_usd, a.final) for a in none.answers] == [("c", 0, True)]
    garbage = read_results(line("a", 200, {"no": "choices"}), b"")
    assert [a.cost_usd for a in reading(1, garbage).answers] == [1, 0]


def test_a_view_survives_what_other_servers_leave_out() -> None:
    view = View.of({"status": "completed", "errors": {"data": [{"code": "x"}, None]}})
    assert view == View("completed", None, None, None, ("x",)) and view.billed is None


# --- service tiers --------------------------------------------------------------------------------


async def sent(server: RunningServer, mode: str, **strong: Any) -> Any:
    """Send one question; gives the reply and the configuration."""
    given = {"model": "o3", "max_cost_usd": 1, "mode": mode, "base_url": server.base_url, **strong}
    config = parse(
        {"input": "i", "output": "o", "judge": {"model": "m"}, "route": {"fraction": 1},
         "strong": given}
    )  # fmt: skip
    client = StrongClient(config.strong, server.api_key)
    try:
        body = StrongQuestion(config).body(Example("Say hi.", ("hi", "hello")))
        return await client.send(body), body
    finally:
        await client.close()


@pytest.mark.asyncio
async def test_flex_is_asked_for_and_what_was_served_is_billed(server: RunningServer) -> None:
    flex, body = await sent(server, "flex")
    assert "service_tier" not in body, "no part of the question"
    assert flex.usage.tier == "flex" and server.bills()[-1]["tier"] == "flex"
    server.configure(permit_flex=False)
    plain, _ = await sent(server, "flex")
    assert plain.usage.tier == "default" and server.bills()[-1]["tier"] == "default"
    price = price_of("o3")
    assert cost(price, flex.usage) * 2 == cost(price, plain.usage)


@pytest.mark.asyncio
async def test_no_room_for_flex_is_a_rate_limit(server: RunningServer) -> None:
    server.configure(faults=[{"kind": "flex_unavailable", "probability": 1}])
    with pytest.raises(RequestFailed, match="resource_unavailable") as caught:
        await sent(server, "flex")
    assert caught.value.kind is Kind.RATE_LIMIT


@pytest.mark.asyncio
async def test_a_server_that_knows_no_tiers(server: RunningServer) -> None:
    server.configure(refuse_parameters=["service_tier"])
    reply, _ = await sent(server, "online")
    assert reply.usage.tier == "default", "nothing was sent"
    with pytest.raises(RequestFailed) as caught:
        await sent(server, "flex")
    assert caught.value.kind is Kind.RUN, "no question of the run would fare better"


def test_openai_is_told_which_tier_because_a_project_may_default_to_a_dearer_one() -> None:
    def tier(mode: str, base_url: str | None) -> str | None:
        strong = parse(
            {"input": "i", "output": "o", "judge": {"model": "m"}, "route": {"fraction": 1},
             "strong": {"model": "o3", "max_cost_usd": 1, "mode": mode, "base_url": base_url}}
        ).strong  # fmt: skip
        return StrongClient(strong, "k")._tier

    assert tier("online", None) == "default"
    assert tier("online", "https://eu.api.openai.com/v1") == "default"
    assert tier("online", "https://api.openai.com.example/v1") is None
    assert tier("online", "http://127.0.0.1:1/v1") is None
    assert tier("flex", "http://127.0.0.1:1/v1") == "flex"


def test_flex_waits_longer_unless_told_otherwise() -> None:
    def timeout(**strong: Any) -> float:
        given = {"model": "o3", "max_cost_usd": 1, **strong}
        return parse(
            {"input": "i", "output": "o", "judge": {"model": "m"}, "route": {"fraction": 1},
             "strong": given}
        ).strong.timeout_s  # fmt: skip

    assert (timeout(), timeout(mode="flex"), timeout(mode="flex", timeout_s=60)) == (120, 900, 60)
