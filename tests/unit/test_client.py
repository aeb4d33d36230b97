"""One request over real HTTP, and what every way of failing means."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ray_judge.config import StrongConfig
from ray_judge.escalation.client import Kind, Reply, RequestFailed, StrongClient, read_reply
from tests.provider import RunningServer
from tests.provider.faults import ALL_KINDS

pytestmark = pytest.mark.timeout(60)

BODY = {
    "model": "gpt-4.1",
    "messages": [{"role": "user", "content": "A or B?"}],
    "max_completion_tokens": 50,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "verdict",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"verdict": {"type": "string", "enum": ["A", "B", "tie"]}},
                "required": ["verdict"],
                "additionalProperties": False,
            },
        },
    },
}


def send(server: RunningServer, times: int = 1, **changes: Any) -> Reply:
    """Send the body some times through one client; the last reply, or the last failure raised."""
    strong = StrongConfig(
        **{
            "model": "gpt-4.1",
            "max_cost_usd": 1,
            "base_url": server.base_url,
            "timeout_s": 30,
            **{k: v for k, v in changes.items() if k not in ("key", "body")},
        }
    )

    async def go() -> Reply:
        client = StrongClient(strong, changes.get("key", server.api_key))
        try:
            for last in range(times):
                try:
                    reply = await client.send(changes.get("body", BODY))
                except RequestFailed:
                    if last == times - 1:
                        raise
        finally:
            await client.close()
        return reply

    return asyncio.run(go())


def test_a_good_answer(server: RunningServer) -> None:
    server.configure(cached_tokens=3, reasoning_tokens=4)
    reply = send(server)
    assert json.loads(reply.text or "")["verdict"] in ("A", "B", "tie")
    bill = server.bills()[0]
    assert reply.usage is not None and not reply.usage.estimated
    assert reply.usage.input_tokens == bill["prompt_tokens"]
    assert reply.usage.output_tokens == bill["completion_tokens"]
    assert (reply.usage.cached_input_tokens, reply.usage.reasoning_tokens) == (3, 4)
    assert (reply.model, reply.finish_reason, reply.usage.tier) == ("gpt-4.1", "stop", "default")
    assert reply.response_id and reply.response_id.startswith("chatcmpl-")


KINDS = {
    "rate_limit": Kind.RATE_LIMIT,
    "rate_limit_no_header": Kind.RATE_LIMIT,
    "insufficient_quota": Kind.BILLING,
    "billing_hard_limit": Kind.BILLING,
    "server_error": Kind.BROKEN,
    "server_error_billed": Kind.BROKEN,
    "unavailable": Kind.TRANSIENT,
    "request_timeout": Kind.BROKEN,
    "bad_gateway_html": Kind.BROKEN,
    "invalid_api_key": Kind.RUN,
    "permission_denied": Kind.RUN,
    "model_not_found": Kind.RUN,
    "context_length_exceeded": Kind.ROW,
    "invalid_request": Kind.ROW,
    "content_filter_400": Kind.REFUSED,
    "hang": Kind.AMBIGUOUS,
    "hang_billed": Kind.AMBIGUOUS,
    "reset_before": Kind.AMBIGUOUS,
    "reset_after": Kind.AMBIGUOUS,
    "truncated_body": Kind.AMBIGUOUS,
    "broken_body": Kind.AMBIGUOUS,
}


@pytest.mark.parametrize("fault", KINDS)
def test_what_a_failure_means(server: RunningServer, fault: str) -> None:
    server.configure(faults=[{"kind": fault, "retry_after_s": 7, "max_times": 9}])
    with pytest.raises(RequestFailed) as caught:
        send(server, timeout_s=0.5 if fault.startswith("hang") else 30)
    assert caught.value.kind is KINDS[fault]
    assert server.api_key not in caught.value.reason
    assert server.stats()["requests"] == 1  # the SDK did not try again by itself
    if fault == "rate_limit":
        assert caught.value.headers["retry-after"] == "7" and caught.value.status == 429


def test_every_fault_that_is_no_answer_is_in_the_table() -> None:
    answers = {"late", "duplicate", "refusal", "content_filter", "cut", "malformed_json",
               "wrong_verdict", "fenced_json", "empty_content", "missing_usage"}  # fmt: skip
    assert set(KINDS) == set(ALL_KINDS) - answers - {"flex_unavailable"}


def test_whole_answers_that_are_no_verdict(server: RunningServer) -> None:
    server.configure(faults=[{"kind": "refusal", "requests": [1]}, {"kind": "cut", "requests": [2]},
                             {"kind": "missing_usage", "requests": [3]}])  # fmt: skip
    refused, cut, uncounted = send(server), send(server), send(server)
    assert refused.refusal and refused.text is None and refused.usage is not None
    assert cut.finish_reason == "length"
    assert uncounted.usage is None and uncounted.text


def test_a_server_without_response_format_is_asked_in_words_from_then_on(
    server: RunningServer,
) -> None:
    server.configure(refuse_response_format=True)
    with pytest.raises(RequestFailed) as caught:
        send(server)
    assert caught.value.kind is Kind.NO_SCHEMA
    assert send(server, times=2).text
    assert server.stats()["billed"] == 1


def test_a_wrong_key(server: RunningServer) -> None:
    with pytest.raises(RequestFailed) as caught:
        send(server, key="sk-not-the-key")
    assert caught.value.kind is Kind.RUN and "sk-not-the-key" not in caught.value.reason


def test_nobody_listens() -> None:
    class Nobody:
        base_url, api_key = "http://127.0.0.1:9/v1", "k"

    with pytest.raises(RequestFailed) as caught:
        send(Nobody())  # type: ignore[arg-type]
    assert caught.value.kind is Kind.TRANSIENT and caught.value.status is None


def test_a_proxy_in_the_environment_is_not_asked_about_loopback(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert send(server).text


# -- bodies of 200 answers -------------------------------------------------------------------------


def body(**changes: Any) -> str:
    document = {
        "id": "x",
        "model": "m",
        "choices": [{"message": {"content": "{}", "refusal": None}, "finish_reason": "stop"}],
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
    with pytest.raises(RequestFailed) as caught:
        read_reply(text, {})
    assert caught.value.kind is Kind.AMBIGUOUS


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], "10", {"prompt_tokens": 10}, {"prompt_tokens": -1, "completion_tokens": 1},
     {"prompt_tokens": 1, "completion_tokens": -1}, {"prompt_tokens": "x", "completion_tokens": 1},
     {"prompt_tokens": None, "completion_tokens": 1},
     {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 5}},
     {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -5}},
     {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": [1]}],
)  # fmt: skip
def test_usage_that_cannot_be_meant_is_no_usage(usage: Any) -> None:
    assert read_reply(body(usage=usage), {}).usage is None


def test_odd_fields_become_text_or_nothing() -> None:
    reply = read_reply(body(id=7, model=["m"], service_tier=None), {})
    assert (reply.response_id, reply.model) == (None, None)
    assert reply.usage is not None and reply.usage.tier == "default"
    choices = [{"message": {"content": "a\ud800b", "refusal": ["no"]}, "finish_reason": 3}]
    reply = read_reply(body(choices=choices), {})
    assert (reply.text, reply.refusal, reply.finish_reason) == ("a?b", None, None)


@dataclass
class Stutterer:
    """A proxy's defect on real sockets: from the second one on, each answer is written twice."""

    ids: Callable[[int], str]
    answered: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
                asked = json.loads(await reader.readexactly(length))["messages"][0]["content"]
                self.answered += 1
                message = {"role": "assistant", "content": asked}
                choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                body = json.dumps({"id": self.ids(self.answered), "choices": choices}).encode()
                answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                answer += f"content-length: {len(body)}\r\n\r\n".encode() + body
                writer.write(answer * (1 if self.answered == 1 else 2))
                await writer.drain()


