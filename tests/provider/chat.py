"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
import time

from aiohttp import web

from tests.provider import faults, wire
from tests.provider.faults import HTTP_ERRORS, AnswerLost, ApiFailure, HttpError, bad_request
from tests.provider.requests import ChatRequest
from tests.provider.state import Provider


class ChatRoute:
    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def complete(self, request: web.Request) -> web.StreamResponse:
        provider = self._provider
        provider.chat_requests += 1
        provider.in_flight += 1
        provider.max_in_flight = max(provider.max_in_flight, provider.in_flight)
        try:
            return await self._complete(request)
        except ApiFailure as failure:
            raise ApiFailure(failure.error, {**self._headers(), **failure.headers}) from None
        finally:
            provider.in_flight -= 1

    def _headers(self) -> dict[str, str]:
        number = self._provider.requests
        return {"x-request-id": f"req_sim_{number}", **self._provider.limiter.headers()}

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        provider, received = self._provider, time.monotonic()
        key = provider.config.api_key
        try:
            raw = json.loads(await http.read())
        except ValueError:
            raise bad_request("The body is not valid JSON.") from None
        request = ChatRequest.parse(raw, provider.config)
        self._admit(request)
        attempt = provider.next_attempt(request.key)
        rule = provider.pick_fault(request, attempt, provider.admitted, "chat")
        if rule is not None and rule.kind in HTTP_ERRORS:
            waits = rule.kind in {"rate_limit", "unavailable"}
            told = wire.wait_headers(rule.retry_after_s) if waits else {}
            raise ApiFailure(HTTP_ERRORS[rule.kind], told)
        if rule is not None and rule.kind in faults.ERRORS_INSIDE.keys() - faults.BILLED_TRANSPORT:
            return wire.json_answer(faults.error_inside(rule.kind), headers=self._headers())
        delay = provider.latency_s(request.key, attempt)
        if rule is not None and rule.kind == "late":
            delay += rule.extra_ms / 1000.0
        if delay > 0:
            await asyncio.sleep(max(0.0, received + delay - time.monotonic()))
        if provider.config.api_key != key:  # another test began meanwhile
            raise AnswerLost
        return await self._deliver(http, request, rule.kind if rule else None)

    def _admit(self, request: ChatRequest) -> None:
        """Pass the quota and the rate limits, or raise the 429."""
        provider = self._provider
        provider.check_quota()
        provider.check_busy()
        if refused := provider.limiter.admit(request.prompt_tokens + (request.allowance or 0)):
            which, wait_s = refused
            message = f"Rate limit reached on {which} per min. Try again in {wait_s:.3f}s."
            error = HttpError(429, faults.RATE_LIMIT.code, which, message)
            raise ApiFailure(error, wire.wait_headers(wait_s))
        provider.admitted += 1

    async def _deliver(
        self, http: web.Request, request: ChatRequest, fault: str | None
    ) -> web.StreamResponse:
        """Compute, bill and send, with the transport fault if there is one."""
        if fault in faults.UNBILLED_TRANSPORT:
            return await _fail(http, str(fault))
        answer, bill = self._provider.answer(request, fault)
        body, headers = wire.encode(answer), self._headers()
        if fault in faults.BILLED_TRANSPORT - {"late", "duplicate"}:
            return await _fail(http, str(fault), body)
        response = web.Response(body=body, headers=headers, content_type=wire.JSON_TYPE)
        try:
            await response.prepare(http)
            await response.write_eof()
        except ConnectionError:
            return web.Response(status=wire.DROPPED)
        if wire.client_left(http):
            return web.Response(status=wire.DROPPED)
        bill.answered()
        if fault == "duplicate":
            wire.send_and_close(http, body, body)
        return response


async def _fail(http: web.Request, fault: str, body: bytes = b"") -> web.Response:
    half = body[: len(body) // 2]
    if fault == "bad_gateway_html":
        page = "<html><h1>502 Bad Gateway</h1></html>"
        return web.Response(status=502, text=page, content_type="text/html")
    if fault == "server_error_billed":
        return wire.error_answer(HTTP_ERRORS["server_error"])
    if fault == "error_inside_billed":
        return wire.json_answer(faults.error_inside(fault))
    if fault == "truncated_body":
        return web.Response(body=half, content_type=wire.JSON_TYPE)
    if fault == "broken_body":
        return wire.send_and_close(http, body, half)
    if fault in {"hang", "hang_billed"}:
        return await wire.hang(http)
    raise AnswerLost
