"""What an answer is worth, what a row's answers come to, and what every failure means."""

import json
from decimal import Decimal
from typing import Any

import pytest

from ray_judge.config import StrongConfig
from ray_judge.escalation.answers import (
    RowAnswer,
    answer_row,
    combine,
    failed_answer,
    read_answer,
    read_json,
    read_reply,
)
from ray_judge.failures import Kind, RequestFailed
from ray_judge.records import Answer, Outcome, Usage, Verdict

from .test_questions import maker


def body(content: Any = "{}", refusal: Any = None, finish: Any = "stop", **changes: Any) -> str:
    document = {
        "id": "x",
        "model": "m",
        "choices": [{"message": {"content": content, "refusal": refusal}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
        **changes,
    }
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", '{"choices": []}', '{"choices": [{}]}', '{"choices": {}}',
     '{"choices": [{"message": null}]}', '{"choices": [{"message": "hi"}]}', "[" * 100_000,
     "<html></html>"],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_a_body_that_is_no_completion_was_computed_and_lost(text: str) -> None:
    with pytest.raises(RequestFailed, match="not a chat completion") as caught:
        read_reply(read_json(text), {})
    assert caught.value.kind is Kind.AMBIGUOUS


@pytest.mark.parametrize(
    "usage",
    [None, [], "10", {"completion_tokens": None}, {"prompt_tokens": -1}, {"completion_tokens": -1},
     {"prompt_tokens": "x"}, {"prompt_tokens": None}, {"prompt_tokens": 0},
     {"prompt_tokens": 10**18}, {"prompt_tokens": True},
     {"completion_tokens": 0}, {"prompt_tokens_details": [1]},
     {"prompt_tokens_details": {"cached_tokens": 5}},
     {"prompt_tokens_details": {"cached_tokens": -5}}],
)  # fmt: skip
def test_usage_that_cannot_be_meant_is_no_usage(usage: Any) -> None:
    if isinstance(usage, dict):
        usage = {"prompt_tokens": 1, "completion_tokens": 1, **usage}
    assert read_reply(read_json(body(usage=usage)), {}).usage is None


@pytest.mark.parametrize(
    "more",
    [{"total_tokens": 1010}, {"completion_tokens_details": {"reasoning_tokens": 998}},
     {"total_tokens": 1010, "completion_tokens_details": {"reasoning_tokens": 998}}],
)  # fmt: skip
def test_reasoning_that_the_count_of_the_answer_leaves_out(more: dict[str, Any]) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, **more}
    read = read_reply(read_json(body(usage=usage)), {}).usage
    assert read is not None and (read.input_tokens, read.output_tokens) == (10, 1000)


