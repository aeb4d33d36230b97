"""POST /v1/chat/completions and GET /v1/models."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import web

from ray_judge.demo.server.completion import ChatRequest, answer
from ray_judge.demo.server.config import FaultRule, ServerConfig
from ray_judge.demo.server.fault_kinds import (
    BILLED_TRANSPORT,
    HTML_GATEWAY,
    HTTP_ERRORS,
    INSUFFICIENT_QUOTA,
    RATE_LIMIT,
    UNBILLED_TRANSPORT,
    HttpError,
)
from ray_judge.demo.server.requests import output_allowance
from ray_judge.demo.server.schema_check import format_defect
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import (
    JSON_TYPE,
    ApiFailure,
    bad_request,
    client_left,
    encode,
    error_answer,
    hang,
    json_answer,
    reset_connection,
    retry_headers,
    send_again,
    send_broken,
    wait_headers,
)

DROPPED = "dropped"
"""Key of the count of answers that were never sent, beside the HTTP statuses."""


def check_body(body: object, config: ServerConfig) -> dict[str, Any]:
    """The body if it is a request this server can answer, else an API error."""
    if not isinstance(body, dict):
        raise bad_request("The body is not a JSON object.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("Missing required parameter: 'messages'.", param="messages")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise bad_request("Every message needs a role.", param="messages")
    if not isinstance(body.get("model"), str):
        raise bad_request("Missing required parameter: 'model'.", param="model")
    if config.models and body["model"] not in config.models:
        raise ApiFailure(HTTP_ERRORS["model_not_found"])
    refused = [*config.refuse_parameters, "stream"]
    if config.refuse_response_format:
        refused.append("response_format")
    for name in refused:
        if body.get(name):
            raise bad_request(
                f"Unsupported parameter: '{name}' is not supported with this model.",
                param=name,
                code="unsupported_parameter",
            )
    if body.get("n", 1) != 1:
        raise bad_request("This simulator answers n=1 only.", param="n")
    top = body.get("top_logprobs")
    if top is not None and not (body.get("logprobs") is True and top in range(21)):
        message = "'top_logprobs' is a number up to 20, and goes with 'logprobs': true."
        raise bad_request(message, param="top_logprobs")
    defect = format_defect(body.get("response_format"))
    if defect is not None:
        message = f"Invalid schema for response_format: {defect}"
        raise bad_request(message, param="response_format")
    return body


def check_context(request: ChatRequest, config: ServerConfig) -> None:
    """Refuse a request that does not fit the context window."""
    needed = request.prompt_tokens + (output_allowance(request.body) or 0)
    if config.context_tokens is not None and needed > config.context_tokens:
        raise ApiFailure(HTTP_ERRORS["context_length_exceeded"])


def _admit(sim: Simulator, request: ChatRequest) -> None:
    """Pass the quota and the rate limits, or raise the 429."""
    if sim.quota_used_up():
        raise ApiFailure(INSUFFICIENT_QUOTA)
    refusal = sim.limiter.admit(request.prompt_tokens + (output_allowance(request.body) or 0))
    if refusal is not None:
        headers = wait_headers(refusal.wait_s)
        hint = "Request too large." if not headers else f"Try again in {refusal.wait_s:.3f}s."
        message = f"Rate limit reached for {request.model} on {refusal.which} per min. {hint}"
        error = HttpError(429, RATE_LIMIT.code, refusal.which, message)
        raise ApiFailure(error, headers)


class ChatRoutes:
    """The chat completions endpoint."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim

    async def models(self, _request: web.Request) -> web.Response:
        """GET /v1/models; the owner says that this is a simulator."""
        names = self._sim.config.models or ("simulated-strong",)
        data = [
            {"id": n, "object": "model", "created": 0, "owned_by": "ray_judge-simulator"}
            for n in names
        ]
        return json_answer({"object": "list", "data": data})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        sim = self._sim
        sim.chat_requests += 1
        sim.in_flight += 1
        sim.max_in_flight = max(sim.max_in_flight, sim.in_flight)
        try:
            return await self._complete(request)
        except ApiFailure as failure:
            if failure.error is INSUFFICIENT_QUOTA and sim.quota_told is None:
                sim.quota_told = time.monotonic()
            return error_answer(failure.error, {**self._headers(), **failure.headers})
        finally:
            sim.in_flight -= 1

    def _headers(self) -> dict[str, str]:
        headers = {"x-request-id": f"req_sim_{self._sim.requests}"}
        if self._sim.config.rate_headers:
            headers.update(self._sim.limiter.headers())
        return headers

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        sim = self._sim
        received = time.monotonic()
        try:
            raw = json.loads(await http.read())
        except ValueError:
            raise bad_request("The body is not valid JSON.") from None
        request = ChatRequest.parse(check_body(raw, sim.config))
        check_context(request, sim.config)
        _admit(sim, request)
        sim.admitted += 1
        attempt = sim.next_attempt(request.canonical)
        rule = sim.pick_fault(
            request.canonical,
            attempt,
            sim.admitted,
            request.prompt,
            "chat",
            flex=request.wants_flex,
        )
        if rule is not None and rule.kind in HTTP_ERRORS:
            headers = {} if rule.kind == "rate_limit_no_header" else _retry(rule)
            raise ApiFailure(HTTP_ERRORS[rule.kind], headers)
        delay = sim.latency_s(request.canonical, attempt)
        if rule is not None and rule.kind == "late":
            delay += rule.extra_ms / 1000.0
        if delay > 0:
            await asyncio.sleep(max(0.0, received + delay - time.monotonic()))
        return await self._deliver(http, request, attempt, rule.kind if rule else None)

    async def _deliver(
        self, http: web.Request, request: ChatRequest, attempt: int, fault: str | None
    ) -> web.StreamResponse:
        """Compute, bill and send, with the transport fault if there is one."""
        sim = self._sim
        if fault in UNBILLED_TRANSPORT:
            return await _fail_unbilled(http, str(fault))
        if client_left(http) and not sim.config.bill_abandoned:
            return web.Response(status=499)
        answered = answer(sim, request, attempt=attempt, fault=fault)
        body, headers = encode(answered.body), self._headers()
        if fault in BILLED_TRANSPORT - {"late", "duplicate"}:
            return await _fail_billed(http, str(fault), body, headers)
        response = web.Response(body=body, headers=headers, content_type=JSON_TYPE)
        try:
            await response.prepare(http)
            await response.write_eof()
        except ConnectionError:
            return web.Response(status=499, reason=DROPPED)
        if client_left(http):
            return web.Response(status=499, reason=DROPPED)
        answered.bill.answered()
        if fault == "duplicate":
            send_again(http, body)
        return response


def _retry(rule: FaultRule) -> dict[str, str]:
    """Retry-After for the faults that providers send it with."""
    return retry_headers(rule) if rule.kind in {"rate_limit", "unavailable"} else {}


async def _fail_unbilled(http: web.Request, fault: str) -> web.Response:
    if fault == HTML_GATEWAY:
        return web.Response(
            status=502, text="<html><h1>502 Bad Gateway</h1></html>", content_type="text/html"
        )
    if fault == "hang":
        await hang(http)
    else:
        reset_connection(http)
    return web.Response(status=499, reason=DROPPED)


async def _fail_billed(
    http: web.Request, fault: str, body: bytes, headers: dict[str, str]
) -> web.StreamResponse:
    if fault == "server_error_billed":
        return error_answer(HTTP_ERRORS["server_error"], headers)
    if fault == "truncated_body":
        return web.Response(body=body[: len(body) // 2], headers=headers, content_type=JSON_TYPE)
    if fault == "broken_body":
        await send_broken(http, body, headers)
    elif fault == "hang_billed":
        await hang(http)
    else:
        reset_connection(http)
    return web.Response(status=499, reason=DROPPED)
