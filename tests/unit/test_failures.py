"""What every failure of a server means; README's table of failures is this one."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import StrongConfig
from ray_judge.errors import EscalationError, PausedError, ProviderDown
from ray_judge.failures import MEANING, Fault, Kind, RequestFailed, failure_of, run_error

README = Path(__file__).parents[2] / "README.md"


def table() -> str:
    """The lines of README's table, as Markdown."""
    lines = ["| a server says | whose fault | counts as | asked again | the provider |"]
    lines.append("|" + "---|" * 5)
    for meaning in map(MEANING.__getitem__, Kind):
        cells = meaning.said, meaning.fault, meaning.bill, meaning.again or "no", meaning.signal
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_readme_has_this_table() -> None:
    assert table() in README.read_text("utf-8"), f"put this into README:\n{table()}"


@pytest.mark.parametrize(
    ("status", "error", "meaning"),
    [
        (429, {}, Kind.RATE_LIMIT), (429, {"code": "insufficient_quota"}, Kind.BILLING),
        (400, {"type": "billing_not_active"}, Kind.BILLING), (402, {}, Kind.BILLING),
        (401, {"code": "invalid_api_key"}, Kind.DENIED), (403, {}, Kind.DENIED),
        (400, {"param": "service_tier"}, Kind.PARAMETER), (409, {}, Kind.TRANSIENT),
        (404, {}, Kind.DENIED), (422, {"code": "unknown_parameter"}, Kind.PARAMETER),
        (503, {}, Kind.TRANSIENT), (408, {}, Kind.BROKEN), (500, {}, Kind.BROKEN),
        (529, {}, Kind.BROKEN), (400, {"param": "response_format"}, Kind.NO_SCHEMA),
        (422, {"param": "response_format.type"}, Kind.NO_SCHEMA),
        (422, {"message": {"detail": [{"loc": ["body", "temperature"], "msg": "m", "type": "t"}]}},
         Kind.PARAMETER),
        (422, {"detail": [{"loc": ["body", "max_tokens"], "msg": "m", "type": "extra_forbidden"}]},
         Kind.PARAMETER), (422, {"detail": [{"loc": ["body", "x"], "type": "t"}]}, Kind.ROW),
        (400, {"param": "max_tokens", "code": "unsupported_parameter"}, Kind.PARAMETER),
        (400, {"param": "max_tokens", "code": "invalid_value"}, Kind.ROW),
        (400, {"message": "Your credit balance is too low"}, Kind.BILLING),
        (403, {"message": "You exceeded your current quota."}, Kind.BILLING),
        (429, {"message": "Quota exceeded for requests per minute"}, Kind.RATE_LIMIT),
        (400, [{"error": {"code": 400, "message": "m", "param": "temperature"}}], Kind.PARAMETER),
        (499, {}, Kind.BROKEN), (424, {}, Kind.TRANSIENT),
        (400, {"code": "content_filter"}, Kind.REFUSED), (413, {}, Kind.ROW),
        (400, {"code": "context_length_exceeded", "param": "messages"}, Kind.ROW),
    ],
)  # fmt: skip
def test_what_an_error_answer_means(status: int, error: Any, meaning: Kind) -> None:
    assert failure_of(status, error, {}).kind is meaning


def test_a_refused_parameter_is_named_with_its_value() -> None:
    strong = StrongConfig(model="m", max_cost_usd=Decimal(1), temperature=0.5)
    limits = "strong.max_tokens_field (max_completion_tokens) and strong.max_output_tokens (300)"
    for param, named in (("temperature", "strong.temperature (0.5)"), ("max_tokens", limits)):
        error = {"param": param, "message": "no", "code": "unsupported_value"}
        said = str(run_error(failure_of(400, error, {}), strong))
        assert said.endswith(f"HTTP 400 unsupported_value: no. Check {named}")


def test_words_in_a_form_of_the_servers_own() -> None:
    for error in ({"errors": [{"title": "no such plan"}]}, {"fault": {"faultstring": "no plan"}}):
        assert failure_of(400, error, {}).reason == f"HTTP 400: {json.dumps(error)}"
    assert failure_of(403, {"code": 403, "message": None}, {}).reason == "HTTP 403"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Request too large: Limit 30000, Requested 37313. It must be reduced", Kind.ROW),
        ("limit 30,000, requested 37,313.", Kind.ROW),
        ("Rate limit reached: Limit 30000, Used 29900, Requested 313", Kind.RATE_LIMIT),
        ("Rate limit reached: Limit 30,000, Requested 313", Kind.RATE_LIMIT),
        ("Rate limit reached: Limit 30,000, Used 29,900, Requested 313", Kind.RATE_LIMIT),
        ("Rate limit reached: limit 1M, requested 37313", Kind.RATE_LIMIT),
        ("Rate limit reached: limit 9, requested 10.5k", Kind.RATE_LIMIT),
        ("Rate limit reached", Kind.RATE_LIMIT),
    ],
)
def test_a_text_that_no_wait_makes_small_enough(said: str, kind: Kind) -> None:
    assert failure_of(429, {"message": said, "code": "rate_limit_exceeded"}, {}).kind is kind


ENDS = {Fault.PROVIDER: ProviderDown, Fault.RUN: EscalationError, Fault.QUESTION: EscalationError}


@pytest.mark.parametrize("kind", Kind)
def test_the_error_that_ends_a_run(kind: Kind) -> None:
    failure = RequestFailed(kind, "HTTP 418", status=418)
    assert not failure.unreachable
    assert RequestFailed(kind, "no status").unreachable is (kind is Kind.TRANSIENT)
    ends = run_error(failure, StrongConfig(model="m", max_cost_usd=Decimal(1), api_key_env="KEY"))
    wanted = PausedError if kind is Kind.BILLING else ENDS[failure.meaning.fault]
    assert type(ends) is wanted and "HTTP 418" in str(ends)
    assert ("KEY" in str(ends)) is (wanted is EscalationError)