def test_what_was_written_to_the_prompt_cache_has_its_price() -> None:
    for counts in (
        {"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 5}},
        {"prompt_tokens_details": {"cached_tokens": 2}, "cache_creation_input_tokens": 5},
    ):
        usage = {"prompt_tokens": 10, "completion_tokens": 2, **counts}
        assert read_reply(read_json(body(usage=usage)), {}).usage == Usage(10, 2, 2, 5)


def test_an_error_beside_choices_is_an_error() -> None:
    broken = {"finish_reason": "error", "message": {"content": ""}, "error": {"code": 502}}
    for told in ({"choices": [broken]}, {"error": {"message": "upstream died", "code": 502}}):
        with pytest.raises(RequestFailed, match="HTTP 502") as caught:
            read_reply(read_json(body("", **told)), {})
        assert caught.value.kind is Kind.BROKEN


def events(*deltas: str, **last: Any) -> str:
    """A stream of such pieces of the content, and what its last chunk has."""
    chunks = [{"id": "r1", "choices": [{"delta": {"content": one}}]} for one in deltas]
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    chunks += [{"choices": [{"delta": {}, **last}]}, {"choices": [], "usage": usage}]
    return "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"


def test_a_stream_that_nobody_asked_for() -> None:
    found = read(events('{"verdict":', "", ' "A"}', finish_reason="stop"))
    assert (found.verdict, found.usage, found.response_id) == ("A", Usage(10, 2), "r1")
    assert read(events('{"verdict":', finish_reason="length")).outcome is Outcome.UNPARSEABLE
    assert read(events('{"verdict": "A"}')).verdict is None  # it was cut: the end is missing
    assert read_json("data: x") is None
    with pytest.raises(RequestFailed, match="HTTP 429: slow down"):
        read('data: {"error": {"message": "slow down", "code": 429}}')


def test_what_stands_before_the_json() -> None:
    text = body('{"verdict": "A"}')
    assert read(f"\ufeff: PROCESSING\n\n{text}").verdict == "A"


def test_odd_fields_become_text_or_nothing() -> None:
    text = body("a\ud800b", refusal=["no"], finish=3, id=7, model=["m"], service_tier=None)
    reply = read_reply(read_json(text), {})
    assert (reply.text, reply.refusal, reply.finish_reason) == ("a?b", None, None)
    assert (reply.response_id, reply.model, reply.usage) == (None, None, Usage(10, 2))


def read(text: str, *, last: bool = False, tier: str | None = None) -> Answer:
    """Read a body; the question has 100 input tokens at most, and its answer 300."""
    reply = read_reply(read_json(text), {})
    return read_answer(maker(), "k", 100, reply, ("l-1", 3), 7.0, last=last, tier=tier)


def test_a_verdict_and_what_it_cost() -> None:
    answer = read(body('{"verdict": "B"}'))
    assert (answer.key, answer.lease, answer.slot, answer.at) == ("k", "l-1", 3, 7.0)
    assert (answer.outcome, answer.verdict, answer.final) == (Outcome.RESOLVED, "B", True)
    assert (answer.model, answer.response_id, answer.usage) == ("m", "x", Usage(10, 2))
    # gpt-4.1: $2 and $8 per million tokens, half of it in a batch, whatever tier the reply names
    assert answer.cost_usd == Decimal("0.000036")
    batch = read(body('{"verdict": "B"}', service_tier="default"), tier="batch")
    assert batch.cost_usd == Decimal("0.000018")


@pytest.mark.parametrize(
    ("cost", "usd"),
    [(0.5, "0.5"), (1, "1"), (1e-9, "0.000036"), (0, "0.000036"), (-1, "0.000036"),
     (True, "0.000036"), ("0.5", "0.000036"), (None, "0.000036"), (float("nan"), "0.000036"),
     (float("inf"), "0.000036"), (10**9, "0.000036")],
)  # fmt: skip
def test_what_openrouter_says_that_it_costs_counts_where_it_is_more(cost: Any, usd: str) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "cost": cost}
    reply = read_reply(read_json(body('{"verdict": "A"}', usage=usage)), {})
    places = {
        "https://openrouter.ai/api/v1": True, "https://eu.openrouter.ai/api/v1": True,
        "https://notopenrouter.ai/v1": False, "https://openrouter.ai.example/v1": False,
    }  # fmt: skip
    for base_url, counts in places.items():
        made = maker(base_url=base_url)
        answer = read_answer(made, "k", 100, reply, ("l-1", 3), 7.0, last=False)
        assert answer.cost_usd == (Decimal(usd) if counts else Decimal("0.000036"))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("text", "outcome", "error"),
    [
        (body(None, refusal="I will not."), Outcome.REFUSED, "I will not."),
        (body('{"verdict": "A"}', refusal="n" * 900), Outcome.REFUSED, "n" * 300),
        (body('{"verdict": "C"}'), Outcome.UNPARSEABLE, "'C' is not one of A, B, tie"),
    ],
)  # fmt: skip
def test_an_unusable_answer_is_paid(text: str, outcome: Outcome, error: str, last: bool) -> None:
    answer = read(text, last=last)
    assert (answer.outcome, answer.verdict, answer.error) == (outcome, None, error)
    assert answer.final is last and answer.cost_usd == Decimal("0.000036")


