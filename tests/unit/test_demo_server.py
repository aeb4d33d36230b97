"""The simulated provider over real HTTP, seen through the real OpenAI SDK without retries."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from openai import DefaultHttpxClient, OpenAI
from pydantic import ValidationError

from ray_judge.demo.server import LookupAnswers, RunningServer, ServerConfig, running_server
from ray_judge.demo.server.config import StrongAnswers
from ray_judge.demo.server.fault_kinds import ALL_KINDS, HTTP_ERRORS
from ray_judge.demo.server.lookup import LookupIndex
from ray_judge.demo.server.rate_limits import format_reset
from ray_judge.demo.server.requests import prompt_tokens

pytestmark = pytest.mark.timeout(30)
ROOT = Path(__file__).resolve().parents[2]

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "reason": {"type": "string"},
                "verdict": {"type": "string", "enum": ["A", "B", "tie"]},
            },
            "required": ["reason", "verdict"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    with running_server(ServerConfig(api_key="test-key")) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture(scope="module")
def sdk(process: RunningServer) -> Iterator[OpenAI]:
    url, key = process.base_url, process.api_key
    with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture
def client(server: RunningServer, sdk: OpenAI) -> Iterator[OpenAI]:
    """The SDK on a clean server, which must not have met a defect of its own afterwards."""
    yield sdk
    assert "crashed" not in server.stats()["by_status"]


def ask(client: OpenAI, text: str = "Which is better?", **extra: Any) -> Any:
    messages: Any = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
    return client.chat.completions.create(model="strong", messages=messages, **extra)


def fault(server: RunningServer, kind: str, **more: Any) -> None:
    server.configure(faults=[{"kind": kind, "probability": 1.0, **more}])


def until(check: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


# --- answers, usage and money -------------------------------------------------------------------


def test_answer_usage_and_exact_bill(server: RunningServer, client: OpenAI) -> None:
    server.configure(
        reasoning_tokens=64,
        cached_tokens=10,
        prices={"input": "0.15", "cached_input": "0.075", "output": "0.60"},
    )
    answer = ask(client, "question " * 30, response_format=SCHEMA)
    content = json.loads(answer.choices[0].message.content)
    assert set(content) == {"reason", "verdict"}
    assert content["verdict"] in {"A", "B", "tie"}
    assert answer.choices[0].finish_reason == "stop"
    assert answer.system_fingerprint == "simulator"
    assert answer.service_tier == "default"
    usage = answer.usage
    assert usage.completion_tokens_details.reasoning_tokens == 64
    assert usage.completion_tokens > 64
    assert usage.prompt_tokens_details.cached_tokens == 10
    usd = (
        Decimal(usage.prompt_tokens - 10) * Decimal("0.15")
        + 10 * Decimal("0.075")
        + Decimal(usage.completion_tokens) * Decimal("0.60")
    ) / 1_000_000
    stats = server.stats()
    assert Decimal(stats["total_usd"]) == usd
    assert stats["billed"] == 1
    [bill] = server.bills()
    assert Decimal(bill["usd"]) == usd
    assert abs(bill["answered_monotonic"] - time.monotonic()) < 5
    assert abs(bill["answered_wall"] - time.time()) < 5


def test_prompt_tokens_are_a_fixed_count(client: OpenAI) -> None:
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "é" * 9}]
    assert prompt_tokens({"messages": messages}) == 6 + 6  # 24 bytes / 4, 3 per message
    assert ask(client, "é" * 9).usage.prompt_tokens == 12


def test_same_request_twice_is_billed_twice_and_seen(server: RunningServer, client: OpenAI) -> None:
    first, second = ask(client, user="x"), ask(client, user="y", store=False)
    assert first.choices[0].message.content == second.choices[0].message.content
    ask(client, "another question")
    stats = server.stats()
    assert (stats["billed"], stats["billed_requests"], stats["billed_twice"]) == (3, 2, 1)
    assert [bill["attempt"] for bill in server.bills()] == [1, 2, 1]


def test_flex_is_half_price_when_permitted(server: RunningServer, client: OpenAI) -> None:
    assert ask(client, service_tier="flex").service_tier == "flex"
    assert ask(client, service_tier="auto").service_tier == "default"
    server.configure(permit_flex=False)
    assert ask(client, service_tier="flex").service_tier == "default"
    flex, full, refused = (Decimal(bill["usd"]) for bill in server.bills())
    assert flex * 2 == full == refused


def test_score_schema_with_reference_and_bounds(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"score": {"$ref": "#/$defs/Score"}, "sure": {"type": "boolean"}},
        "$defs": {"Score": {"type": "integer", "minimum": 1, "maximum": 5}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    seen = set()
    for number in range(20):
        answer = ask(client, f"rate {number}", response_format=wanted)
        seen.add(json.loads(answer.choices[0].message.content)["score"])
    assert seen <= {1, 2, 3, 4, 5}
    assert len(seen) > 2


def test_questions_in_words(server: RunningServer, client: OpenAI) -> None:
    server.configure(ties=False, scores=[3, 5])
    verdicts, scores = set(), set()
    for number in range(25):
        text = f'{number} says "score". Reply with the one field "verdict".'
        verdicts.add(json.loads(ask(client, text).choices[0].message.content)["verdict"])
        text = f'{number} says "verdict". Reply with the one field "score".'
        scores.add(json.loads(ask(client, text).choices[0].message.content)["score"])
    assert verdicts == {"A", "B"}
    assert scores == {3, 4, 5}


def test_schemas_that_providers_refuse(server: RunningServer, client: OpenAI) -> None:
    loose = {"type": "object", "properties": {"verdict": {"type": "string"}}}
    listed = {**loose, "properties": {"verdict": {"type": "array"}}}
    for wrapper in (
        {"name": "v", "strict": True, "schema": loose},
        {"name": "v", "strict": True, "schema": {**loose, "additionalProperties": False}},
        {"name": "v", "strict": False, "schema": listed},
        {"name": "v", "schema": {"type": "string"}},
        {"schema": loose},
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, response_format={"type": "json_schema", "json_schema": wrapper})
        assert caught.value.param == "response_format"
    assert server.stats()["billed"] == 0


def test_log_probabilities_in_the_shape_of_the_api(server: RunningServer, client: OpenAI) -> None:
    server.configure(
        certainty={"sure": [0.8, 0.8], "unsure": [0.3, 0.3], "unsure_containing": "?!"}
    )
    assert ask(client, response_format=SCHEMA).choices[0].logprobs is None
    for text, certainty in (("Which?", 0.8), ("Which?!", 0.3)):
        choice = ask(client, text, response_format=SCHEMA, logprobs=True, top_logprobs=5).choices[0]
        tokens = choice.logprobs.content
        assert b"".join(bytes(one.bytes) for one in tokens).decode() == choice.message.content
        assert all(len(one.top_logprobs) == 5 for one in tokens)
        for one in tokens:
            listed = [other.logprob for other in one.top_logprobs]
            assert listed == sorted(listed, reverse=True) and max(listed) <= 0
        path = math.exp(sum(one.logprob for one in tokens))
        assert path == pytest.approx(certainty, rel=5e-3)
    server.configure(certainty={"given": False})
    assert ask(client, logprobs=True).choices[0].logprobs is None


@pytest.mark.parametrize(
    "extra", [{"top_logprobs": 5}, {"logprobs": True, "top_logprobs": 21}], ids=["alone", "many"]
)
def test_log_probabilities_that_the_api_does_not_give(
    server: RunningServer, client: OpenAI, extra: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **extra)
    assert caught.value.param == "top_logprobs"


def test_output_limit_cuts_the_answer(server: RunningServer, client: OpenAI) -> None:
    server.configure(reasoning_tokens=50)
    answer = ask(client, max_completion_tokens=20)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == ""
    assert answer.usage.completion_tokens == 20


def test_refused_parameters(server: RunningServer, client: OpenAI) -> None:
    server.configure(refuse_response_format=True, refuse_parameters=["temperature"])
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format=SCHEMA)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "response_format")
    with pytest.raises(openai.BadRequestError):
        ask(client, temperature=0.5)
    assert json.loads(ask(client).choices[0].message.content)["verdict"] in {"A", "B", "tie"}
    assert server.stats()["billed"] == 1


def test_models_context_and_bodies(server: RunningServer, client: OpenAI) -> None:
    server.configure(models=["strong"], context_tokens=100)
    [model] = client.models.list().data
    assert (model.id, model.owned_by) == ("strong", "ray_judge-simulator")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gone", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "x" * 1000)
    assert long.value.code == "context_length_exceeded"
    headers = {"Authorization": f"Bearer {server.api_key}"}
    url = f"{server.base_url}/chat/completions"
    assert httpx.post(url, content=b"{", headers=headers).status_code == 400
    bodies: list[Any] = [[], {}, {"model": "strong", "messages": ["x"]}]
    for body in bodies:
        assert httpx.post(url, json=body, headers=headers).status_code == 400
    assert httpx.get(f"{server.base_url}/nothing", headers=headers).status_code == 404


# --- who answers --------------------------------------------------------------------------------

ROWS = [
    {"instruction": "Capital of France?", "response_a": "Paris", "response_b": "Paris, of course"},
    {"instruction": "Capital of France? Why?", "response_a": "No", "response_b": "Because\n\nyes"},
    {"instruction": 'Say "hi"\nand <b>', "response_a": "hi & ho", "response_b": 'He said "hi"\n.'},
    {"instruction": "Yes or No?", "response_a": "No", "response_b": "Yes"},
]
VERDICTS = ["B", "A", "A", "B"]
TEMPLATES = [
    "You are a judge.\n[Question]\n{q}\n[A]\n{a}\n[B]\n{b}\n[End]",
    "Judge. Question: {q} <a>{a}</a> <b>{b}</b> Say A or B.",
]


def write_rows(path: Path) -> Path:
    rows = [{**row, "verdict": v} for row, v in zip(ROWS, VERDICTS, strict=True)]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("template", [*TEMPLATES, "json"])
def test_lookup_finds_the_row_in_both_orders(template: str, tmp_path: Path) -> None:
    index = LookupIndex(LookupAnswers(path=write_rows(tmp_path / "rows.json")))
    for row in ROWS:
        for swapped in (False, True):
            a, b = row["response_a"], row["response_b"]
            a, b = (b, a) if swapped else (a, b)
            if template == "json":
                prompt = json.dumps({"question": row["instruction"], "first": a, "second": b})
            else:
                prompt = template.format(q=row["instruction"], a=a, b=b)
            match = index.find(prompt)
            assert match is not None, prompt
            assert match.row.instruction == row["instruction"], prompt
            assert match.swapped is swapped, prompt
    assert index.find("Nothing that we know") is None


def test_lookup_over_http_flips_and_counts_unknown(
    server: RunningServer, client: OpenAI, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.json")
    server.configure(answers={"kind": "lookup", "path": str(path)})
    row = ROWS[3]
    for a, b, verdict in (("No", "Yes", "B"), ("Yes", "No", "A")):
        prompt = TEMPLATES[0].format(q=row["instruction"], a=a, b=b)
        content = ask(client, prompt, response_format=SCHEMA).choices[0].message.content
        assert json.loads(content)["verdict"] == verdict
    assert server.stats()["unknown_questions"] == 0
    ask(client, "Nothing that we know")
    assert server.stats()["unknown_questions"] == 1


def test_simulated_strong_is_right_as_often_as_asked(tmp_path: Path) -> None:
    from ray_judge.demo.server.answers import LookupPolicy

    path = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": f"q{n}", "response_a": f"a{n}.", "response_b": f"b{n}.", "verdict": "A"}
        for n in range(1000, 3000)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    policy = LookupPolicy(StrongAnswers(path=path, accuracy=0.9, seed=3))
    right = flipped = 0
    for row in rows:
        texts = (row["instruction"], row["response_a"], row["response_b"])
        body: Any = {"messages": [{"role": "user", "content": "\n".join(texts)}]}
        swap: Any = {
            "messages": [{"role": "user", "content": f"{texts[0]}\n{texts[2]}\n{texts[1]}"}]
        }
        verdict = policy.opinion(body, "0" * 64).verdict
        right += verdict == "A"
        flipped += {"A": "B", "B": "A", "tie": "tie"}[verdict] == policy.opinion(swap, "").verdict
    assert 1750 < right < 1850
    assert flipped == len(rows)
    assert policy.unknown == 0


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(HTTP_ERRORS) - {"flex_unavailable"}))
def test_http_errors_are_seen_and_not_billed(
    kind: str, server: RunningServer, client: OpenAI
) -> None:
    fault(server, kind, attempts=[1])
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    error = HTTP_ERRORS[kind]
    assert caught.value.status_code == error.status
    assert (caught.value.code, caught.value.type) == (error.code, error.type)
    assert ("retry-after" in caught.value.response.headers) == (
        kind in {"rate_limit", "unavailable"}
    )
    stats = server.stats()
    assert stats["billed"] == 0
    assert stats["faults_injected"] == {kind: 1}
    assert stats["by_status"] == {str(error.status): 1}
    ask(client)  # the second attempt is spared
    assert server.stats()["billed"] == 1


@pytest.mark.parametrize(
    ("style", "header"), [("seconds", "2"), ("ms", "1500"), ("date", "GMT"), ("none", None)]
)
def test_retry_after_styles(
    style: str, header: str | None, server: RunningServer, client: OpenAI
) -> None:
    fault(server, "rate_limit", retry_after_s=1.5, retry_after_style=style)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client)
    headers = caught.value.response.headers
    value = headers.get("retry-after-ms" if style == "ms" else "retry-after")
    assert (value is None) == (header is None)
    assert (header or "") in (value or "")


def test_flex_unavailable_strikes_flex_only(server: RunningServer, client: OpenAI) -> None:
    fault(server, "flex_unavailable")
    ask(client)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, service_tier="flex")
    assert caught.value.code == "resource_unavailable"


@pytest.mark.parametrize(
    ("kind", "billed"),
    [
        ("hang", 0),
        ("hang_billed", 1),
        ("reset_before", 0),
        ("reset_after", 1),
        ("broken_body", 1),
        ("late", 1),
    ],
)
def test_lost_answers(kind: str, billed: int, server: RunningServer, client: OpenAI) -> None:
    fault(server, kind, extra_ms=600)
    with pytest.raises(openai.APIConnectionError) as caught:
        ask(client.with_options(timeout=0.3))
    timed_out = isinstance(caught.value, openai.APITimeoutError)
    assert timed_out == (kind in {"hang", "hang_billed", "late"})
    until(lambda: server.stats()["in_flight"] == 0)
    stats = server.stats()
    assert (stats["billed"], stats["by_status"]) == (billed, {"dropped": 1})
    assert all(bill["answered_wall"] is None for bill in server.bills())
    assert all(bill["fault"] == kind for bill in server.bills())


def test_truncated_body_and_gateway_page(server: RunningServer, client: OpenAI) -> None:
    fault(server, "truncated_body")
    with pytest.raises((json.JSONDecodeError, openai.APIError)):
        ask(client)
    assert server.stats()["billed"] == 1
    fault(server, "bad_gateway_html")
    with pytest.raises(openai.InternalServerError):
        ask(client)
    fault(server, "server_error_billed")
    with pytest.raises(openai.InternalServerError):
        ask(client)
    assert server.stats()["billed"] == 2


def test_duplicate_answer_is_billed_once(server: RunningServer, client: OpenAI) -> None:
    """Twice on one connection: whether the second is taken for the next answer is a race."""
    fault(server, "duplicate", requests=[1], probability=0)
    first = ask(client)
    assert server.stats()["billed"] == 1
    with client.with_options(http_client=DefaultHttpxClient()) as another:
        second = ask(another)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.id != second.id
    assert server.stats()["billed"] == 2


@pytest.mark.parametrize(
    "kind", ["refusal", "content_filter", "cut", "malformed_json", "wrong_verdict", "fenced_json"]
)
def test_model_faults_are_billed_answers(kind: str, server: RunningServer, client: OpenAI) -> None:
    fault(server, kind)
    answer = ask(client, response_format=SCHEMA)
    message, finish = answer.choices[0].message, answer.choices[0].finish_reason
    assert finish == {"content_filter": "content_filter", "cut": "length"}.get(kind, "stop")
    assert (message.refusal is not None) == (kind == "refusal")
    if kind in {"cut", "malformed_json", "fenced_json"}:
        with pytest.raises(json.JSONDecodeError):
            json.loads(message.content)
    if kind == "fenced_json":
        assert json.loads(message.content.split("```")[1].removeprefix("json"))["verdict"]
    if kind == "wrong_verdict":
        assert json.loads(message.content)["verdict"] not in {"A", "B", "tie"}
    [bill] = server.bills()
    assert (bill["fault"], bill["completion_tokens"]) == (kind, answer.usage.completion_tokens)


def test_missing_usage_and_empty_content(server: RunningServer, client: OpenAI) -> None:
    fault(server, "missing_usage")
    assert ask(client).usage is None
    fault(server, "empty_content")
    assert ask(client).choices[0].message.content == ""
    assert server.stats()["billed"] == 2


def test_random_faults_repeat_whatever_the_order(server: RunningServer, client: OpenAI) -> None:
    server.configure(faults=[{"kind": "server_error", "probability": 0.3}], fault_seed=5)

    def struck(order: list[int]) -> set[int]:
        server.reset()
        hit = set()
        for number in order:
            try:
                ask(client, f"question {number}")
            except openai.InternalServerError:
                hit.add(number)
        return hit

    first = struck(list(range(40)))
    assert 4 < len(first) < 20
    assert struck(list(reversed(range(40)))) == first
    server.configure(fault_seed=6)
    assert struck(list(range(40))) != first


def test_rules_by_number_text_and_count(server: RunningServer, client: OpenAI) -> None:
    server.configure(
        faults=[
            {"kind": "server_error", "requests": [2]},
            {"kind": "refusal", "contains": "naughty", "max_times": 1},
        ]
    )
    ask(client, "one")
    with pytest.raises(openai.InternalServerError):
        ask(client, "two")
    assert ask(client, "a naughty one").choices[0].message.refusal
    assert ask(client, "another naughty one").choices[0].message.refusal is None
    assert server.stats()["faults_injected"] == {"server_error": 1, "refusal": 1}


# --- limits, quota, keys ------------------------------------------------------------------------


def test_rpm_limit_answers_429_with_headers(server: RunningServer, client: OpenAI) -> None:
    server.configure(limits={"rpm": 120, "burst_s": 1.0})
    raw = client.chat.completions.with_raw_response
    message: Any = [{"role": "user", "content": "x"}]
    headers = raw.create(model="m", messages=message).headers
    assert headers["x-ratelimit-limit-requests"] == "120"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-reset-requests"].endswith("ms")
    raw.create(model="m", messages=message)
    with pytest.raises(openai.RateLimitError) as caught:
        raw.create(model="m", messages=message)
    assert caught.value.code == "rate_limit_exceeded"
    wait_ms = int(caught.value.response.headers["retry-after-ms"])
    assert 0 < wait_ms <= 500
    assert caught.value.response.headers["retry-after"] == "1"
    time.sleep(wait_ms / 1000 + 0.01)
    raw.create(model="m", messages=message)
    assert server.stats()["rate_limited"] == {"requests": 1, "tokens": 0}


def test_tpm_limit_and_headers_off(server: RunningServer, client: OpenAI) -> None:
    server.configure(limits={"tpm": 6000, "burst_s": 1.0}, rate_headers=False)
    text = "x" * 200
    ask(client, text, max_completion_tokens=40)  # 100 of 100 tokens, in debt or empty
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, text, max_completion_tokens=40)
    assert caught.value.type == "tokens"
    assert not [name for name in caught.value.response.headers if name.startswith("x-ratelimit")]
    with pytest.raises(openai.RateLimitError) as never:
        ask(client, text, max_completion_tokens=7000)
    assert "retry-after" not in never.value.response.headers


def test_reset_format() -> None:
    texts = [format_reset(s) for s in (0, 0.12, 1, 8.64, 360, 3661.5)]
    assert texts == ["0ms", "120ms", "1s", "8.64s", "6m0s", "1h1m1.5s"]


def test_quota_switch_and_quota_of_money(server: RunningServer, client: OpenAI) -> None:
    server.configure(quota_exhausted=True)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client)
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    server.configure(quota_exhausted=False, quota_usd="0.0001")
    ask(client)
    ask(client)
    with pytest.raises(openai.RateLimitError):
        ask(client)
    assert server.stats()["billed"] == 2


def test_wrong_key_is_refused_and_never_told(server: RunningServer) -> None:
    client = OpenAI(base_url=server.base_url, api_key="another-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(client)
    assert caught.value.code == "invalid_api_key"
    assert "another-key" not in str(caught.value)
    assert httpx.get(f"{server.base_url}/models").status_code == 401
    control = httpx.get(f"{server.base_url.removesuffix('/v1')}/control/config").text
    assert server.api_key not in control
    assert server.stats()["by_status"] == {"401": 2}


# --- latency, load ------------------------------------------------------------------------------


async def _load(server: RunningServer, count: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def one(number: int) -> None:
            body = {"model": "m", "messages": [{"role": "user", "content": f"q {number}"}]}
            url = f"{server.base_url}/chat/completions"
            async with session.post(url, json=body) as response:
                await response.read()
                statuses[response.status] += 1

        await asyncio.gather(*(one(number) for number in range(count)))
    return statuses


def test_latency_and_parallel_requests(server: RunningServer) -> None:
    server.configure(latency={"min_ms": 200, "max_ms": 250})
    started = time.monotonic()
    assert asyncio.run(_load(server, 50)) == {200: 50}
    assert 0.2 <= time.monotonic() - started < 5
    stats = server.stats()
    assert stats["max_in_flight"] >= 25
    assert (stats["in_flight"], stats["billed"], stats["billed_twice"]) == (0, 50, 0)


def test_client_that_leaves_is_billed_unless_told_otherwise(
    server: RunningServer, client: OpenAI
) -> None:
    server.configure(latency={"min_ms": 400, "max_ms": 400})
    for bill_abandoned, billed in ((True, 1), (False, 1)):
        server.configure(bill_abandoned=bill_abandoned)
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=0.1))
        until(lambda: server.stats()["in_flight"] == 0)
        assert server.stats()["billed"] == billed


# --- batches ------------------------------------------------------------------------------------


def lines_of(count: int, **more: Any) -> bytes:
    return b"".join(
        json.dumps(
            {
                "custom_id": f"row-{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "strong",
                    "messages": [{"role": "user", "content": f"question {n}"}],
                    **more,
                },
            }
        ).encode()
        + b"\n"
        for n in range(count)
    )


def create(client: OpenAI, content: bytes, **more: Any) -> Any:
    uploaded = client.files.create(file=("input.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **more,
    )


def results(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    text = client.files.content(file_id).text
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


def ended(client: OpenAI, batch_id: str) -> Any:
    active = {"validating", "in_progress", "finalizing", "cancelling"}
    until(lambda: client.batches.retrieve(batch_id).status not in active)
    return client.batches.retrieve(batch_id)


def test_batch_completes_at_half_price(server: RunningServer, client: OpenAI) -> None:
    server.configure(batches={"fail_lines": [3]})
    batch = create(client, lines_of(10), metadata={"job": "a1"})
    assert (batch.status, batch.metadata) == ("validating", {"job": "a1"})
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert batch.completed_at >= batch.in_progress_at >= batch.created_at
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 9, 1)
    output = results(client, batch.output_file_id)
    assert set(output) == {f"row-{n}" for n in range(10)} - {"row-2"}
    assert output["row-0"]["response"]["status_code"] == 200
    assert output["row-0"]["error"] is None
    failed = results(client, batch.error_file_id)
    assert failed["row-2"]["response"]["status_code"] == 500
    bills = {bill["custom_id"]: bill for bill in server.bills()}
    assert len(bills) == server.stats()["billed"] == 9
    batch_usd = Decimal(bills["row-0"]["usd"])
    messages: Any = [{"role": "user", "content": "question 0"}]
    client.chat.completions.create(model="strong", messages=messages)
    assert Decimal(server.bills()[-1]["usd"]) == 2 * batch_usd
    assert server.stats()["billed_twice"] == 1  # the same canonical request, by chat and by batch


def test_batch_expires_after_a_share(server: RunningServer, client: OpenAI) -> None:
    server.configure(batches={"expire_after_share": 0.4})
    batch = ended(client, create(client, lines_of(10)).id)
    assert batch.status == "expired"
    assert len(results(client, batch.output_file_id)) == 4
    errors = results(client, batch.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}
    assert len(errors) == 6
    assert server.stats()["billed"] == 4


def test_batch_by_hand_cancel_and_pages(server: RunningServer, client: OpenAI) -> None:
    server.configure(batches={"manual": True})
    made = [create(client, lines_of(2)).id for _ in range(3)]
    statuses = [server.advance_batch(made[0])["status"] for _ in range(4)]
    assert statuses == ["in_progress", "finalizing", "completed", "completed"]
    assert client.batches.cancel(made[1]).status == "cancelling"
    assert server.advance_batch(made[1])["status"] == "cancelled"
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:0:-1]
    assert page.has_more
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    assert [batch.id for batch in client.batches.list(after=made[1]).data] == [made[0]]
    assert [batch["id"] for batch in server.batches()] == made
    assert server.stats()["batches"] == {"completed": 1, "cancelled": 1, "validating": 1}


def test_cancel_keeps_what_was_answered(server: RunningServer, client: OpenAI) -> None:
    server.configure(batches={"in_progress_s": 5})
    batch = create(client, lines_of(100))
    until(lambda: server.stats()["billed"] >= 5)
    client.batches.cancel(batch.id)
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    billed = server.stats()["billed"]
    assert len(results(client, batch.output_file_id)) == billed < 100


@pytest.mark.parametrize(("kind", "recorded"), [("reset_before", 0), ("reset_after", 1)])
def test_lost_batch_creation(
    kind: str, recorded: int, server: RunningServer, client: OpenAI
) -> None:
    server.configure(batches={"create_faults": [{"kind": kind, "calls": [1]}]})
    with pytest.raises(openai.APIConnectionError):
        create(client, lines_of(2), metadata={"job": "lost"})
    found = [batch for batch in client.batches.list() if batch.metadata == {"job": "lost"}]
    assert len(found) == recorded
    server.configure(batches={"upload_faults": [{"kind": "error_after", "calls": [2]}]})
    with pytest.raises(openai.InternalServerError):
        create(client, lines_of(2))
    assert len(client.files.list(purpose="batch").data) == 2


def test_bad_input_and_limits_fail_a_batch(server: RunningServer, client: OpenAI) -> None:
    two_models = lines_of(1) + lines_of(1).replace(b"row-0", b"row-1").replace(b"strong", b"weak")
    for content, code in (
        (b"not json\n", "invalid_json_line"),
        (lines_of(1) * 2, "duplicate_custom_id"),
        (two_models, "mismatched_model"),
        (b"", "empty_file"),
    ):
        batch = ended(client, create(client, content).id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", code)
    server.configure(batches={"max_requests": 2, "enqueued_token_limit": 100})
    assert ended(client, create(client, lines_of(3)).id).errors.data[0].code == "too_many_tasks"
    server.configure(batches={"max_requests": 1000})
    batch = ended(client, create(client, lines_of(100)).id)
    assert batch.errors.data[0].code == "token_limit_exceeded"
    server.configure(batches={"enqueued_rejection": "429", "max_bytes": 50_000})
    with pytest.raises(openai.RateLimitError) as caught:
        create(client, lines_of(100))
    assert caught.value.code == "token_limit_exceeded"
    with pytest.raises(openai.APIStatusError) as large:
        create(client, lines_of(1000))
    assert large.value.status_code == 413
    assert server.stats()["billed"] == 0


def test_batch_faults_duplicates_and_lost_lines(server: RunningServer, client: OpenAI) -> None:
    server.configure(
        batches={"drop_lines": [1]},
        faults=[
            {"kind": "duplicate", "requests": [2], "scope": "batch"},
            {"kind": "rate_limit", "requests": [3], "scope": "batch"},
            {"kind": "refusal", "requests": [4], "scope": "all"},
            {"kind": "hang", "probability": 1, "scope": "batch"},
        ],
    )
    batch = ended(client, create(client, lines_of(5)).id)
    text = client.files.content(batch.output_file_id).text
    seen = Counter(json.loads(line)["custom_id"] for line in text.splitlines())
    assert seen == {"row-1": 2, "row-3": 1, "row-4": 1}
    assert results(client, batch.error_file_id)["row-2"]["response"]["status_code"] == 429
    assert server.stats()["billed"] == 4


def test_files_are_kept_and_deleted(client: OpenAI) -> None:
    made = client.files.create(file=("notes.jsonl", b"a\nb"), purpose="batch")
    assert client.files.retrieve(made.id).bytes == 3
    assert client.files.content(made.id).content == b"a\nb"
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


# --- settings and process -----------------------------------------------------------------------


def test_unknown_or_wrong_settings_are_refused(server: RunningServer, tmp_path: Path) -> None:
    for settings in (
        {"latency_ms": 3},
        {"prices": {"input": 0.15}},
        {"faults": [{"kind": "no_such_fault"}]},
        {"latency": {"min_ms": 5, "max_ms": 1}},
    ):
        with pytest.raises(ValidationError):
            ServerConfig.model_validate(settings)
        with pytest.raises(ValueError, match="error"):
            server.configure(**settings)
    path = tmp_path / "config.json"
    path.write_text('{"lattency": {}, "api_key": 5}')
    command = [sys.executable, "-m", "ray_judge.demo.server", "--config", str(path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=20
    )
    assert done.returncode == 2
    assert "lattency" in done.stderr


def test_configuration_survives_the_pipe() -> None:
    config = ServerConfig.model_validate(
        {"api_key": "k", "quota_usd": "1.10", "answers": {"kind": "lookup", "path": "x.json"}}
    )
    assert ServerConfig.model_validate_json(config.with_secret_json()) == config
    assert "'k'" not in repr(config)
    assert config.patched({"answers": {"kind": "hash"}}).answers.kind == "hash"
    assert len(ALL_KINDS) > 30


STARTER = """
import sys, time
from ray_judge.demo.server import ServerConfig, start_server
print(start_server(ServerConfig()).pid, flush=True)
time.sleep(60)
"""


def test_server_dies_with_its_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    def gone() -> bool:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        return text.rpartition(")")[2].split()[0] == "Z"

    until(gone, 10)
