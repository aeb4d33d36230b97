"""The provider over real HTTP, seen through the real OpenAI SDK without retries."""

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.provider import RunningServer
from tests.provider.config import Limits
from tests.provider.faults import MODEL_FAULTS
from tests.provider.limits import Bucket, RateLimiter

ROOT = Path(__file__).resolve().parents[2]


def schema(**fields: Any) -> dict[str, Any]:
    node = {"type": "object", "properties": fields, "required": [*fields]}
    strict = {"name": "s", "strict": True, "schema": {**node, "additionalProperties": False}}
    return {"type": "json_schema", "json_schema": strict}


VERDICT = schema(reason={"type": "string"}, verdict={"type": "string", "enum": ["A", "B", "tie"]})


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    url, key = server.base_url, server.api_key
    with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30) as client:
        yield client


def ask(client: OpenAI, text: str = "Which is better?", **extra: Any) -> Any:
    messages: Any = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
    return client.chat.completions.create(model="strong", messages=messages, **extra)


def test_answer_usage_and_exact_bill(server: RunningServer, client: OpenAI) -> None:
    server.configure(reasoning_tokens=64, cached_tokens=10)
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
        Decimal(usage.prompt_tokens - 10) * 2 + 10 * Decimal("0.5") + usage.completion_tokens * 8
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
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (3, 1)  # the tier is no question's
    flex, full, _ = (Decimal(bill["usd"]) for bill in server.bills())
    assert flex * 2 == full


@pytest.mark.parametrize("kind", [*sorted(MODEL_FAULTS), "duplicate"])
def test_faulty_answers_are_billed(kind: str, server: RunningServer, client: OpenAI) -> None:
    server.configure(faults=[{"kind": kind}])
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
    whole = {"missing_usage", "usage_of_zero", "overbilled", "short_id", "duplicate"}
    assert usable == (kind in {*whole, "other_verdict"})
    assert [bill["fault"] for bill in server.bills()] == [kind]


def test_a_bucket_refills_with_time() -> None:
    bucket = Bucket(120, now=0.0)  # two a second, and no more than two saved up
    assert [bucket.wait_s(amount, 100.0) for amount in (2, 120, 121)] == [0, 0, float("inf")]
    bucket.take(120, 100.0)
    assert bucket.wait_s(1, 100.0) == pytest.approx(59.5)
    assert bucket.headers("tokens", 100.0)["x-ratelimit-reset-tokens"] == "60s"
    assert bucket.wait_s(1, 159.5) == 0
    told = {"limit": "120", "remaining": "1", "reset": "500ms"}
    headers = {f"x-ratelimit-{name}-tokens": value for name, value in told.items()}
    assert bucket.headers("tokens", 159.5) == headers
    both = RateLimiter(Limits(rpm=1, tpm=6000))
    assert both.admit(7000) == ("tokens", float("inf"))  # nothing is taken
    assert both.admit(50) is None and (both.admit(50) or ("",))[0] == "requests"


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


def test_wrong_settings_are_refused(server: RunningServer) -> None:
    for name, value in (("latency_ms", 3), ("faults", [{"kind": "no_such_fault"}])):
        with pytest.raises(ValueError, match=name):
            server.configure(**{name: value})


def test_the_provider_dies_with_its_parent() -> None:
    starter = (
        "import sys; from tests.provider import running_server\n"
        "with running_server() as server: print(server.pid, flush=True); sys.stdin.read()"
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
