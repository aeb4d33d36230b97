"""Requests to the strong judge's server over HTTP; nothing of the SDK leaves this module.

The SDK's own retries are off: whoever calls decides what is tried again, by `failures.MEANING`.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import openai

from ray_judge.config import StrongConfig
from ray_judge.escalation.answers import Reply, read_json, read_reply
from ray_judge.escalation.failures import Kind, RequestFailed, classify
from ray_judge.escalation.questions import in_words

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
OPENAI = "api.openai.com"
IDS_KEPT = 4096
BATCH_TIMEOUT_S = 600.0
"""The least time for one call about a batch: its files have up to 200 MB."""
NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}
"""Transport errors (httpx, by class name, since the SDK may bring either of two httpx) after
which the server cannot have seen the request."""


class StrongClient:
    """Sends requests to one OpenAI-compatible server."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        self._client = _open(strong, key, strong.timeout_s)
        self._timeout_s, self._in_words, self._seen = strong.timeout_s, False, SeenIds()
        self._tier = _tier(strong, self._client.base_url.host)

    async def close(self) -> None:
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Send one request, once; it is over within `strong.timeout_s`. Raises RequestFailed."""
        sent = in_words(body) if self._in_words else dict(body)
        if self._tier:
            sent["service_tier"] = self._tier  # how it is served is no part of what is asked
        create = self._client.chat.completions.with_raw_response.create
        try:
            with _translated():
                async with asyncio.timeout(self._timeout_s):
                    # `extra_body` goes out as it is. The SDK walks through anything else type by
                    # type, which took a third of this process's time, for plain JSON.
                    raw = await create(model=sent["model"], messages=[], extra_body=sent)
        except RequestFailed as failure:
            if failure.kind is Kind.NO_SCHEMA:
                if "response_format" not in sent:  # asked in words, and still not content
                    failure.kind = Kind.ROW
                self._in_words = True
            raise
        reply = read_reply(read_json(raw.http_response.text), dict(raw.headers))
        ours, repeated = self._seen.look(reply.response_id, body)
        # What comes next on this connection would be the answer before it, again and again.
        if repeated and (connection := raw.http_response.extensions.get("network_stream")):
            await connection.aclose()
        if not ours:
            raise RequestFailed(Kind.AMBIGUOUS, "an answer to another question came once more")
        return reply


class SeenIds:
    """Which question each answer was for, by the id that the server gave it.

    HTTP/1.1 tells answers apart by their order on a connection alone. An answer that a broken
    proxy writes twice is taken for the next question's, and that one's for the next. Ids are
    unique, so one that comes again is not ours; but servers that give every answer the same id,
    and caches that give the same question its answer again, are believed.
    """

    def __init__(self) -> None:
        self._questions: OrderedDict[str, int] = OrderedDict()

    def look(self, response_id: str | None, body: Mapping[str, Any]) -> tuple[bool, bool]:
        """Whether the answer can be the one to this request, and whether its id came before."""
        if response_id is None:
            return True, False
        repeated, question = response_id in self._questions, hash(json.dumps(body["messages"]))
        before = self._questions.setdefault(response_id, question)
        if len(self._questions) > IDS_KEPT:
            self._questions.popitem(last=False)
        several = len(self._questions) > 1
        return before == question or not several, repeated and several


class BatchClient:
    """Files and batches of one OpenAI-compatible server. Every call raises RequestFailed."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        self._client = _open(strong, key, max(strong.timeout_s, BATCH_TIMEOUT_S))
        self._files = self._client.files.with_raw_response
        self._batches = self._client.batches.with_raw_response

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, name: str, content: bytes) -> str:
        """Store an input file; give its id."""
        made = await _document(self._files.create(file=(name, content), purpose="batch"))
        return str(made["id"])

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Begin a batch over the requests of an input file."""
        return await _document(
            self._batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata=dict(metadata),
            )
        )

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        return await _document(self._batches.retrieve(batch_id))

    async def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        """Up to 100 batches of the account, newest first, behind `after`; whether more follow."""
        more: dict[str, Any] = {"after": after} if after else {}
        found = await _document(self._batches.list(limit=100, **more))
        return list(found["data"]), bool(found.get("has_more"))

    async def download(self, file_id: str) -> bytes:
        with _translated():
            return (await self._client.files.content(file_id)).content

    async def delete(self, file_id: str) -> None:
        """Remove a file, so that no batch can begin from it any more."""
        await _document(self._files.delete(file_id))


def _open(strong: StrongConfig, key: str, timeout_s: float) -> openai.AsyncOpenAI:
    # A server on this machine is never behind the proxy that the environment names.
    local = urlsplit(strong.base_url or "").hostname in LOOPBACK
    quarter = timeout_s / 4  # for pool, connection and TLS each: so a limit strikes behind them
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=strong.base_url,
        timeout=openai.Timeout(timeout_s, connect=quarter, pool=quarter),
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if local else None,
    )


def _tier(strong: StrongConfig, host: str) -> str | None:
    """Which `service_tier` is asked for; None sends nothing.

    OpenAI serves a request that names none as its project is set, which may be `priority`, dearer
    than the lease: so it is told `default`. Other servers may not know the parameter.
    """
    if strong.mode == "flex":
        return "flex"
    return "default" if host == OPENAI or host.endswith("." + OPENAI) else None


async def _document(sent: Awaitable[Any]) -> dict[str, Any]:
    with _translated():
        answer = await sent
    document = read_json(answer.http_response.text)
    if not isinstance(document, dict) or ("id" not in document and "data" not in document):
        raise RequestFailed(Kind.AMBIGUOUS, "the answer is not an object of the API")
    return document


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the SDK's errors into RequestFailed, by their types and fields."""
    try:
        yield
    except openai.APIStatusError as error:
        status, code, kind = error.status_code, error.code, error.type
        reason = f"HTTP {status} {code or kind or ''}".strip()
        meaning, headers = classify(status, code, kind, error.param), dict(error.response.headers)
        raise RequestFailed(meaning, reason, status, code, headers) from None
    except (openai.OpenAIError, TimeoutError) as error:
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
        name = type(cause or error).__name__
        if name in NEVER_SENT:
            reason = f"the server cannot be reached ({name})"
            raise RequestFailed(Kind.TRANSIENT, reason) from None
        reason = f"no whole answer came back ({name})"
        raise RequestFailed(Kind.AMBIGUOUS, reason) from None