def test_what_a_filter_stopped_is_not_asked_again() -> None:
    """With or without a message: some servers send none."""
    for text in (
        body("", finish="content_filter"),
        body(choices=[{"finish_reason": "content_filter"}]),
    ):
        answer = read(text)
        assert (answer.outcome, answer.error) == (Outcome.REFUSED, "stopped by the content filter")
        assert answer.final and answer.cost_usd == Decimal("0.000036")


def test_what_was_cut_is_not_asked_again_at_the_same_limit() -> None:
    answer = read(body("Let me", finish="length"))
    said = "the answer is not JSON: 'Let me' (cut at strong.max_output_tokens, 300: raise it)"
    assert (answer.outcome, answer.error) == (Outcome.UNPARSEABLE, said)
    assert (answer.final, answer.limit) == (True, 300)
    assert read(body('{"verdict": "A"}', finish="length")).verdict == "A"
    thought = {"prompt_tokens": 10, "completion_tokens": 300}
    thought |= {"completion_tokens_details": {"reasoning_tokens": 300}}
    said = str(read(body("", finish="length", usage=thought)).error)
    assert said.endswith("strong.max_output_tokens, 300: raise it, as the model reasons first)")


def test_answers_as_servers_write_them() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "B"}]}]
    parts += [{"type": "text", "text": '{"verdict":'}, {"type": "text", "text": ' "A"}'}]
    assert read(body(parts)).verdict == "A"
    assert read(body(['{"verdict":', ' "A"}'])).verdict == "A"
    tool = {"function": {"name": "verdict", "arguments": '{"verdict": "B"}'}}
    for told, usable in (
        ({"tool_calls": [tool]}, "stop"),
        ({"reasoning_content": '{"verdict": "B"}'}, "stop"),
        ({"reasoning_content": '{"verdict": "B"}'}, None),
    ):
        choice = {"message": {"content": None, **told}, "finish_reason": usable}
        assert read(body(choices=[choice])).verdict == ("B" if usable else None)
    nothing = read(body(choices=[]))
    assert (nothing.outcome, nothing.error) == (Outcome.UNPARSEABLE, "the answer is empty")
    assert nothing.cost_usd == Decimal("0.000036") and not nothing.final


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        ({"message": "provider error", "code": 429}, Kind.RATE_LIMIT, "HTTP 429: provider error"),
        ({"message": "x", "code": "502"}, Kind.BROKEN, "HTTP 502: x"),
        ({"message": "x", "code": "rate_limit_exceeded"}, Kind.RATE_LIMIT,
         "HTTP 429 rate_limit_exceeded: x"),
        ({"message": "bad key sk-abcdefgh1234", "type": "authentication_error"}, Kind.DENIED,
         "HTTP 401 authentication_error: bad key …"),
        ("it broke", Kind.BROKEN, "HTTP 500"), ({"message": None}, Kind.BROKEN, "HTTP 500"),
        ({"message": "n" * 900, "code": 403}, Kind.DENIED, "HTTP 403: " + "n" * 300),
    ],
)  # fmt: skip
def test_an_error_in_an_answer_of_200(error: Any, kind: Kind, reason: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        read(json.dumps({"id": None, "choices": None, "usage": None, "error": error}))
    assert caught.value.kind is kind and caught.value.reason.startswith(reason)


@pytest.mark.parametrize(("text", "output"), [('{"verdict":"A"}', 15), ("é" * 400, 300)])
def test_what_a_server_does_not_count_is_bounded_from_above(text: str, output: int) -> None:
    answer = read(body(text, usage=None, model=None))
    assert answer.usage == Usage(100, output, estimated=True) and answer.model == "gpt-4.1"


@pytest.mark.parametrize(
    ("orders", "samples", "verdict", "prob"),
    [
        (["B"], 1, "B", None), ([[3.0]], 1, 3.0, None), (["ABB"], 3, "B", 2 / 3),
        (["B"], 3, "B", 1 / 3),  # two answers were unusable: who is silent does not agree
        (["AB"], 2, "tie", 0), (["ABT"], 3, "tie", 1 / 3), (["AABT"], 4, "A", 1 / 2),
        ([[7.0, 7.0, 9.0]], 3, 7, 2 / 3), ([[4.0, 6.0]], 2, 4, 1 / 2),
        ([[2.0, 6.0, 7.0]], 3, 6, 1 / 3),  # no score leads: the one nearest to the mean
        # The other order's votes are swapped; orders that disagree are a tie.
        (["A", "B"], 1, "A", None), (["T", "T"], 1, "tie", None), (["A", "A"], 1, "tie", None),
        (["A", "T"], 1, "tie", None), (["AAB", "BBB"], 3, "A", 5 / 6),
        (["AAA", "AAA"], 3, "tie", 0),  # nobody said a tie, however sure each order is of its own
        (["AAT", "AAT"], 3, "tie", 1 / 3),
    ],
)  # fmt: skip
def test_votes(orders: list[Any], samples: int, verdict: Verdict, prob: float | None) -> None:
    votes = [["tie" if vote == "T" else vote for vote in order] for order in orders]
    assert combine(votes, samples) == (verdict, prob)


def row(*said: str | None, **strong: Any) -> RowAnswer:
    """What these answers come to: a verdict, `refused`, `failed`, or None for no answer yet."""
    fields: dict[str, Any] = {"model": "m", "max_cost_usd": 1, **strong}
    answers: list[Answer | None] = []
    for text in said:
        if text in ("refused", "failed"):
            kind = Kind.REFUSED if text == "refused" else Kind.ROW
            answers.append(failed_answer("k", kind, text, Decimal(0), ("l", 0), 1.0, final=True))
        else:
            answers.append(None if text is None else read(body(json.dumps({"verdict": text}))))
    return answer_row(answers, StrongConfig(**fields))


REFUSED = RowAnswer(Outcome.REFUSED, error="refused")
DENIED = RowAnswer(Outcome.DENIED_BUDGET)


@pytest.mark.parametrize(
    ("said", "strong", "found"),
    [
        (["B"], {}, RowAnswer(Outcome.RESOLVED, "B")),
        (["refused"], {}, REFUSED),
        ([None], {}, DENIED),
        (["A", "A"], {"swap": True}, RowAnswer(Outcome.RESOLVED, "tie")),
        (["A", None], {"swap": True}, DENIED),
        (["A", "refused"], {"swap": True}, REFUSED),
        ([None, "refused"], {"swap": True}, REFUSED),
        (["A", "refused", "A"], {"samples": 3}, RowAnswer(Outcome.RESOLVED, "A", 2 / 3)),
        (["A", "refused", None], {"samples": 3}, DENIED),
        (["refused", "failed"], {"samples": 2}, REFUSED),
        (["A", "failed", "B", "B"], {"samples": 2, "swap": True},
         RowAnswer(Outcome.RESOLVED, "A", 3 / 4)),
        (["A", "A", "refused", "failed"], {"samples": 2, "swap": True}, REFUSED),
        (["A", "B", "A", "A", "A"], {"samples": 5, "abstain_below": 0.8},
         RowAnswer(Outcome.RESOLVED, "A", 0.8)),
        (["A", "B", "A", "A", "B"], {"samples": 5, "abstain_below": 0.8},
         RowAnswer(Outcome.ABSTAINED, "A", 0.6)),
        (["A", "B"], {"samples": 2, "ties": False}, RowAnswer(Outcome.RESOLVED, "A", 0.5)),
    ],
)  # fmt: skip
def test_what_rows_come_to(
    said: list[str | None], strong: dict[str, Any], found: RowAnswer
) -> None:
    assert row(*said, **strong) == found