def stuttered(ids: Callable[[int], str]) -> tuple[list[str | None], Stutterer]:
    """What ten different questions are answered with, one after the other; None: was refused."""

    async def go() -> tuple[list[str | None], Stutterer]:
        defect, texts = Stutterer(ids), []
        server = await asyncio.start_server(defect.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        client = StrongClient(StrongConfig(model="m", max_cost_usd=1, base_url=url), "k")
        for n in range(10):
            try:
                reply = await client.send(
                    {**BODY, "messages": [{"role": "user", "content": f"{n}"}]}
                )
            except RequestFailed as failure:
                texts.append(None if failure.kind is Kind.AMBIGUOUS else failure.reason)
            else:
                texts.append(reply.text)
        await client.close()
        server.close()
        return texts, defect

    return asyncio.run(go())


def test_an_answer_that_comes_twice_is_not_the_next_questions() -> None:
    texts, defect = stuttered(lambda n: f"chatcmpl-{n}")
    assert all(text in (None, str(n)) for n, text in enumerate(texts))
    assert texts.count(None) >= 1, "the defect was met"
    assert sum(text is not None for text in texts) >= 5
    assert defect.connections > 1, "a connection that is one answer behind is given up"


def test_a_server_that_gives_every_answer_the_same_id_is_believed() -> None:
    texts, _ = stuttered(lambda n: "chatcmpl-0")
    assert None not in texts


def test_log_probabilities_come_as_they_were_sent(server: RunningServer) -> None:
    assert send(server).logprobs is None
    found = send(server, body={**BODY, "logprobs": True, "top_logprobs": 3})
    assert "".join(one["token"] for one in found.logprobs) == found.text
    assert all(len(one["top_logprobs"]) == 3 for one in found.logprobs)
    for odd in (None, [], "x", {}, {"content": None}):
        assert (
            read_reply(json.dumps({"choices": [{"message": {}, "logprobs": odd}]}), {}).logprobs
            is None
        )


@pytest.mark.parametrize("refused", ["logprobs", "top_logprobs"])
def test_a_model_that_gives_no_log_probabilities_ends_the_run(
    server: RunningServer, refused: str
) -> None:
    server.configure(refuse_parameters=[refused])
    with pytest.raises(RequestFailed, match="HTTP 400 unsupported_parameter") as caught:
        send(server, body={**BODY, "logprobs": True, "top_logprobs": 3})
    assert caught.value.kind is Kind.RUN
