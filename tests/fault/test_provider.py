"""The provider over real HTTP, seen through the real OpenAI SDK without retries."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.provider import Limits, RunningServer, ServerConfig, running_server
from tests.provider.answers import Truth
from tests.provider.faults import HTTP_ERRORS, MODEL_FAULTS
from tests.provider.limits import Bucket, RateLimiter, format_reset

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).resolve().parents[2]


def schema(**fields: Any) -> dict[str, Any]:
    node = {"type": "object", "properties": fields, "required": [*fields]}
    strict = {"name": "s", "strict": True, "schema": {**node, "additionalProperties": False}}
    return {"type": "json_schema", "json_schema": strict}


VERDICT = schema(reason={"type": "string"}, verdict={"type": "string", "enum": ["A", "B", "tie"]})


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    with running_server(ServerConfig(api_key="test-key")) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
def server(process: RunningServer) -> Iterator[RunningServer]:
    """A clean provider, which must not have met a defect of its own afterwards."""
    defaults = ServerConfig().public()
    del defaults["api_key"]
    process.configure(**defaults)
    process.reset()
    yield process
    assert "crashed" not in process.stats()["by_status"]


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    url, key = server.base_url, server.api_key
    with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30) as client:
        yield client


def ask(client: OpenAI, text: str = "Which is better?", **extra: Any) -> Any:
    messages: Any = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
    return client.chat.completions.create(model="strong", messages=messages, **extra)


def content(client: OpenAI, text: str, **extra: Any) -> Any:
    return json.loads(ask(client, text, **extra).choices[0].message.content)


def fault(server: RunningServer, kind: str, **more: Any) -> None:
    server.configure(faults=[{"kind": kind, "probability": 1.0, **more}])


def test_answer_usage_and_exact_bill(server: RunningServer, client: OpenAI) -> None:
    prices = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
    server.configure(reasoning_tokens=64, cached_tokens=10, prices=prices)
    answer = ask(client, "é" * 30, response_format=VERDICT)
    said = json.loads(answer.choices[0].message.content)
    assert said == {"reason": "because", "verdict": said["verdict"]}
    assert said["verdict"] in {"A", "B", "tie"} and answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    length = len(json.dumps(VERDICT, sort_keys=True, separators=(",", ":")))
    assert usage.prompt_tokens == -(-66 // 4) + 2 * 3 + -(-length // 4)
    assert usage.completion_tokens > usage.completion_tokens_details.reasoning_tokens == 64
    assert usage.prompt_tokens_details.cached_tokens == 10
    usd = (
        Decimal(usage.prompt_tokens - 10) * Decimal("0.15")
        + 10 * Decimal("0.075")
        + Decimal(usage.completion_tokens) * Decimal("0.60")
    ) / 1_000_000
    [bill] = server.bills()
    assert Decimal(bill["usd"]) == Decimal(server.stats()["total_usd"]) == usd
    assert bill["billed_monotonic"] <= bill["answered_monotonic"] <= time.monotonic()
    assert bill["answered_wall"] <= time.time()


def test_tiers_and_what_is_billed_twice(server: RunningServer, client: OpenAI) -> None:
    assert ask(client, service_tier="flex").service_tier == "flex"
    server.configure(permit_flex=False)
    assert ask(client, service_tier="flex").service_tier == "default"
    ask(client, "another question")
    assert [bill["attempt"] for bill in server.bills()] == [1, 2, 1]  # the tier is no question's
    assert (server.stats()["billed"], server.stats()["billed_twice"]) == (3, 1)
    flex, full, _ = (Decimal(bill["usd"]) for bill in server.bills())
    assert flex * 2 == full


def test_scores_and_questions_in_words(client: OpenAI) -> None:
    form = schema(s={"type": "integer", "minimum": 1, "maximum": 5})
    scores = {content(client, f"rate {n}", response_format=form)["s"] for n in range(20)}
    assert scores <= {1, 2, 3, 4, 5} and len(scores) > 2
    verdicts = {content(client, f'"score" {n}? Say "verdict".')["verdict"] for n in range(20)}
    assert verdicts == {"A", "B", "tie"}
    assert content(client, 'Is it a "verdict"? Say "score".')["score"] in range(1, 11)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"temperature": 0.5}, "temperature"),
        ({"messages": ["x"]}, "messages"),
        ({"model": None}, "model"),
    ],
)
def test_requests_that_are_refused(server: RunningServer, body: Any, param: str) -> None:
    server.configure(refuse_parameters=["temperature"])
    whole = {"model": "strong", "messages": [{"role": "user", "content": "x"}], **body}
    headers = {"Authorization": f"Bearer {server.api_key}"}
    answer = httpx.post(f"{server.base_url}/chat/completions", json=whole, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert server.stats()["billed"] == 0


def test_true_rows_are_found_by_their_exact_texts(
    server: RunningServer, client: OpenAI, tmp_path: Path
) -> None:
    texts = [("Capital?", "Paris", "Paris, of course", "B"), ("Capital?\nWhy?", "No", "Yes\n", "A")]
    names = ("instruction", "response_a", "response_b", "verdict")
    path = tmp_path / "truth.json"
    path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in texts]))
    form = "[Instruction]\n{}\n\n[Criteria]\nc\n\n[Answer A]\n{}\n\n[Answer B]\n{}\n\nWhich?"
    truth, flipped = Truth(path), {"A": "B", "B": "A"}
    for q, a, b, verdict in texts:
        assert truth.verdict(form.format(q, a, b)) == verdict
        assert truth.verdict(form.format(q, b, a)) == flipped[verdict]
        assert truth.verdict(form.format(q, a, f"{b}.")) is None
        assert truth.verdict(form.format(f"{q}!", a, b)) is None
    server.configure(truth=str(path))
    for text, unknown in ((form.format(*texts[0][:3]), 0), ("no row of ours", 1)):
        assert content(client, text, response_format=VERDICT)["verdict"] in {"A", "B", "tie"}
        assert server.stats()["unknown_questions"] == unknown


@pytest.mark.parametrize("kind", sorted(HTTP_ERRORS))
def test_http_errors_are_not_billed(kind: str, server: RunningServer, client: OpenAI) -> None:
    fault(server, kind, attempts=[1])
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, service_tier="flex")
    error, seen = HTTP_ERRORS[kind], caught.value
    assert (seen.status_code, seen.code, seen.type) == (error.status, error.code, error.type)
    assert ("retry-after" in seen.response.headers) == (kind in {"rate_limit", "unavailable"})
    stats = server.stats()
    assert (stats["billed"], stats["faults_injected"]) == (0, {kind: 1})
    assert stats["by_status"] == {str(error.status): 1}
    ask(client)  # the second attempt is spared
    assert server.stats()["billed"] == 1


def test_retry_after_styles(server: RunningServer, client: OpenAI) -> None:
    for style, name, value in (
        ("seconds", "", "2"), ("ms", "-ms", "1500"), ("date", "", ".* GMT"), ("none", "", "None"),
    ):  # fmt: skip
        fault(server, "rate_limit", retry_after_s=1.5, retry_after_style=style)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client)
        assert re.fullmatch(value, str(caught.value.response.headers.get(f"retry-after{name}")))


@pytest.mark.parametrize(
    ("kinds", "billed", "status"),
    [
        ("hang reset_before", 0, "dropped"),
        ("hang_billed reset_after broken_body late", 1, "dropped"),
        ("truncated_body", 1, "200"), ("bad_gateway_html", 0, "502"),
        ("server_error_billed", 1, "500"),
    ],
)  # fmt: skip
def test_lost_answers(
    kinds: str, billed: int, status: str, server: RunningServer, client: OpenAI
) -> None:
    for kind in kinds.split():
        server.reset()
        fault(server, kind, extra_ms=1000)
        waits = kind in {"hang", "hang_billed", "late"}
        with pytest.raises((openai.APIError, json.JSONDecodeError)) as caught:
            ask(client.with_options(timeout=0.3 if waits else 30))
        assert isinstance(caught.value, openai.APITimeoutError) == waits
        while (stats := server.stats())["in_flight"]:
            pass  # until the provider has seen that the client left
        assert (stats["billed"], stats["by_status"]) == (billed, {status: 1})
        bills = server.bills()
        assert all((bill["answered_wall"], bill["fault"]) == (None, kind) for bill in bills)


@pytest.mark.parametrize("kind", [*sorted(MODEL_FAULTS), "duplicate"])
def test_faulty_answers_are_billed(kind: str, server: RunningServer, client: OpenAI) -> None:
    fault(server, kind)
    answer = ask(client, response_format=VERDICT)
    message = answer.choices[0].message
    finish = {"content_filter": "content_filter", "cut": "length"}.get(kind, "stop")
    assert answer.choices[0].finish_reason == finish
    assert (message.refusal is not None) == (kind == "refusal")
    assert (answer.usage is None) == (kind == "missing_usage")
    try:
        usable = json.loads(message.content or "")["verdict"] in {"A", "B", "tie"}
    except json.JSONDecodeError:
        usable = False
    assert usable == (kind in {"missing_usage", "duplicate", "other_verdict"})
    assert [bill["fault"] for bill in server.bills()] == [kind]


def test_random_faults_repeat_whatever_the_order(server: RunningServer, client: OpenAI) -> None:
    def struck(order: list[int], seed: int) -> set[int]:
        server.reset()
        server.configure(faults=[{"kind": "server_error", "probability": 0.3}], fault_seed=seed)
        hit = set()
        for number in order:
            try:
                ask(client, f"question {number}")
            except openai.InternalServerError:
                hit.add(number)
        return hit

    first = struck(list(range(40)), 5)
    assert 4 < len(first) < 20
    assert struck(list(reversed(range(40))), 5) == first != struck(list(range(40)), 6)


def test_rules_by_number_text_count_and_tier(server: RunningServer, client: OpenAI) -> None:
    rules = [
        {"kind": "server_error", "requests": [2]},
        {"kind": "refusal", "contains": "naughty", "max_times": 1},
        {"kind": "flex_unavailable", "probability": 1},
    ]
    server.configure(faults=rules)
    ask(client, "one")
    with pytest.raises(openai.InternalServerError):
        ask(client, "two")
    refusals = [ask(client, "naughty").choices[0].message.refusal for _ in range(2)]
    assert refusals[0] and refusals[1] is None
    with pytest.raises(openai.RateLimitError, match="flex"):
        ask(client, service_tier="flex")
    told = {"server_error": 1, "refusal": 1, "flex_unavailable": 1}
    assert server.stats()["faults_injected"] == told


def test_a_bucket_refills_with_time() -> None:
    bucket = Bucket(120, now=0.0)  # two a second, and no more than two saved up
    assert [bucket.wait_s(amount, 100.0) for amount in (2, 120, 121)] == [0, 0, float("inf")]
    bucket.take(120, 100.0)
    assert bucket.wait_s(1, 100.0) == pytest.approx(59.5)
    assert bucket.wait_s(1, 159.5) == 0
    assert bucket.headers("tokens", 159.5)["x-ratelimit-remaining-tokens"] == "1"
    both = RateLimiter(Limits(rpm=1, tpm=6000))
    assert both.admit(7000) == ("tokens", float("inf"))  # nothing is taken
    assert both.admit(50) is None and (both.admit(50) or ("",))[0] == "requests"
    times = {0: "0ms", 0.12: "120ms", 1: "1s", 8.64: "8.64s", 360: "6m0s", 3661.5: "1h1m1.5s"}
    assert {seconds: format_reset(seconds) for seconds in times} == times


def test_a_limit_answers_429_with_headers(server: RunningServer, client: OpenAI) -> None:
    server.configure(limits={"rpm": 1})
    raw = client.chat.completions.with_raw_response
    headers = raw.create(model="m", messages=[{"role": "user", "content": "x"}]).headers
    told = [headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining")]
    assert told == ["1", "0"]
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 60_000
    assert server.stats()["rate_limited"] == {"requests": 1, "tokens": 0}


def test_quota_switch_and_quota_of_money(server: RunningServer, client: OpenAI) -> None:
    server.configure(quota_exhausted=True)
    with pytest.raises(openai.RateLimitError, match="current quota"):
        ask(client)
    server.configure(quota_exhausted=False, quota_usd="0.0001")
    ask(client)
    ask(client)
    with pytest.raises(openai.RateLimitError, match="current quota"):
        ask(client)
    assert server.stats()["billed"] == 2


def test_wrong_key_is_refused_and_never_told(server: RunningServer, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(client.with_options(api_key="another-key"))
    assert caught.value.code == "invalid_api_key" and "another-key" not in str(caught.value)
    assert server.api_key not in json.dumps(server.configure())
    assert server.stats()["by_status"] == {"401": 1}


def create(client: OpenAI, count: int, **more: Any) -> Any:
    target = {"method": "POST", "url": "/v1/chat/completions"}
    lines = []
    for n in range(count):
        body = {"model": "strong", "messages": [{"role": "user", "content": f"question {n}"}]}
        lines.append(json.dumps({"custom_id": f"row-{n}", **target, "body": body}))
    file = ("input.jsonl", "\n".join(lines).encode())
    uploaded = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", **more
    )


def ended(server: RunningServer, client: OpenAI, batch: Any) -> Any:
    """Move a batch to its end by hand."""
    while server.advance_batch(batch.id)["status"] in {"in_progress", "finalizing"}:
        pass
    return client.batches.retrieve(batch.id)


def results(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id or "").text.splitlines()]


def test_a_batch_completes_by_itself_at_half_price(server: RunningServer, client: OpenAI) -> None:
    server.configure(batches={"validating_s": 0, "in_progress_s": 0, "finalizing_s": 0})
    batch = create(client, 1, metadata={"job": "a1"})
    assert batch.metadata == {"job": "a1"}
    while (batch := client.batches.retrieve(batch.id)).status != "completed":
        pass
    messages: Any = [{"role": "user", "content": "question 0"}]
    client.chat.completions.create(model="strong", messages=messages)
    half, full = server.bills()
    assert (half["tier"], Decimal(half["usd"]) * 2) == ("batch", Decimal(full["usd"]))
    assert server.stats()["billed_twice"] == 1  # the same question, by chat and by batch


def test_lines_that_fail_are_lost_or_come_twice(server: RunningServer, client: OpenAI) -> None:
    faults = [
        {"kind": "duplicate", "requests": [2], "scope": "batch"},
        {"kind": "rate_limit", "requests": [3], "scope": "batch"},
        {"kind": "refusal", "requests": [4], "scope": "all"},
        {"kind": "hang", "probability": 1, "scope": "batch"},
    ]
    lost = {"manual": True, "drop_lines": [1], "fail_lines": [6]}
    server.configure(batches=lost, faults=faults)
    batch = ended(server, client, create(client, 6))
    counts = batch.request_counts
    assert (batch.status, counts.completed, counts.failed) == ("completed", 4, 2)
    seen = Counter(line["custom_id"] for line in results(client, batch.output_file_id))
    assert seen == {"row-1": 2, "row-3": 1, "row-4": 1}
    errors = results(client, batch.error_file_id)
    statuses = {line["custom_id"]: line["response"]["status_code"] for line in errors}
    assert statuses == {"row-2": 429, "row-5": 500}
    assert server.stats()["billed"] == 4


@pytest.mark.parametrize(
    ("call", "kind", "error", "recorded"),
    [
        ("create", "reset_before", openai.APIConnectionError, 0),
        ("create", "reset_after", openai.APIConnectionError, 1),
        ("create", "rate_limit", openai.RateLimitError, 0),
        ("upload", "error_after", openai.InternalServerError, 0),
    ],
)
def test_lost_calls(
    call: str, kind: str, error: Any, recorded: int, server: RunningServer, client: OpenAI
) -> None:
    server.configure(batches={"manual": True, f"{call}_faults": [{"kind": kind, "calls": [1]}]})
    with pytest.raises(error):
        create(client, 2)
    assert len(server.batches()) == recorded
    create(client, 2)
    assert server.stats()["uploads"] == 2


def test_wrong_settings_are_refused(server: RunningServer, tmp_path: Path) -> None:
    for name, value in (
        ("latency_ms", 3), ("prices", {"input": 0.15}), ("faults", [{"kind": "no_such_fault"}]),
        ("latency", {"min_ms": 5, "max_ms": 1}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            server.configure(**{name: value})
    path = tmp_path / "config.json"
    path.write_text('{"lattency": {}, "api_key": 5}')
    command = [sys.executable, "-m", "tests.provider", "--config", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "lattency" in done.stderr


def test_the_provider_dies_with_its_parent() -> None:
    starter = (
        "import sys; from tests.provider import ServerConfig, start_server\n"
        "print(start_server(ServerConfig()).pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        provider = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([provider], [], [], 30)[0], "it outlived its parent"
    os.close(provider)


def test_the_witness_shares_no_code_with_what_it_judges() -> None:
    files = [*(ROOT / "tests" / "provider").glob("*.py")]
    assert len(files) > 10
    for path in files:
        imports = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert "ray_judge" not in imports, path
