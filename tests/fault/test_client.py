"""Requests over real HTTP: what an answer and every way of failing become."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ray_judge.config import StrongConfig
from ray_judge.escalation.answers import Reply
from ray_judge.escalation.client import StrongClient
from ray_judge.failures import Kind, RequestFailed
from ray_judge.records import Usage
from tests.provider import RunningServer
from tests.provider.faults import (
    ALL_KINDS,
    BILLED_TRANSPORT,
    ERRORS_INSIDE,
    HTTP_ERRORS,
    MODEL_FAULTS,
)

from .plain import error, plain_server

FORMAT = {"type": "json_schema", "json_schema": {"name": "v", "strict": True, "schema": {
    "type": "object", "properties": {"verdict": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["verdict"], "additionalProperties": False}}}  # fmt: skip
ASK = [{"role": "user", "content": "Which is better?"}]
BODY = {"model": "gpt-4.1", "messages": ASK, "response_format": FORMAT}


def strong(url: str, **changes: Any) -> StrongConfig:
    fields = {"model": "gpt-4.1", "max_cost_usd": 1, "timeout_s": 30, "base_url": url}
    return StrongConfig(**{**fields, **changes})


def send(server: RunningServer, times: int = 1, key: str | None = None, **changes: Any) -> Reply:
    async def go() -> Reply:
        client = StrongClient(strong(server.base_url, **changes), key or server.api_key)
        try:
            for _ in range(times - 1):
                with contextlib.suppress(RequestFailed):
                    await client.send(BODY)
            return await client.send(BODY)
        finally:
            await client.close()

    return asyncio.run(go())


def test_a_good_answer(server: RunningServer) -> None:
    server.configure(cached_tokens=3, reasoning_tokens=4)
    reply, bill = send(server), server.bills()[0]
    assert json.loads(reply.text or "")["verdict"] in ("A", "B", "tie")
    tokens = bill["prompt_tokens"], bill["completion_tokens"]
    assert reply.usage == Usage(*tokens, cached_input_tokens=3, reasoning_tokens=4)
    assert (reply.model, reply.finish_reason) == ("gpt-4.1", "stop")
    assert reply.response_id and reply.response_id.startswith("chatcmpl-")


FAULTS = {
    Kind.RATE_LIMIT: ["rate_limit", "rate_limit_no_header", "rate_limit_inside"],
    Kind.BILLING: ["insufficient_quota", "billing_hard_limit"],
    Kind.BROKEN: ["server_error", "server_error_billed", "request_timeout", "bad_gateway_html",
                  "error_inside", "error_inside_billed"],
    Kind.TRANSIENT: ["unavailable", "overloaded_inside"],
    Kind.DENIED: ["invalid_api_key", "permission_denied", "model_not_found", "moderated_inside"],
    # Some servers do not say that it is the schema which they do not take: it is asked in words.
    Kind.NO_SCHEMA: ["context_length_exceeded", "invalid_request"],
    Kind.REFUSED: ["content_filter_400"],
    Kind.AMBIGUOUS: ["hang", "hang_billed", "reset_before", "reset_after", "truncated_body",
                     "broken_body", "late"],
}  # fmt: skip
KINDS = {fault: kind for kind, faults in FAULTS.items() for fault in faults}
ANSWERS = MODEL_FAULTS | {"duplicate"}
WAITS = {"hang", "hang_billed", "late"}
STATUSES = {"truncated_body": "200", "bad_gateway_html": "502", "server_error_billed": "500"}
STATUSES |= dict.fromkeys(ERRORS_INSIDE, "200")


@pytest.mark.parametrize("fault", KINDS)
def test_what_a_failure_means(server: RunningServer, fault: str) -> None:
    assert set(KINDS) == ALL_KINDS - ANSWERS - {"flex_unavailable"}
    rule = {"kind": fault, "retry_after_s": 7, "extra_ms": 3000, "max_times": 9}
    server.configure(faults=[rule])
    with pytest.raises(RequestFailed) as caught:
        send(server, timeout_s=2 if fault in WAITS else 30)
    failure, status = caught.value, "dropped"
    assert failure.kind is KINDS[fault]
    assert server.api_key not in failure.reason
    if fault in HTTP_ERRORS:
        error = HTTP_ERRORS[fault]
        status = str(error.status)
        assert (failure.status, failure.code) == (error.status, error.code or error.type)
        told = "7" if fault in {"rate_limit", "unavailable"} else None
        assert failure.headers.get("retry-after") == told
    while (stats := server.stats())["in_flight"]:
        pass  # until the provider has seen that the client left
    assert stats["requests"] == 1, "the SDK did not try again by itself"
    assert stats["by_status"] == {STATUSES.get(fault, status): 1}
    assert stats["faults_injected"] == {fault: 1}
    lost = [(bill["fault"], bill["answered_wall"]) for bill in server.bills()]
    assert lost == [(fault, None)] * (fault in BILLED_TRANSPORT)


@pytest.mark.parametrize("status", [200, 400, 401, 502])
def test_what_a_server_repeats_of_headers_and_key_is_not_shown(status: int) -> None:
    said = "no tenant secret-in-header, key other-key"
    headers = {"x-tenant": "secret-in-header"}
    with (
        plain_server(lambda body, number: error(status, said)) as server,
        pytest.raises(RequestFailed, match="no tenant …, key …"),
    ):
        send(server, key="other-key", headers=headers)  # type: ignore[arg-type]


def test_loopback_goes_past_a_proxy(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert send(server).text


# -- defects of proxies, on sockets of their own ---------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


async def asked(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    return str(json.loads(await reader.readexactly(length))["messages"][0]["content"])


async def talk(serve: Serve, texts: list[str], timeout_s: float = 30) -> list[str | None]:
    """Answers to these questions, sent one after the other; None: AMBIGUOUS."""

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    client, found = StrongClient(strong(url, timeout_s=timeout_s), "k"), []
    for text in texts:
        try:
            reply = await client.send({**BODY, "messages": [{"role": "user", "content": text}]})
        except RequestFailed as failure:
            found.append(None if failure.kind is Kind.AMBIGUOUS else failure.reason)
        else:
            found.append(reply.text)
    await client.close()
    server.close()
    return found


def test_a_request_is_over_in_its_time_however_its_answer_drips() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(HEAD % 10**6)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    assert asyncio.run(talk(drip, ["x"], timeout_s=2)) == [None]


def stuttered(ids: Callable[[int], str], texts: list[str]) -> tuple[list[str | None], int]:
    """Answers by a proxy that writes each but the first one twice; how often it was connected."""
    answered = connected = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered, connected
        connected += 1
        while True:
            text = await asked(reader)
            answered += 1
            choices = [{"message": {"content": text}, "finish_reason": "stop"}]
            reply = json.dumps({"id": ids(answered), "choices": choices}).encode()
            writer.write((HEAD % len(reply) + reply) * (1 if answered == 1 else 2))
            await writer.drain()

    return asyncio.run(talk(serve, texts)), connected


@pytest.mark.parametrize("samples", [1, 2])
def test_an_answer_that_comes_twice_is_not_the_next_questions(samples: int) -> None:
    """Nor is what comes behind it, where the next question was another sample of the same."""
    texts = ["first", *(f"{n}" for n in range(10) for _ in range(samples))]
    found, connected = stuttered(lambda n: f"chatcmpl-{n:032x}", texts)
    assert all(text in (None, right) for text, right in zip(found, texts, strict=True))
    assert connected > 1, "the defect was met, and a connection that is one behind given up"
    assert sum(text is not None for text in found) >= len(texts) // 2


def test_a_server_that_gives_every_answer_the_same_id_is_believed() -> None:
    assert None not in stuttered(lambda n: "chatcmpl-0000000000", [f"{n}" for n in range(10)])[0]


# --- service tiers ---


def test_flex_is_asked_for_and_what_was_served_is_billed(server: RunningServer) -> None:
    flex = send(server, mode="flex")
    server.configure(permit_flex=False)
    plain = send(server, mode="flex")
    served = [reply.usage.tier for reply in (flex, plain) if reply.usage]
    assert served == [bill["tier"] for bill in server.bills()] == ["flex", "default"]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"faults": [{"kind": "flex_unavailable", "probability": 1}]}, Kind.RATE_LIMIT),
        ({"refuse_parameters": ["service_tier"]}, Kind.PARAMETER),  # no question would fare better
    ],
)
def test_no_flex(server: RunningServer, settings: dict[str, Any], kind: Kind) -> None:
    server.configure(**settings)
    with pytest.raises(RequestFailed) as caught:
        send(server, mode="flex")
    assert caught.value.kind is kind
    assert send(server).usage is not None, "a request that names no tier"
